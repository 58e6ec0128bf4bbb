"""How far voxels jut out from both neighbours across slices: jagged boundaries as a number.

A volume that was made slice by slice goes back and forth between slices. An edge or a ramp does not: it goes one way.
So what is counted is by how much a voxel exceeds, or falls below, both its neighbours along an axis. Thin structures
and noise do that, too; hence the true CT's number stands beside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

AXES = ("z", "y", "x")


class Jaggedness(BaseModel):
    """Along one axis, where all three voxels lie in the body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic_hu: float  # mean by which a voxel juts out from both neighbours; 0 where it lies between them
    true_hu: float
    synthetic_share: float | None  # of the mean |difference| of neighbours: 0 edges and ramps, 1 back and forth
    true_share: float | None  # None where the volume is constant


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
    (synthetic, one), (true, other) = (_measure(values, axis, inside) for values in (sct, ct))
    return Jaggedness(
        synthetic_hu=synthetic,
        true_hu=true,
        synthetic_share=synthetic / one if one > 0 else None,
        true_share=true / other if other > 0 else None,
    )


def _measure(values: NDArray[np.float32], axis: int, inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean jut and mean |difference| of neighbours [HU], of each three voxels."""
    before, here, after = (_part(values, axis, start)[inside].astype(np.float64) for start in range(3))
    up, down = here - before, here - after
    jut = np.where(up * down > 0, np.minimum(np.abs(up), np.abs(down)), 0)
    return float(jut.mean()), float((np.abs(up).mean() + np.abs(down).mean()) / 2)


def _part(values: NDArray, axis: int, start: int) -> NDArray:
    """All but two slices along an axis, from `start`."""
    return np.moveaxis(values, axis, 0)[start : values.shape[axis] - 2 + start]
