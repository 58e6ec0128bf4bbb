"""The order in which a volume's axes are stored; it moves samples, and never resamples them."""

from __future__ import annotations

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from .volume import Volume


def lps(volume: Volume) -> Volume:
    """The same image with its axes permuted and flipped so that they run most nearly to the left, back and head.

    Args:
        volume: [z, y, x] in any orientation.

    Returns:
        [z, y, x] C-contiguous; voxels lie where they lay.
    """
    orientation = io_orientation(volume.affine)
    affine = volume.affine @ inv_ornt_aff(orientation, volume.array.T.shape)
    array = apply_orientation(volume.array.T, orientation).T
    return Volume(np.ascontiguousarray(array), affine, volume.unit)
