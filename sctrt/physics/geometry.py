"""The sampling of image and sinogram, and the time-of-flight resolution of known scanners; no tensors here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..units import SIGMA_PER_FWHM

SPEED_OF_LIGHT = 0.299792458  # mm/ps

# Coincidence timing resolution, FWHM [ps]; None: the scanner measures no time of flight.
SCANNER_TOF_FWHM_PS: dict[str, float | None] = {
    "SIGNA PET/MR": 390.0,  # Hsu et al., J Nucl Med 2017;58:1511, comparison table
    "Discovery MI": 375.0,  # Hsu et al., J Nucl Med 2017;58:1511 (375.4)
    "Biograph Vision Quadra": 229.0,  # Prenosil et al., J Nucl Med 2022;63:476 (228 to 230)
    "Biograph Vision": 214.0,  # manufacturer's figure
    "Biograph mMR": None,
}

DEFAULT_TOF_FWHM_PS = 385.0  # between SIGNA PET/MR and Discovery MI
DEFAULT_TOF_BIN_PS = 173.3  # 26 mm: less than half of the default's FWHM of 58 mm
TOF_TAIL_SIGMAS = 2.5  # the bins reach this far beyond the field of view; 0.6 % of a Gaussian lies outside


@dataclass(frozen=True)
class TofGeometry:
    """Parallel-beam sampling of a stack of transverse slices; image and sinogram share the centre and the slices.

    Args:
        ny, nx: image size [voxels].
        voxel_mm: in-plane voxel size.
        z_mm: distance of the slices.
        n_views: angles, evenly over 180 degrees.
        n_radial: radial samples; 0 takes nx.
        radial_mm: their distance; 0 takes voxel_mm.
        tof_fwhm_ps: coincidence timing resolution; None projects without time of flight.
        tof_bin_ps: width of a TOF bin, in time difference.

    Raises:
        ValueError: a size, count or resolution is not positive.
    """

    ny: int
    nx: int
    voxel_mm: float
    z_mm: float
    n_views: int = 48
    n_radial: int = 0
    radial_mm: float = 0.0
    tof_fwhm_ps: float | None = DEFAULT_TOF_FWHM_PS
    tof_bin_ps: float = DEFAULT_TOF_BIN_PS

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_radial", self.n_radial or self.nx)
        object.__setattr__(self, "radial_mm", self.radial_mm or self.voxel_mm)
        for name in ("ny", "nx", "voxel_mm", "z_mm", "n_views", "n_radial", "radial_mm", "tof_fwhm_ps", "tof_bin_ps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def n_depth(self) -> int:
        """Samples along a line, voxel_mm apart."""
        return max(self.nx, self.ny)

    @property
    def tof_sigma_mm(self) -> float | None:
        """Standard deviation of the annihilation's place along the line; None without time of flight."""
        return None if self.tof_fwhm_ps is None else self.tof_fwhm_ps * SPEED_OF_LIGHT / 2 * SIGMA_PER_FWHM

    @property
    def tof_bin_mm(self) -> float:
        """Width of a TOF bin along the line."""
        return self.tof_bin_ps * SPEED_OF_LIGHT / 2

    @property
    def n_tof(self) -> int:
        """TOF bins, an odd number with one at the centre; 1 without time of flight."""
        if self.tof_sigma_mm is None:
            return 1
        reach = self.n_radial * self.radial_mm / 2 + TOF_TAIL_SIGMAS * self.tof_sigma_mm
        return 2 * math.ceil(reach / self.tof_bin_mm - 0.5) + 1
