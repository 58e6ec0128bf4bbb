"""CT numbers to linear attenuation coefficients at 511 keV, by named conventions; NumPy only: it needs no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .units import HU_AIR

MU_WATER = 0.096  # 1/cm at 511 keV; Carney et al. 2006
MU_PER_HU_BELOW = MU_WATER / 1000  # 1/cm per HU: below the break point tissue is a mixture of air and water
DEFAULT_KVP = 120

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


class Line(NamedTuple):
    """The upper of a convention's two lines; the lower one, of air and water, is the same in all."""

    slope: float  # 1/cm per HU
    offset: float  # 1/cm, at -1000 HU
    break_point: float  # HU; from here on it holds


def _through(at_zero: float, slope: float, break_point: float) -> Line:
    """A line given by its value at 0 HU [1/cm]."""
    return Line(slope, at_zero + slope * HU_AIR, break_point)


# STIR's src/config/ct_slopes.json at 511 keV, manufacturer GENERIC, and GE by kVp: mu at 0 HU, slope, break point.
STIR = _through(0.096, 5.73e-5, 0.0)
STIR_GE = {
    80: _through(0.0989, 3.84e-5, 50.0),
    100: _through(0.0985, 4.56e-5, 50.0),
    120: _through(0.0982, 5.11e-5, 50.0),
    140: _through(0.0980, 5.60e-5, 50.0),
}
# NiftyPET's nimpa/nipet `hu2mu`: electron densities of water and bone 0.158 and 0.326, mu 0.096 and 0.172 1/cm.
NIFTYPET = _through(MU_WATER, 1e-3 * 0.158 * (0.172 - MU_WATER) / (0.326 - 0.158), 0.0)

# Convention -> tube voltage [kV] -> line. A convention that does not ask for the voltage has one line, under None.
CONVENTIONS: dict[str, dict[int | None, Line]] = {
    "carney": {kvp: Line(*line) for kvp, line in CARNEY_2006.items()},
    "stir": {None: STIR},
    "stir-ge": {**STIR_GE},
    "niftypet": {None: NIFTYPET},
}


def hu_to_mu(hu: ArrayLike, kvp: int | None = None, convention: str = "carney") -> NDArray[np.floating]:
    """Linear attenuation coefficient at 511 keV of a CT number, by two straight lines.

    Args:
        hu: CT numbers [HU], any shape; integers are computed in float32, floating types in their own.
        kvp: tube voltage of the CT [kV]; None is 120 where the convention has voltages. A synthetic CT has that of the
            CTs it was trained on.
        convention: a key of `CONVENTIONS`.

    Returns:
        mu [1/cm], same shape, never negative.

    Raises:
        ValueError: there is no such convention, or it has no line for this tube voltage.

    Source:
        Carney et al., Med Phys 2006;33(4):976-983; the other conventions as noted beside their numbers.
    """
    slope, offset, break_point = line(convention, kvp)
    hu = np.asarray(hu)
    if hu.dtype.kind != "f":
        hu = hu.astype(np.float32)
    above_air = hu - HU_AIR
    mu = np.where(hu < break_point, MU_PER_HU_BELOW * above_air, slope * above_air + offset)
    return np.maximum(mu, 0)


def mu_per_hu(hu: NDArray[np.floating], kvp: int | None = None, convention: str = "carney") -> NDArray[np.floating]:
    """How fast `hu_to_mu` rises at each CT number [1/cm per HU]; 0 below air. Arguments and errors as there."""
    slope, _, break_point = line(convention, kvp)
    return np.select([hu < HU_AIR, hu < break_point], [0.0, MU_PER_HU_BELOW], slope).astype(hu.dtype)


def line(convention: str, kvp: int | None = None) -> Line:
    """The upper line of a convention; arguments and errors as for `hu_to_mu`."""
    if convention not in CONVENTIONS:
        raise ValueError(f"expected a convention of {', '.join(CONVENTIONS)}, got {convention!r}; name one of these")
    lines = CONVENTIONS[convention]
    if None in lines:
        if kvp is not None:
            raise ValueError(
                f"expected no tube voltage, since {convention} has one line for all, got {kvp} kVp; leave it out"
            )
        return lines[None]
    kvp = DEFAULT_KVP if kvp is None else kvp
    if kvp not in lines:
        known = ", ".join(str(voltage) for voltage in lines)
        raise ValueError(
            f"expected a tube voltage of {known} kVp, got {kvp}; pass the nearest one (the CT's KVP, DICOM (0018,0060))"
        )
    return lines[kvp]
