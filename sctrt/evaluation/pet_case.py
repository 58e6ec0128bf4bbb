"""The corrected PETs of one case of an evaluation: simulated with the two CTs, or given; all brought to one grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .. import ops
from ..checks import check_labels, check_pet
from ..errors import VolumeError
from ..orientation import lps
from ..physics.scan import DEFAULT_SCAN, Scan
from ..preprocess import Grid, model_grid, to_grid
from ..units import HU_AIR
from ..volume import Volume
from .metrics import same_grid
from .pairs import Pair
from .pet_error import SYNTHETIC, PetError, compare_pets
from .pet_regions import TOTALSEGMENTATOR_GROUPS, Regions, find_regions, tissues_by_label

SCAN_MM = 4.0  # voxels of a scan; finer PETs are averaged: at 2 mm a whole body would take ten times as long
SQUARE_TOLERANCE = 1e-3  # relative to the voxel size
# Mean SUV errors of a tissue [%] from which on the report warns.
MAX_ERROR_PERCENT = {"soft tissue": 3.0, "lung": 10.0, "bone": 10.0}


@dataclass(frozen=True, eq=False)
class PetCase:
    """PETs by name of their attenuation map, and how far each lies from that of the true CT."""

    reference: Volume  # [z, y, x] corrected with the true CT
    pets: dict[str, Volume]  # [z, y, x] corrected with others
    errors: dict[str, PetError]
    regions: Regions
    scan: dict[str, Any] | None  # of the simulation; None where the PETs were given
    notes: list[str]  # what was done to bring them together

    def record(self) -> dict[str, Any]:
        """All numbers, for JSON; the images are left out."""
        maps = {name: {**dataclasses.asdict(e), "lesion_means": e.lesion_means} for name, e in self.errors.items()}
        return {
            "scan": self.scan,
            "unit": self.reference.unit,
            "notes": self.notes,
            "warnings": self.warnings(),
            "maps": maps,
        }

    def warnings(self) -> list[str]:
        """Tissues in which the synthetic CT's PET errs by more than it should."""
        tissues = self.errors[SYNTHETIC].tissues
        found = []
        for name, limit in MAX_ERROR_PERCENT.items():
            error = tissues[name].mean_percent if name in tissues else None
            if error is not None and abs(error) > limit:
                found.append(
                    f"With the synthetic CT's map the PET errs by {error:+.1f} % in {name} on average; "
                    f"more than {limit:g} % is too much."
                )
        return found


def simulated(
    pair: Pair,
    activity: Volume,
    *,
    labels: Volume | None = None,
    organs: Volume | None = None,
    scan: Scan = DEFAULT_SCAN,
    progress: Callable[[str], None] | None = None,
) -> PetCase:
    """Scans an activity with the true CT, and corrects that one scan with both CTs and with trivial maps.

    Args:
        pair: the two CTs; what of them lies beyond the bodies, and the table, does not attenuate.
        activity: [z, y, x] of a phantom, or a corrected PET; on any grid, in any orientation. Negative voxels count as
            0, and slices that the CTs do not reach are left out.
        labels: [z, y, x] of a phantom, on any grid; None: tissues by HU and no lesions.
        organs: [z, y, x] TotalSegmentator labels, on any grid: organs beside the tissues by HU.
        scan: of scanner and reconstruction; `psf_mm` is 0 for a corrected PET, which is blurred already.
        progress: called with a line before each stage.

    Raises:
        VolumeError: the activity is unfit, or has nothing in common with the CTs.
        ModuleNotFoundError: there is no torch.
    """
    from .pet_ac import pet_ac

    _check({"activity": activity})
    grid, notes = _scan_grid(activity, pair)
    source = Volume(np.maximum(activity.array, 0), activity.affine, activity.unit)
    sct, ct = (_on(grid, Volume(hu, pair.affine, "HU"), HU_AIR) for hu in _attenuating(pair))
    regions = _regions(ct, _known(pair, grid), labels, organs)
    result = pet_ac(_on(grid, source, 0.0), ct, {SYNTHETIC: sct}, regions=regions, scan=scan, progress=progress)
    return PetCase(result.reference, result.pets, result.errors, regions, dataclasses.asdict(scan), notes)


def given(
    pair: Pair, pet: Volume, reference: Volume, *, labels: Volume | None = None, organs: Volume | None = None
) -> PetCase:
    """Two corrected PETs that one already has, compared.

    Args:
        pair: the two CTs, for tissues and body.
        pet: [z, y, x] corrected with the synthetic CT, in the reference's unit; on any grid.
        reference: [z, y, x] corrected with the true CT; its grid is that of the comparison.
        labels: see `simulated`.
        organs: see `simulated`.

    Raises:
        VolumeError: a PET is unfit, or has nothing in common with the CTs.
    """
    _check({"PET of the synthetic CT": pet, "PET of the true CT": reference})
    grid, notes = _common_grid(lps(reference), pair)
    if not same_grid(lps(pet), lps(reference)):
        notes.append("The PET of the synthetic CT was resampled to the grid of the reference, trilinear.")
    ct = _on(grid, Volume(_attenuating(pair)[1], pair.affine, "HU"), HU_AIR)
    regions = _regions(ct, _known(pair, grid), labels, organs)
    one, other = (_on(grid, volume, 0.0) for volume in (pet, reference))
    return PetCase(other, {SYNTHETIC: one}, {SYNTHETIC: compare_pets(one, other, regions)}, regions, None, notes)


def _check(pets: dict[str, Volume]) -> None:
    """Refuses what is no PET, naming it."""
    for name, pet in pets.items():
        try:
            check_pet(pet)
        except VolumeError as error:
            raise VolumeError(f"{name}: {error}") from None


def _attenuating(pair: Pair) -> list[np.ndarray]:
    """Both CTs with air where nothing attenuates: the noise around a patient would."""
    return [np.where(pair.attenuating, hu, np.float32(HU_AIR)) for hu in (pair.sct, pair.ct)]


def _regions(ct: Volume, known: NDArray[np.bool_], labels: Volume | None, organs: Volume | None) -> Regions:
    """A phantom's labels name all tissues; organs are added to those by HU. What the true CT lacks is in none."""
    of_labels, of_organs = (
        None if given is None else _labelled(given, name, ct, known)
        for name, given in (("labels", labels), ("organs", organs))
    )
    regions = find_regions(ct, of_labels)
    if not regions.tissues:
        raise VolumeError("expected tissues in the labels, got none where the CTs lie; pass those of sctrt simulate")
    if of_labels is not None or of_organs is None:
        return regions
    named = tissues_by_label(of_organs, TOTALSEGMENTATOR_GROUPS)
    return dataclasses.replace(regions, tissues={**regions.tissues, **named})


def _labelled(labels: Volume, name: str, ct: Volume, known: NDArray[np.bool_]) -> Volume:
    """Labels on the CT's grid, 0 where there is no telling."""
    check_labels(labels, name)
    on_grid = nearest(labels, ct)
    return Volume(np.where(known, on_grid.array, 0), on_grid.affine, on_grid.unit)


def _known(pair: Pair, grid: Grid) -> NDArray[np.bool_]:
    """[z, y, x] on a PET's grid: where both CTs reach."""
    return to_grid(Volume(pair.known.astype(np.float32), pair.affine), grid, 0.0) > 0.5


def _scan_grid(activity: Volume, pair: Pair) -> tuple[Grid, list[str]]:
    """The activity's own grid where a scanner can have it, else an upright one of square slices."""
    ordered = lps(activity)
    grid, notes = Grid(ordered.affine, ordered.shape), []
    z_mm, y_mm, x_mm = ordered.spacing
    upright = np.allclose(ordered.affine[:3, :3], np.diag([x_mm, y_mm, z_mm]), atol=SQUARE_TOLERANCE * x_mm)
    if not upright or abs(y_mm - x_mm) > SQUARE_TOLERANCE * x_mm or x_mm < SCAN_MM * (1 - SQUARE_TOLERANCE):
        grid = _square(model_grid(ordered, max(SCAN_MM, x_mm, y_mm)))
        notes.append(f"The PET was resampled to voxels of {grid.spacing:.3g} mm, to be scanned.")
    cropped, left_out = _common_grid(Volume(np.empty(grid.shape, np.uint8), grid.affine), pair)
    return cropped, notes + left_out


def _square(grid: Grid) -> Grid:
    """As wide as deep, about the same middle: the scanner sees the circle in it."""
    nz, ny, nx = grid.shape
    n = max(ny, nx)
    before = [(n - nx) // 2, (n - ny) // 2, 0]
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return Grid(affine, (nz, n, n))


def _common_grid(pet: Volume, pair: Pair) -> tuple[Grid, list[str]]:
    """The slices of a PET [z, y, x] that both CTs reach."""
    grid = Grid(pet.affine, pet.shape)
    rows = np.flatnonzero(_known(pair, grid).any(axis=(1, 2)))
    if not rows.size:
        raise VolumeError(
            "expected a PET of the same body as the CTs, got one that lies elsewhere; check that the files belong "
            "together and that their affines place them alike"
        )
    first, last = int(rows[0]), int(rows[-1]) + 1
    ny, nx = grid.shape[1:]
    left_out = grid.shape[0] - (last - first)
    notes = [f"{left_out} of {grid.shape[0]} slices of the PET lie beyond the CTs: left out."] if left_out else []
    return grid.crop((slice(first, last), slice(0, ny), slice(0, nx))), notes


def _on(grid: Grid, volume: Volume, fill: float) -> Volume:
    """On a grid: as it is where it has that, else trilinear, finer voxels averaged."""
    ordered = lps(volume)
    there = Volume(np.empty(grid.shape, np.uint8), grid.affine)
    array = ordered.array.astype(np.float32) if same_grid(ordered, there) else to_grid(ordered, grid, fill)
    return Volume(array, grid.affine, volume.unit)


def nearest(labels: Volume, like: Volume) -> Volume:
    """Labels [z, y, x] on another volume's grid: of the nearest voxel, 0 outside."""
    matrix = ops.grid_matrix(like.affine, labels.affine)
    reverse = matrix[:3, :3][::-1, ::-1]
    array = ndimage.affine_transform(
        labels.array, reverse, offset=matrix[:3, 3][::-1], output_shape=like.shape, order=0, mode="grid-constant"
    )
    return Volume(array, like.affine, "1")
