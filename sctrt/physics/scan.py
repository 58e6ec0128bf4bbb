"""What a simulated scan and its reconstruction are told; no tensors here."""

from __future__ import annotations

from dataclasses import dataclass

from ..attenuation import DEFAULT_KVP
from .geometry import DEFAULT_TOF_FWHM_PS

COUNTS_PER_SLICE = 5e5  # trues: coincidences that are neither scattered nor random
PSF_FWHM_MM = 4.5  # positron range, non-collinearity and crystals; NEMA at 1 cm: SIGNA PET/MR 4.46 (Hsu 2017)
POST_FILTER_FWHM_MM = 5.0  # a usual choice for uncorrected images


@dataclass(frozen=True)
class Scan:
    """One scan and its reconstruction.

    Args:
        tof_fwhm_ps: coincidence timing resolution; None for a scanner without time of flight.
        n_views: angles over 180 degrees.
        n_iterations: OSEM iterations.
        n_subsets: OSEM subsets.
        counts_per_slice: mean number of true coincidences of a slice.
        seed: of the noise; None for none: then all that differs is due to the maps.
        kvp: tube voltage of all CTs, for their attenuation maps.
        psf_mm: FWHM of the scanner's blur; 0 for an activity that is a PET, and thus blurred already.
        post_filter_mm: FWHM of a Gaussian filter of all images.
    """

    tof_fwhm_ps: float | None = DEFAULT_TOF_FWHM_PS
    n_views: int = 48
    n_iterations: int = 2
    n_subsets: int = 12
    counts_per_slice: float = COUNTS_PER_SLICE
    seed: int | None = None
    kvp: int = DEFAULT_KVP
    psf_mm: float = PSF_FWHM_MM
    post_filter_mm: float = POST_FILTER_FWHM_MM


DEFAULT_SCAN = Scan()
