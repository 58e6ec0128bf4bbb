"""A 3D image with its place in the patient and its unit; it knows no file format."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError

# |determinant| of the 3x3 part below this share of the product of its column lengths means that two axes coincide.
MIN_AXIS_INDEPENDENCE = 1e-3
MIN_VOXEL_MM = 1e-6
MAX_AFFINE_MM = 1e6  # a kilometre from the scanner's isocentre: the header is damaged
MAX_SAMPLE = float(np.finfo(np.float32).max)  # files, kernels and networks take float32


@dataclass(frozen=True, eq=False)
class Volume:
    """One scalar image on a regular grid.

    Args:
        array: [z, y, x] samples; any real dtype.
        affine: [4, 4] maps voxel index (x, y, z, 1) to LPS world coordinates in mm (DICOM's axes:
            x to the patient's left, y to the back, z to the head).
        unit: of the samples: "HU", "1/cm", "Bq/ml", "SUV", "1" or "arbitrary".

    Raises:
        VolumeError: the array is not three-dimensional or empty, or the affine is not a finite,
            invertible [4, 4] matrix.
    """

    array: NDArray
    affine: NDArray[np.float64]
    unit: str = "arbitrary"

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 3:
            raise VolumeError(
                f"expected a three-dimensional volume [z, y, x], got {array.ndim}D of shape {array.shape}; "
                "pass one static frame (select it from a dynamic series first)"
            )
        if array.size == 0:
            raise VolumeError(f"expected a volume with voxels, got shape {array.shape}; check how it was cropped")
        if array.dtype.kind not in "iuf":
            raise VolumeError(
                f"expected integer or floating-point samples, got {array.dtype}; "
                "convert them first (a mask with .astype('uint8'))"
            )
        try:
            affine = np.array(self.affine, dtype=np.float64)  # a copy: the caller's may change, the volume's place not
        except (TypeError, ValueError):
            raise VolumeError(
                f"expected a [4, 4] affine of real numbers, got {self.affine!r}; pass voxel-to-LPS in mm"
            ) from None
        check_affine(affine)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) number of voxels."""
        nz, ny, nx = self.array.shape
        return nz, ny, nx

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) voxel size [mm]."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[2]), float(lengths[1]), float(lengths[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a NIfTI file (.nii or .nii.gz), whole or not at all."""
        from . import nifti

        nifti.save(self, path)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuses an affine that does not place voxels in space.

    Args:
        affine: [4, 4], mm.

    Raises:
        VolumeError: wrong shape, not finite, beyond a kilometre, last row not (0, 0, 0, 1), or (nearly) singular.
    """
    mend = "mend the file's sform/qform (for example by converting it from DICOM again)"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(f"expected a finite [4, 4] affine, got {affine.tolist()}; {mend}")
    if np.abs(affine).max() > MAX_AFFINE_MM:
        raise VolumeError(f"expected an affine in mm, got entries beyond a kilometre: {affine.tolist()}; {mend}")
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise VolumeError(f"expected an affine whose last row is 0, 0, 0, 1, got {affine.tolist()}; {mend}")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3]))
    if lengths.min() < MIN_VOXEL_MM or volume < MIN_AXIS_INDEPENDENCE * lengths.prod():
        raise VolumeError(
            f"expected an affine whose three axes span space, got the singular matrix {affine.tolist()}; {mend}"
        )


def beyond_float32() -> VolumeError:
    """What is said of samples beyond `MAX_SAMPLE`."""
    return VolumeError(f"expected samples within float32 (up to {MAX_SAMPLE:.2g}), got larger ones; rescale them first")
