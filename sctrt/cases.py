"""A simulated case: a body, its scan, and the folder that holds both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checks import check_ct
from .files import write_json
from .phantom import Phantom, body_from_ct, make_body
from .phantom.body import Arms, Region
from .physics.simulate import COUNTS_PER_SLICE, SCATTER_FRACTION, simulate_nac
from .volume import Volume

NAC, CT, ACTIVITY, LABELS, META = "nac.nii.gz", "ct.nii.gz", "activity.nii.gz", "labels.nii.gz", "meta.json"
FILES = (NAC, CT, ACTIVITY, LABELS, META)


def simulate_case(
    seed: int,
    *,
    ct: Volume | None = None,
    voxel_mm: float = 4.0,
    tof_ps: float | None = 385.0,
    counts_per_slice: float = COUNTS_PER_SLICE,
    scatter_fraction: float = SCATTER_FRACTION,
    region: Region = "body",
    arms: Arms | None = None,
    bmi: float | None = None,
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
    device: str = "cpu",
    progress: Any = None,
) -> tuple[Phantom, Volume]:
    """Makes a body and scans it.

    Args:
        seed: of the body (or of the uptake in a real CT) and of the noise.
        ct: HU; a real CT whose anatomy is used instead of a procedural body.
        voxel_mm: isotropic voxel size of body and PET.
        tof_ps: FWHM of the coincidence timing; None for a scanner without time of flight.
        counts_per_slice: mean number of true coincidences of a slice.
        scatter_fraction: scatter / (trues + scatter), in [0, 1).
        region: "body" or "torso" of a procedural body.
        arms: "up" or "down", of a procedural body; None draws it.
        bmi: of a procedural body [kg/m2]; None draws it.
        stretch: of a real CT's anatomy, by direction (z, y, x).
        device: of the simulation.
        progress: called with a line of text before each stage.

    Returns:
        The phantom, and its TOF PET without attenuation correction.

    Raises:
        VolumeError: the CT is none in HU, or holds no body.
        ValueError: an argument is out of its range.
    """
    say = progress or (lambda _: None)
    say("building the body")
    if ct is not None:
        check_ct(ct)
    phantom = (
        body_from_ct(ct, seed, voxel_mm, stretch=stretch)
        if ct is not None
        else make_body(seed, voxel_mm, region=region, arms=arms, bmi=bmi)
    )
    nac = simulate_nac(
        phantom.activity,
        phantom.ct,
        tof_fwhm_ps=tof_ps,
        counts_per_slice=counts_per_slice,
        scatter_fraction=scatter_fraction,
        seed=seed,
        device=device,
        progress=progress,
    )
    return phantom, nac


def save_case(folder: Path, phantom: Phantom, nac: Volume, meta: dict[str, Any]) -> None:
    """Writes a case folder; `meta.json` comes last, so a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    for name, volume in ((NAC, nac), (CT, phantom.ct), (ACTIVITY, phantom.activity), (LABELS, phantom.labels)):
        volume.save(folder / name)
    lesions = [{"site": x.site, "radius_mm": x.radius_mm, "suv": x.suv, "zyx": x.index_zyx} for x in phantom.lesions]
    write_json(folder / META, {**meta, "phantom": phantom.meta, "lesions": lesions})
