"""What an attenuation map does to the PET: one scan, simulated with the true CT, corrected with each map.

The PET that the true CT corrects is the reference, so that a map equal to the truth errs by exactly 0, and what an
image lost to resolution, noise and few iterations is not counted. Scatter and randoms are the true ones whatever the
map: errors are those of the attenuation factors alone. docs/physics.md says what the scan leaves out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attenuation import hu_to_mu
from ..physics.osem import field_of_view
from ..physics.projector import TofProjector
from ..physics.scan import DEFAULT_SCAN, Scan
from ..physics.simulate import Acquisition, acquire, check_scannable, reconstruct_ac, transverse_geometry
from ..physics.smoothing import smooth_image
from ..volume import Volume
from .baselines import four_class, no_bone, water
from .pet_error import PetError, compare_pets, difference
from .pet_regions import Regions, find_regions

TRUE_MAP = "true map"
# Maps to set beside a synthetic CT; each is made of the true CT. See Note [Surface].
PET_AC_BASELINES: dict[str, Callable[[Volume], Volume]] = {"4 classes": four_class, "no bone": no_bone, "water": water}

# Note [Surface]: the body mask leaves out surface voxels that are filled by less than about two thirds, and the
# baselines put air there. In voxels of 4 mm that alone lowers every organ's SUV by 3 %, as the true CT with air outside
# its mask shows. So a baseline here takes the true CT's values outside the mask, and shows what its classes do.


@dataclass(frozen=True, eq=False)
class PetAc:
    """PETs of one scan by name of their map, and how far each lies from that of the true map."""

    scan: Scan
    reference: Volume  # [z, y, x] corrected with the true map
    pets: dict[str, Volume]  # [z, y, x] corrected with the others
    errors: dict[str, PetError]

    def difference(self, name: str) -> Volume:
        """[z, y, x] PET of this map minus the reference, in the activity's unit."""
        return difference(self.pets[name], self.reference)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON; the images are left out."""
        errors = {name: dataclasses.asdict(error) for name, error in self.errors.items()}
        return {"scan": dataclasses.asdict(self.scan), "unit": self.reference.unit, "maps": errors}


def pet_ac(
    activity: Volume,
    ct: Volume,
    scts: Mapping[str, Volume],
    *,
    regions: Regions | None = None,
    baselines: Mapping[str, Callable[[Volume], Volume]] = PET_AC_BASELINES,
    scan: Scan = DEFAULT_SCAN,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> PetAc:
    """Simulates one scan with the true CT and corrects it with each map.

    Args:
        activity: [z, y, x] not negative, on an axis-aligned LPS grid with the same spacing in y and x; of a phantom, or
            a corrected PET (see `as_activity`). Its unit is that of all results.
        ct: [z, y, x] the true CT on the same grid, HU.
        scts: name -> synthetic CT [z, y, x] on the same grid, HU. None of them is masked here: tissue that is invented
            outside the body attenuates, too.
        regions: where errors are measured; None: `find_regions(ct)`, tissues by HU and no lesions.
        baselines: name -> a map made of the true CT, of which the body is used (Note [Surface]); {} for none.
        scan: of scanner and reconstruction.
        device: "cpu" or "cuda".
        progress: called with a line of text before each stage.

    Raises:
        VolumeError: grids are unfit or differ, a CT is not in HU, a value is not finite, the activity is negative, zero
            or outside the scanner's circle, or the true CT holds no body.
        ValueError: two maps of one name, an unknown tube voltage, or sampling that cannot be.
        DeviceError: a CUDA device is asked for and there is none.
    """
    _check(activity, ct, scts, [*baselines, TRUE_MAP])
    regions = regions or find_regions(ct)
    body = regions.body
    beside = {
        name: Volume(np.where(body, make(ct).array, ct.array), ct.affine, "HU") for name, make in baselines.items()
    }
    reference, pets = reconstruct_with_maps(activity, ct, {**scts, **beside}, scan, device, progress)
    errors = {name: compare_pets(pet, reference, regions) for name, pet in pets.items()}
    return PetAc(scan, reference, pets, errors)


def as_activity(pet: Volume) -> Volume:
    """A corrected PET as an activity to scan: voxels below zero, which some reconstructions leave, become zero.

    It is blurred already: scan it with `Scan(psf_mm=0)`.
    """
    return Volume(np.maximum(pet.array, 0), pet.affine, pet.unit)


def reconstruct_with_maps(
    activity: Volume,
    ct: Volume,
    maps: Mapping[str, Volume],
    scan: Scan,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> tuple[Volume, dict[str, Volume]]:
    """The PET corrected with the true CT, and those with each of `maps`, all from the same data.

    Arguments are those of `pet_ac`, and unchecked. Whatever does not depend on the map is done once.
    """
    report = progress or (lambda _: None)
    geometry = transverse_geometry(activity, tof_fwhm_ps=scan.tof_fwhm_ps, n_views=scan.n_views)
    report(f"preparing the projector ({scan.n_views} views, {geometry.n_tof} TOF bins)")
    projector = TofProjector(geometry, device)
    report(f"simulating the scan of {activity.shape[0]} slices")
    data = acquire(
        projector,
        torch.tensor(np.asarray(activity.array, np.float32), device=projector.device),
        _mu(ct, scan.kvp, projector),
        counts_per_slice=scan.counts_per_slice,
        psf_mm=scan.psf_mm,
        seed=scan.seed,
    )
    pets = {}
    for name, volume in {TRUE_MAP: ct, **maps}.items():
        report(f"reconstructing: {name} ({scan.n_iterations} iterations of {scan.n_subsets} subsets)")
        pets[name] = Volume(_corrected(projector, data, volume, scan), activity.affine, activity.unit)
    return pets.pop(TRUE_MAP), pets


def _corrected(projector: TofProjector, data: Acquisition, ct: Volume, scan: Scan) -> np.ndarray:
    """[z, y, x] float32: the PET that a CT [z, y, x] corrects, filtered."""
    image = reconstruct_ac(
        projector, data, _mu(ct, scan.kvp, projector), n_iterations=scan.n_iterations, n_subsets=scan.n_subsets
    )
    return smooth_image(image, scan.post_filter_mm, ct.spacing).cpu().numpy()


def _mu(ct: Volume, kvp: int, projector: TofProjector) -> Tensor:
    return torch.tensor(hu_to_mu(ct.array, kvp), dtype=torch.float32, device=projector.device)


def _check(activity: Volume, ct: Volume, scts: Mapping[str, Volume], taken: list[str]) -> None:
    """Refuses what cannot be compared."""
    fov = field_of_view(transverse_geometry(activity, tof_fwhm_ps=None, n_views=1)).numpy()
    check_scannable(activity, ct, fov)
    for name, sct in scts.items():
        if name in taken:
            raise ValueError(f"expected other names of synthetic CTs than {', '.join(taken)}, got {name!r}; rename it")
        check_scannable(activity, sct, fov)
