"""Trivial synthetic CTs, made with more knowledge than any method has (the true CT): what a method must beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..attenuation import MU_PER_HU_BELOW
from ..errors import VolumeError
from ..units import FAT_HU, HU_AIR, LUNG_HU, SOFT_HU
from ..volume import Volume
from .metrics import body_mask

HU_WATER = 0.0
# Attenuation coefficients [1/cm at 511 keV] of the four classes of Dixon maps in PET/MR. Classes after Martinez-Moeller
# et al., J Nucl Med 2009;50(4):520-526; values of the Biograph mMR.
FOUR_CLASS_MU = {"air": 0.0, "lung": 0.0224, "fat": 0.0854, "soft": 0.1000}
# Their CT numbers by the inverse of Carney's lower line: soft tissue, 41.7 HU, lies below the break point of 120 kVp.
FOUR_CLASS_HU = {name: mu / MU_PER_HU_BELOW + HU_AIR for name, mu in FOUR_CLASS_MU.items()}


def water(ct: Volume) -> Volume:
    """The true body filled with water (0 HU), air (-1000 HU) around it.

    Args:
        ct: [z, y, x] the true CT, HU.
    """
    return _filled(ct, HU_WATER)


def body_mean(ct: Volume) -> Volume:
    """The true body filled with its own mean HU, air around it.

    Args:
        ct: [z, y, x] the true CT, HU.
    """
    return _filled(ct, float(ct.array[body_mask(ct)].mean(dtype=np.float64)))


def soft_mean(ct: Volume) -> Volume:
    """The true body filled with the mean of its soft tissue (-30 to 150 HU), air around it.

    Args:
        ct: [z, y, x] the true CT, HU.

    Raises:
        VolumeError: the body has no soft tissue.
    """
    inside = ct.array[body_mask(ct)]
    soft = inside[(inside >= SOFT_HU[0]) & (inside <= SOFT_HU[1])]
    if soft.size == 0:
        raise VolumeError(
            f"expected a CT with soft tissue, got none from {SOFT_HU[0]:g} to {SOFT_HU[1]:g} HU in the body; "
            "check its rescale slope"
        )
    return _filled(ct, float(soft.mean(dtype=np.float64)))


def four_class(ct: Volume) -> Volume:
    """Air, lung, fat and soft tissue of the true body at fixed values, bone as soft tissue, as Dixon maps have it.

    The values are those of `FOUR_CLASS_MU` after Carney's conversion at 120 kVp. Voxels between lung and fat (skin and
    the edges of the lungs) count as fat.

    Args:
        ct: [z, y, x] the true CT, HU.
    """
    hu = np.full(ct.shape, FOUR_CLASS_HU["soft"], dtype=np.float32)
    hu[ct.array <= FAT_HU[1]] = FOUR_CLASS_HU["fat"]
    hu[ct.array <= LUNG_HU[1]] = FOUR_CLASS_HU["lung"]
    hu[(ct.array < LUNG_HU[0]) | ~body_mask(ct)] = FOUR_CLASS_HU["air"]
    return Volume(hu, ct.affine, "HU")


def no_bone(ct: Volume) -> Volume:
    """The true CT with soft tissue (that of the 4 classes) for all that is denser: how much is owed to bone alone.

    Args:
        ct: [z, y, x] the true CT, HU.
    """
    soft = np.float32(FOUR_CLASS_HU["soft"])
    return Volume(np.where(ct.array > SOFT_HU[1], soft, ct.array.astype(np.float32)), ct.affine, "HU")


BASELINES: dict[str, Callable[[Volume], Volume]] = {
    "water": water,
    "body_mean": body_mean,
    "soft_mean": soft_mean,
    "four_class": four_class,
}


def _filled(ct: Volume, value: float) -> Volume:
    return Volume(np.where(body_mask(ct), np.float32(value), np.float32(HU_AIR)), ct.affine, "HU")
