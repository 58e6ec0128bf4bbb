"""Tells the scanner's table and bedding in a true CT from the body's other parts.

Note [Table]: no PET shows the table, and its attenuation is not the synthetic CT's task (PET/MR adds a hardware map).
On a real abdominal CT, table and air noise made line integrals 10 % wrong on average. So it is left out, on both sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .metrics import BODY_ABOVE, dilate

HALF_THICKNESS_MM = 12.0  # arms and legs are thicker than twice that, shells, sheets and straps are not


def table_and_parts(
    ct: NDArray[np.float32],  # [z, y, x] HU
    body: NDArray[np.bool_],  # [z, y, x]
    spacing: tuple[float, float, float],  # (z, y, x) [mm]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What lies outside the body above -300 HU: [z, y, x] of the thin, a voxel wider, and of the thick (arms, legs)."""
    outside = (ct > BODY_ABOVE) & ~body
    parts = np.zeros_like(outside)
    if not outside.any():
        return outside, parts
    deep = np.asarray(ndimage.distance_transform_edt(outside, sampling=spacing)) > HALF_THICKNESS_MM
    if deep.any():
        parts = dilate(deep, spacing, HALF_THICKNESS_MM + max(spacing)) & ~body
    # Beside the skin lie its own partial volumes.
    return ndimage.binary_dilation(outside & ~parts) & ~parts & ~ndimage.binary_dilation(body), parts
