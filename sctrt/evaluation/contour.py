"""How far the synthetic body's surface lies from the true one's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage


class ContourErrors(BaseModel):
    """Distances [mm] of each surface's voxels to the other surface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean_mm: float  # over both surfaces
    p95_mm: float
    max_mm: float  # the Hausdorff distance
    bias_mm: float  # mean over the synthetic surface, positive outside the true body: how much wider it is
    dice: float  # of the two bodies


def contour_errors(
    sct_body: NDArray[np.bool_],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    known: NDArray[np.bool_] | None = None,
) -> ContourErrors | None:
    """Compares two bodies; a cut by the edge of what is known is no surface. None where a body has no surface.

    Args:
        sct_body: [z, y, x].
        body: [z, y, x] of the true CT.
        spacing: (z, y, x) [mm].
        known: [z, y, x], where the true CT reaches; None: everywhere.
    """
    box = _box(sct_body | body)
    one, other = sct_body[box], body[box]
    within = True if known is None else ndimage.binary_erosion(known, border_value=1)[box]
    # The box cuts nothing but air, except at the volume's edge, which continues on the other side of it.
    surfaces = [_surface(mask) & within for mask in (one, other)]
    if not all(surface.any() for surface in surfaces):
        return None
    to_other, to_one = (_distance(surface, spacing) for surface in reversed(surfaces))
    from_one = to_other[surfaces[0]]
    both = np.concatenate([from_one, to_one[surfaces[1]]])
    signs = np.where(other[surfaces[0]], -1.0, 1.0)
    return ContourErrors(
        mean_mm=float(both.mean()),
        p95_mm=float(np.percentile(both, 95)),
        max_mm=float(both.max()),
        bias_mm=float((from_one * signs).mean()),
        dice=2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum())),
    )


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Of a mask, with a voxel of air around it where there is one."""
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if any(span.size == 0 for span in spans):
        return (slice(None),) * 3
    return tuple(slice(max(int(span[0]) - 1, 0), int(span[-1]) + 2) for span in spans)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def _distance(surface: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=spacing))
