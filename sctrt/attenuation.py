"""CT numbers to linear attenuation coefficients at 511 keV; NumPy only: a mu-map needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .units import HU_AIR

MU_WATER = 0.096  # 1/cm at 511 keV; Carney et al. 2006
MU_PER_HU_BELOW = MU_WATER / 1000  # 1/cm per HU: below the break point tissue is a mixture of air and water

# kVp -> (a [1/cm per HU], b [1/cm], break point [HU]): above the break point mu = a (HU + 1000) + b.
# Carney JPJ, Townsend DW, Rappoport V, Bendriem B. Method for transforming CT images for attenuation correction
# in PET/CT imaging. Med Phys 2006;33(4):976-983.
CARNEY_2006: dict[int, tuple[float, float, float]] = {
    80: (3.64e-5, 6.26e-2, 50.0),
    100: (4.43e-5, 5.44e-2, 52.0),
    110: (4.92e-5, 4.88e-2, 43.0),
    120: (5.10e-5, 4.71e-2, 47.0),
    130: (5.51e-5, 4.24e-2, 37.0),
    140: (5.64e-5, 4.08e-2, 30.0),
}


def hu_to_mu(hu: ArrayLike, kvp: int = 120) -> NDArray[np.floating]:
    """Linear attenuation coefficient at 511 keV of a CT number, by Carney's two straight lines.

    Args:
        hu: CT numbers [HU], any shape; integers are computed in float32, floating types in their own.
        kvp: tube voltage of the CT [kV], a key of `CARNEY_2006`. A synthetic CT has that of the CTs it was trained on.

    Returns:
        mu [1/cm], same shape, never negative.

    Raises:
        ValueError: Carney 2006 has no line for this tube voltage.

    Source:
        Carney et al., Med Phys 2006;33(4):976-983.
    """
    if kvp not in CARNEY_2006:
        known = ", ".join(str(voltage) for voltage in CARNEY_2006)
        raise ValueError(
            f"expected a tube voltage of {known} kVp, got {kvp}; pass the nearest one (the CT's KVP, DICOM (0018,0060))"
        )
    slope, offset, break_point = CARNEY_2006[kvp]
    hu = np.asarray(hu)
    if hu.dtype.kind != "f":
        hu = hu.astype(np.float32)
    above_air = hu - HU_AIR
    mu = np.where(hu < break_point, MU_PER_HU_BELOW * above_air, slope * above_air + offset)
    return np.maximum(mu, 0)
