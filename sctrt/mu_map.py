"""An attenuation map of a CT: HU to mu by a named convention, smoothed as PET sees it, hardware added."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from .attenuation import hu_to_mu
from .errors import VolumeError
from .preprocess import Grid, to_grid
from .units import SIGMA_PER_FWHM
from .volume import Volume

MAX_MU = 2.0  # 1/cm at 511 keV; lead has 1.8, and the same in 1/m or as HU would be far larger
PLASTIC_MU = 0.09  # 1/cm at 511 keV, of coils' housings; a map in 1/mm has a tenth of it


def mu_map(
    ct: Volume,
    *,
    convention: str = "carney",
    kvp: int | None = None,
    fwhm_mm: float = 0.0,
    hardware: Volume | None = None,
) -> Volume:
    """The attenuation map of a CT at 511 keV, on the CT's grid.

    Args:
        ct: [z, y, x] HU.
        convention: see `attenuation.CONVENTIONS`.
        kvp: tube voltage of the CT [kV]; None is 120 where the convention has voltages.
        fwhm_mm: of the Gaussian that brings the map to the PET's resolution; it acts on mu, since mu, not HU, is what
            adds up along a line. 0 leaves the map as sharp as the CT.
        hardware: [z, y, x] mu [1/cm] of table and coils, on any grid; 0 where it does not reach. It is added after
            smoothing.

    Returns:
        [z, y, x] float32, unit "1/cm", never negative.

    Raises:
        ValueError: an unknown convention or tube voltage, or a negative width.
        VolumeError: the hardware map cannot be in 1/cm, or lies elsewhere.
    """
    if not 0 <= fwhm_mm < math.inf:
        raise ValueError(f"expected a width of 0 mm or more, got {fwhm_mm}; pass the PET's FWHM in mm")
    mu = hu_to_mu(ct.array, kvp, convention).astype(np.float32)
    if fwhm_mm > 0:
        sigma = [fwhm_mm * SIGMA_PER_FWHM / step for step in ct.spacing]
        mu = ndimage.gaussian_filter(mu, sigma, mode="nearest")
    if hardware is not None:
        _check_hardware(hardware)
        grid = Grid(ct.affine, ct.shape)
        if not to_grid(Volume(np.ones(hardware.shape, np.float32), hardware.affine), grid, 0.0).any():
            raise VolumeError(
                "expected a hardware map that reaches the CT, got one that lies elsewhere; check its affine: it must "
                "place table and coils where they were"
            )
        mu = mu + to_grid(hardware, grid, 0.0)
    return Volume(mu, ct.affine, "1/cm")


def _check_hardware(hardware: Volume) -> None:
    lowest, highest = float(hardware.array.min()), float(hardware.array.max())
    if not (0 <= lowest and highest <= MAX_MU):  # also refuses NaN
        raise VolumeError(
            f"expected a hardware map in 1/cm, 0 to {MAX_MU:g}, got {lowest:g} to {highest:g}; "
            "convert it (1/m: divide by 100, 1/mm: multiply by 10, HU: sctrt mu-map)"
        )
