"""Which slices of which plane are run together; pure arithmetic, no arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
SIZE_STEP = 32  # pixels; slices are padded to multiples of it for engines of fixed size, so that patients share them


def slice_axis(plane: Plane) -> int:
    """The axis of [z, y, x] along which the slices of a plane follow each other."""
    return PLANES.index(plane)


@dataclass(frozen=True)
class Batch:
    """Consecutive slices of one plane, padded to `height` x `width`."""

    plane: Plane
    start: int
    count: int
    height: int
    width: int


def padded_size(shape: tuple[int, int, int], plane: Plane, multiple: int) -> tuple[int, int]:
    """(height, width) of a plane's slices, rounded up to multiples of `multiple`."""
    height, width = (n for axis, n in enumerate(shape) if axis != slice_axis(plane))
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def batches(shape: tuple[int, int, int], plane: Plane, multiple: int, max_pixels: int) -> Iterator[Batch]:
    """Splits all slices of a plane into batches of at most `max_pixels` pixels (at least one slice).

    Args:
        shape: (z, y, x) of the volume.
        multiple: the network's down-sampling factor.
    """
    height, width = padded_size(shape, plane, multiple)
    slices = shape[slice_axis(plane)]
    count = max(1, max_pixels // (height * width))
    for start in range(0, slices, count):
        yield Batch(plane, start, min(count, slices - start), height, width)
