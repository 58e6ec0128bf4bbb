"""Which slices of which plane are run together; pure arithmetic, no arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
SIZE_STEP = 32  # pixels; slices are padded to multiples of it for engines of fixed size, so that patients share them


def slice_axis(plane: Plane) -> int:
    """The axis of [z, y, x] along which the slices of a plane follow each other."""
    return PLANES.index(plane)


@dataclass(frozen=True)
class Batch:
    """Consecutive slices of one plane."""

    plane: Plane
    start: int
    count: int


def padded_size(shape: tuple[int, int, int], plane: Plane, multiple: int) -> tuple[int, int]:
    """(height, width) of a plane's slices, rounded up to multiples of `multiple`."""
    height, width = (n for axis, n in enumerate(shape) if axis != slice_axis(plane))
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def batches(plane: Plane, occupied: Sequence[bool], count: int, first: int = 0) -> Iterator[Batch]:
    """Splits the occupied slices of a plane into batches of at most `count`.

    Args:
        occupied: whether a slice is to be run, for each along the plane's axis.
        first: slices before this one are left out.
    """
    wanted = (i for i in range(first, len(occupied)) if occupied[i])
    for _, run in groupby(enumerate(wanted), lambda pair: pair[1] - pair[0]):  # consecutive ones differ alike
        slices = [i for _, i in run]
        for start in range(slices[0], slices[-1] + 1, count):
            yield Batch(plane, start, min(count, slices[-1] + 1 - start))
