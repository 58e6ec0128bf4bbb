"""The PET metrics of the challenge BIC-MAC (MICCAI 2026) under their names, as far as our tissues allow.

    SUV MAE         mean |SUV difference| in the body, without the slices within 4 cm of the top of the liver
                    (breathing); in the whole body where no liver is named. SUV as theirs: weight is the body's volume
                    (1 g/ml) and dose the sum of the reference PET, since their PET has no unit
    organ bias      mean over organs of |error of the organ's mean| [%]. BIC-MAC has brain, liver, spleen, heart,
                    pancreas, muscle, adipose tissue and extremities; we have those of `ORGANS` that are named
    brain outlier   1 - mean over 5, 10 and 15 % of the share of brain voxels whose relative error is smaller; 0 is
                    best. A cohort's score is the mean of its cases'

Source: github.com/bic-mac-challenge/challenge-codebase, README and src/evaluation/metrics (July 2026). Their body and
organs are TotalSegmentator's; numbers on other labels come close to theirs but are not the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..volume import Volume
from .pet_regions import Mask, Regions

ORGANS = ("brain", "liver", "spleen", "heart", "pancreas", "muscle", "fat", "extremities")
BRAIN_THRESHOLDS = (0.05, 0.10, 0.15)
LIVER_MARGIN_MM = 40.0
# Field of `BicMac` -> the challenge's name, format.
NAMES = {
    "suv_mae": ("PET SUV MAE", ".4f"),
    "organ_bias_percent": ("organ bias [%]", ".2f"),
    "brain_outlier": ("brain outlier score", ".3f"),
}
AXES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))  # shapes that spread an axis over [z, y, x]
NO_UPTAKE = 1e-6  # brain voxels of the reference below it are not counted


@dataclass(frozen=True)
class BicMac:
    """None where the labels lack what a metric needs."""

    suv_mae: float | None  # SUV
    organ_bias_percent: float | None
    organs: list[str]  # that went into the organ bias
    brain_outlier: float | None  # 0 (best) to 1


def bic_mac(pet: Volume, reference: Volume, regions: Regions) -> BicMac:
    """Measures a PET against the one corrected with the true CT.

    Args:
        pet: [z, y, x].
        reference: [z, y, x], same grid and unit.
        regions: on their grid; of its tissues, those of `ORGANS` count.
    """
    body, tissues = regions.body, regions.tissues
    factor = body.sum() / float(reference.array.sum(dtype=np.float64))  # to SUV: weight [g] / dose
    counted = body & ~_near_top_of_liver(reference, tissues["liver"]) if "liver" in tissues else body
    error = np.abs(pet.array[counted].astype(np.float64) - reference.array[counted])
    organs = [name for name in ORGANS if name in tissues]
    biases = [_bias(pet.array[tissues[name]], reference.array[tissues[name]]) for name in organs]
    return BicMac(
        suv_mae=float(factor * error.mean()) if error.size else None,
        organ_bias_percent=100 * float(np.mean(biases)) if biases else None,
        organs=organs,
        brain_outlier=_outliers(pet.array[tissues["brain"]], reference.array[tissues["brain"]])
        if "brain" in tissues
        else None,
    )


def _near_top_of_liver(grid: Volume, liver: Mask) -> Mask:
    """[z, y, x]: what lies within 4 cm of the liver's highest voxel, along the body; in any orientation of storage."""
    z, y, x = (np.arange(n, dtype=np.float32).reshape(shape) for n, shape in zip(grid.shape, AXES, strict=True))
    along_x, along_y, along_z = grid.affine[2, :3]
    height = np.broadcast_to(along_z * z + along_y * y + along_x * x, grid.shape)
    return np.abs(height - height[liver].max()) <= LIVER_MARGIN_MM


def _bias(pet: NDArray, reference: NDArray) -> float:
    """|relative error of the mean|; an organ without uptake has none."""
    mean = float(reference.mean(dtype=np.float64))
    return abs(float(pet.mean(dtype=np.float64)) / mean - 1) if mean > 0 else 0.0


def _outliers(pet: NDArray, reference: NDArray) -> float:
    """Share of voxels [n] that do not err by less than a threshold, mean over the thresholds."""
    counted = np.abs(reference) > NO_UPTAKE
    if not counted.any():
        return 1.0
    relative = np.abs(pet[counted].astype(np.float64) / reference[counted] - 1)
    return 1 - float(np.mean([(relative < threshold).mean() for threshold in BRAIN_THRESHOLDS]))
