"""Refuses volumes that cannot be a PET of a person, before any work is spent on them; it reads no files."""

from __future__ import annotations

import numpy as np

from .errors import VolumeError
from .volume import MAX_SAMPLE, Volume, beyond_float32

MIN_VOXELS_PER_AXIS = 8
# Human PET scanners reconstruct 1 to 6 mm voxels; the range leaves room for resampled and thick-slice images.
MIN_VOXEL_MM, MAX_VOXEL_MM = 0.3, 20.0
MIN_EXTENT_MM = 30.0  # smaller than any part of an adult that is scanned
# Longer than any scanner's bed. Memory grows with mm cubed: a header ten times too large asks for 1000 times of it.
MAX_EXTENT_MM = 3000.0
NOT_PET_UNITS = ("HU", "1/cm")
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0  # outside them lie metal, ringing and hot spots
# Reconstruction noise and ringing reach a small share of the uptake; a CT's air (-1000 HU) exceeds all but dense bone.
MAX_NEGATIVE_RATIO = 0.5
LOOKS_LIKE_HU = -500.0  # a value below this in a mostly negative image is lung or air in HU
MAX_CT_MIN = -200.0  # HU; every CT that holds more than organs has air, lung or fat below


def check_pet(volume: Volume) -> None:
    """Refuses what is clearly no three-dimensional PET image of a person.

    Args:
        volume: [z, y, x], any unit of activity.

    Raises:
        VolumeError: too few voxels along an axis, too few or too many mm, voxels of an unlikely size, non-finite,
            constant or mostly negative samples, ones beyond float32, or a unit of CT.
    """
    if volume.unit in NOT_PET_UNITS:
        raise VolumeError(f"expected a PET volume, got one in {volume.unit}; pass the PET, not the CT or mu-map")
    _check_grid(volume)
    _check_samples(volume)


def check_ct(volume: Volume, name: str = "CT") -> None:
    """Refuses what is clearly no CT in Hounsfield units.

    Args:
        volume: [z, y, x] HU.
        name: of the volume, for the message.

    Raises:
        VolumeError: another unit, non-finite samples, or none as low as air, lung or fat.
    """
    if volume.unit != "HU":
        raise VolumeError(
            f"expected the {name} in HU, got the unit {volume.unit!r}; pass Volume(..., unit='HU') if it is one"
        )
    if not np.isfinite(volume.array).all():
        raise VolumeError(f"expected finite HU, got NaN or infinity in the {name}; mend or crop it")
    lowest, highest = float(volume.array.min()), float(volume.array.max())
    if lowest > MAX_CT_MIN:
        hint = "this looks like a mu-map or PET" if highest < 1 else "is it stored with an offset of 1000 or 1024?"
        raise VolumeError(
            f"expected the {name} in HU, with air near -1000, got {lowest:g} to {highest:g}; {hint}; "
            "pass a CT in Hounsfield units"
        )


def check_labels(volume: Volume, name: str) -> None:
    """Refuses what is clearly no label image.

    Args:
        volume: [z, y, x].
        name: of the volume, for the message.

    Raises:
        VolumeError: samples that are not whole, or negative.
    """
    array = volume.array
    if not (np.rint(array) == array).all() or array.min() < 0:  # also refuses NaN
        raise VolumeError(
            f"expected whole numbers, 0 or more, as {name}, got others; pass a label image, not a PET or CT"
        )


def _check_grid(volume: Volume) -> None:
    for axis, voxels, size in zip("zyx", volume.shape, volume.spacing, strict=True):
        if voxels == 1:
            raise VolumeError(
                f"expected a PET volume, got a single slice along {axis} {volume.shape}; pass the whole series"
            )
        if voxels < MIN_VOXELS_PER_AXIS:
            raise VolumeError(
                f"expected at least {MIN_VOXELS_PER_AXIS} voxels along each axis, got {voxels} along {axis}; "
                "pass the whole series, uncropped"
            )
        if not MIN_VOXEL_MM <= size <= MAX_VOXEL_MM:
            raise VolumeError(
                f"expected voxels of {MIN_VOXEL_MM} to {MAX_VOXEL_MM} mm, got {size:.4g} mm along {axis}; "
                "check the affine, it must be in mm"
            )
        if voxels * size < MIN_EXTENT_MM:
            raise VolumeError(
                f"expected at least {MIN_EXTENT_MM} mm along each axis, got {voxels * size:.4g} mm along {axis}; "
                "pass the whole field of view of a human scan, and check that the affine is in mm"
            )
        if voxels * size > MAX_EXTENT_MM:
            raise VolumeError(
                f"expected at most {MAX_EXTENT_MM} mm along each axis, got {voxels * size:.4g} mm along {axis}; "
                "check the affine, it must be in mm"
            )


def _check_samples(volume: Volume) -> None:
    array = volume.array
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VolumeError(
            f"expected finite samples, got {bad:,} of {array.size:,} that are NaN or infinite; "
            "find where they come from, or set them to 0 (numpy.nan_to_num) if they lie outside the field of view"
        )
    lowest, highest = float(array.min()), float(array.max())
    if max(-lowest, highest) > MAX_SAMPLE:
        raise beyond_float32()
    if lowest == highest:
        name = "all zero" if lowest == 0 else f"all {lowest:g}"
        raise VolumeError(f"expected a PET volume, got one that is {name}; check how it was exported")
    low, high = np.percentile(array, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if -low > MAX_NEGATIVE_RATIO * max(high, 0.0):
        hint = "this looks like a CT; pass the PET" if lowest < LOOKS_LIKE_HU else "check its scaling"
        raise VolumeError(f"expected PET samples, mostly above 0, got {lowest:g} to {highest:g}; {hint}")
