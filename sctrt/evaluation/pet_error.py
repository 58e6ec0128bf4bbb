"""How far a PET lies from another of the same patient: by tissue, by lesion, voxel by voxel; needs no torch.

Errors are relative to the reference, commonly the PET that was corrected with the true CT. Definitions:

    mean error      of a tissue: its mean in the PET against its mean in the reference [%]
    absolute error  of a tissue: mean over its voxels of |PET - reference| [unit of the PETs], and as a share of the
                    tissue's mean in the reference [%]
    5th and 95th percentile of the voxels' relative errors [%], where the reference exceeds a tenth of the tissue's
                    mean: the error of a voxel without uptake says nothing
    SUVmax          largest voxel of a lesion
    SUVpeak         largest mean over a sphere of 1 ml that is centred in a lesion; Wahl et al. (PERCIST), J Nucl Med
                    2009;50:122S
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import VolumeError
from ..volume import Volume
from .pet_bic_mac import BicMac, bic_mac
from .pet_regions import BODY, Mask, Regions

SYNTHETIC = "synthetic CT"  # name of its map, wherever several stand side by side
MIN_REFERENCE_SHARE = 0.1  # of a tissue's mean: voxels below it have no relative error
PERCENTILES = (5, 95)
PEAK_RADIUS_MM = (3000 / (4 * math.pi)) ** (1 / 3)  # 6.2 mm: 1 ml
PEAK_OVERSAMPLING = 15  # per axis of a voxel, for the share of it that lies in the sphere
HISTOGRAM_BINS = 64
HISTOGRAM_TOP_PERCENTILE = 99.9  # of the reference in the body; what lies above is counted in the last bin
GRID_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class TissueError:
    """Of one tissue; None where the reference has no uptake there."""

    voxels: int
    reference_mean: float  # unit of the PETs
    mean_percent: float | None
    absolute: float  # unit of the PETs
    absolute_percent: float | None
    p5_percent: float | None
    p95_percent: float | None


@dataclass(frozen=True)
class LesionError:
    """Of one lesion; None where the reference has no uptake there."""

    centre_zyx: tuple[int, int, int]  # voxel of the reference's maximum
    volume_ml: float
    reference_max: float  # unit of the PETs
    reference_peak: float
    mean_percent: float | None
    max_percent: float | None
    peak_percent: float | None


@dataclass(frozen=True)
class JointHistogram:
    """How often a voxel of the body has one value in the reference and another in the PET."""

    edges: list[float]  # [bins + 1], of both axes; the last bin also holds what lies above
    counts: list[list[int]]  # [bin of the reference][bin of the PET]


@dataclass(frozen=True)
class PetError:
    """How far one PET lies from the reference."""

    tissues: dict[str, TissueError]
    lesions: list[LesionError]
    histogram: JointHistogram
    bic_mac: BicMac

    @property
    def lesion_means(self) -> dict[str, float | None]:
        """Their number, and the mean over lesions of each error [%]; None where no lesion has one."""
        found: dict[str, float | None] = {"lesions": len(self.lesions)}
        for name in ("mean_percent", "max_percent", "peak_percent"):
            values = [value for lesion in self.lesions if (value := getattr(lesion, name)) is not None]
            found[name] = float(np.mean(values)) if values else None
        return found


def compare_pets(pet: Volume, reference: Volume, regions: Regions) -> PetError:
    """Measures a PET against a reference.

    Args:
        pet: [z, y, x], in the reference's unit.
        reference: [z, y, x], commonly corrected with the true CT.
        regions: on their grid; see `find_regions`. The body is reported as a tissue.

    Raises:
        VolumeError: grids or units differ, a value is not finite, the reference has no uptake, or a mask is of another
            shape or empty.
    """
    _check(pet, reference, [regions.body, *regions.tissues.values(), *regions.lesions])
    tissues = {BODY: regions.body, **regions.tissues}
    return PetError(
        tissues={name: _tissue_error(pet.array[mask], reference.array[mask]) for name, mask in tissues.items()},
        lesions=[_lesion_error(pet, reference, mask) for mask in regions.lesions],
        histogram=joint_histogram(pet.array[regions.body], reference.array[regions.body]),
        bic_mac=bic_mac(pet, reference, regions),
    )


def difference(pet: Volume, reference: Volume) -> Volume:
    """[z, y, x] float32: PET minus reference, in their unit."""
    return Volume(np.subtract(pet.array, reference.array, dtype=np.float32), reference.affine, reference.unit)


def suv_peak(pet: Volume, lesion: Mask) -> float:
    """The largest mean over a sphere of 1 ml whose centre is a voxel of the lesion; voxels count by their share in it.

    Outside the volume the PET counts as zero.
    """
    sphere = _sphere(pet.spacing)
    reach = [n // 2 for n in sphere.shape]
    box = ndimage.find_objects(lesion.astype(np.uint8))[0]
    wide = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(box, reach, strict=True))
    means = ndimage.correlate(pet.array[wide].astype(np.float64), sphere, mode="constant")
    return float(means[lesion[wide]].max())


def joint_histogram(pet: NDArray, reference: NDArray) -> JointHistogram:
    """Counts pairs of values (any equal shapes), in bins of the reference's range from 0."""
    top = float(np.percentile(reference, HISTOGRAM_TOP_PERCENTILE))
    edges = np.linspace(0, top if top > 0 else 1.0, HISTOGRAM_BINS + 1)
    inside = [np.clip(values.astype(np.float64).ravel(), 0, edges[-1]) for values in (reference, pet)]
    counts, _, _ = np.histogram2d(*inside, bins=[edges, edges])
    return JointHistogram(edges.tolist(), counts.astype(int).tolist())


def _tissue_error(pet: NDArray, reference: NDArray) -> TissueError:
    """Of the voxels [n] of one tissue."""
    pet, reference = pet.astype(np.float64), reference.astype(np.float64)
    mean, absolute = float(reference.mean()), float(np.abs(pet - reference).mean())
    low = high = None
    if mean > 0:
        counted = reference > MIN_REFERENCE_SHARE * mean
        relative = 100 * (pet[counted] / reference[counted] - 1)
        low, high = (float(value) for value in np.percentile(relative, PERCENTILES))
    return TissueError(
        voxels=reference.size,
        reference_mean=mean,
        mean_percent=_percent(float(pet.mean()), mean),
        absolute=absolute,
        absolute_percent=100 * absolute / mean if mean > 0 else None,
        p5_percent=low,
        p95_percent=high,
    )


def _lesion_error(pet: Volume, reference: Volume, lesion: Mask) -> LesionError:
    hottest = np.argmax(np.where(lesion, reference.array, -np.inf))
    z, y, x = (int(i) for i in np.unravel_index(hottest, lesion.shape))
    reference_max, reference_peak = float(reference.array[z, y, x]), suv_peak(reference, lesion)
    mean = float(reference.array[lesion].mean(dtype=np.float64))
    return LesionError(
        centre_zyx=(z, y, x),
        volume_ml=float(lesion.sum() * math.prod(reference.spacing) / 1000),
        reference_max=reference_max,
        reference_peak=reference_peak,
        mean_percent=_percent(float(pet.array[lesion].mean(dtype=np.float64)), mean),
        max_percent=_percent(float(pet.array[lesion].max()), reference_max),
        peak_percent=_percent(suv_peak(pet, lesion), reference_peak),
    )


def _percent(value: float, reference: float) -> float | None:
    return 100 * (value / reference - 1) if reference > 0 else None


def _sphere(spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """[odd, odd, odd] share of each voxel in a sphere of 1 ml about the middle one, summing to one."""
    fine = []
    for step in spacing:
        n = 2 * math.ceil(PEAK_RADIUS_MM / step - 0.5) + 1
        fine.append(((np.arange(n * PEAK_OVERSAMPLING) + 0.5) / PEAK_OVERSAMPLING - n / 2) * step)
    z, y, x = np.ix_(*fine)
    inside = (z**2 + y**2 + x**2 <= PEAK_RADIUS_MM**2).astype(np.float64)
    nz, ny, nx = (n // PEAK_OVERSAMPLING for n in inside.shape)
    shares = inside.reshape(nz, PEAK_OVERSAMPLING, ny, PEAK_OVERSAMPLING, nx, PEAK_OVERSAMPLING).sum((1, 3, 5))
    return shares / shares.sum()


def _check(pet: Volume, reference: Volume, masks: Sequence[Mask]) -> None:
    if pet.shape != reference.shape or not np.allclose(pet.affine, reference.affine, atol=GRID_TOLERANCE_MM):
        raise VolumeError(
            f"expected both PETs on the same grid, got {pet.shape} at {pet.affine.tolist()} and {reference.shape} at "
            f"{reference.affine.tolist()}; resample one to the other"
        )
    if pet.unit != reference.unit:
        raise VolumeError(
            f"expected both PETs in the same unit, got {pet.unit!r} and {reference.unit!r}; convert one of them"
        )
    for name, volume in (("PET", pet), ("reference", reference)):
        if not np.isfinite(volume.array).all():
            raise VolumeError(f"expected finite values, got NaN or infinity in the {name}; mend or crop it")
    if not reference.array.sum(dtype=np.float64) > 0:
        raise VolumeError("expected a reference PET with uptake, got a sum of zero or less; check which file it is")
    for mask in masks:
        if mask.shape != reference.shape or not mask.any():
            raise VolumeError(
                f"expected masks {reference.shape} with voxels in them, got {mask.shape} with {int(mask.sum())}; "
                "resample the labels or the CT to the PET's grid, and leave out empty ones"
            )
