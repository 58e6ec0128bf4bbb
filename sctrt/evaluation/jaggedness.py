"""How much a volume alternates from slice to slice, beside what the true anatomy does: jagged boundaries as a number.

A volume that was made slice by slice has steps between slices. They show in the second difference across slices,
which a straight ramp does not raise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

AXES = ("z", "y", "x")


class Jaggedness(BaseModel):
    """Mean |second difference| across slices along one axis [HU], where all three voxels lie in the body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic_hu: float
    true_hu: float
    ratio: float | None  # above 1: more jagged than the true CT. None where the true one is constant


def jaggedness(
    sct: NDArray[np.float32], ct: NDArray[np.float32], body: NDArray[np.bool_]
) -> dict[str, Jaggedness | None]:
    """By axis; None where the body is less than three voxels thick.

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU.
        body: [z, y, x].
    """
    return {name: _along(axis, sct, ct, body) for axis, name in enumerate(AXES)}


def _along(axis: int, sct: NDArray[np.float32], ct: NDArray[np.float32], body: NDArray[np.bool_]) -> Jaggedness | None:
    if body.shape[axis] < 3:
        return None
    before, here, after = (_part(body, axis, start) for start in range(3))
    inside = before & here & after
    if not inside.any():
        return None
    synthetic, true = (float(np.abs(_second_difference(v, axis)[inside]).mean(dtype=np.float64)) for v in (sct, ct))
    return Jaggedness(synthetic_hu=synthetic, true_hu=true, ratio=synthetic / true if true > 0 else None)


def _second_difference(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return _part(values, axis, 0) - 2 * _part(values, axis, 1) + _part(values, axis, 2)


def _part(values: NDArray, axis: int, start: int) -> NDArray:
    """All but two slices along an axis, from `start`."""
    return np.moveaxis(values, axis, 0)[start : values.shape[axis] - 2 + start]
