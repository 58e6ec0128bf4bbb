"""SSIM and MS-SSIM in three dimensions, averaged over a mask; NumPy arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import downscale_local_mean

from ..units import HU_MAX, HU_MIN

# Wang, Bovik, Sheikh, Simoncelli, IEEE Trans Image Process 2004;13(4):600-612: Gaussian window of 11 voxels a side
# (sigma 1.5, cut at 3.5 sigma), K1, K2. The range is the network's, 4000 HU; what lies outside is clipped.
SIGMA, TRUNCATE, RADIUS = 1.5, 3.5, 5
K1, K2 = 0.01, 0.03
# Wang, Simoncelli, Bovik, Asilomar 2003: exponents of the scales, finest first.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MIN_VOXELS = 2 * RADIUS + 1  # along each axis of the coarsest scale: one window

Maps = tuple[NDArray[np.float32], NDArray[np.float32]]


def similarity(
    sct: NDArray[np.float32],
    ct: NDArray[np.float32],
    masks: dict[str, NDArray[np.bool_]],
) -> dict[str, tuple[float, float, int]]:
    """SSIM, MS-SSIM and its number of scales, in each of several masks.

    The maps are made of the whole volumes, so a mask sees what lies around it. A volume too small for five scales gets
    fewer, their exponents scaled to sum to one; a negative contrast-structure mean counts as 0.

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU.
        masks: [z, y, x] each, not empty.
    """
    weights = _weights(sct.shape)
    products = dict.fromkeys(masks, 1.0)
    ssim: dict[str, float] = {}
    shrunk = {name: mask.astype(np.float32) for name, mask in masks.items()}
    for scale, (luminance, structure) in enumerate(scale_maps(_unit(sct), _unit(ct), len(weights))):
        both = luminance * structure
        for name, mask in shrunk.items():
            inside = mask >= 0.5 if (mask >= 0.5).any() else mask > 0
            if scale == 0:
                ssim[name] = float(both[inside].mean(dtype=np.float64))
            map_ = both if scale == len(weights) - 1 else structure
            products[name] *= max(float(map_[inside].mean(dtype=np.float64)), 0.0) ** weights[scale]
        shrunk = {name: _half(mask) for name, mask in shrunk.items()}
    return {name: (ssim[name], products[name], len(weights)) for name in masks}


def scale_maps(one: NDArray[np.float32], other: NDArray[np.float32], scales: int) -> Iterator[Maps]:
    """Maps of luminance and of contrast and structure, finest scale first; SSIM is their product.

    Args:
        one: [z, y, x] in units of the range.
        other: [z, y, x] in units of the range.
        scales: each has half the voxels of the one before along each axis.
    """
    for scale in range(scales):
        if scale:
            one, other = _half(one), _half(other)
        mean_one, mean_other = _blur(one), _blur(other)
        variance = _blur(one * one) - mean_one**2 + _blur(other * other) - mean_other**2
        covariance = _blur(one * other) - mean_one * mean_other
        luminance = (2 * mean_one * mean_other + K1**2) / (mean_one**2 + mean_other**2 + K1**2)
        structure = (2 * covariance + K2**2) / (variance + K2**2)
        yield luminance.clip(max=1), structure.clip(max=1)  # rounding apart, they never exceed it


def _weights(shape: tuple[int, ...]) -> list[float]:
    scales = 1
    while scales < len(WEIGHTS) and min(shape) >> scales >= MIN_VOXELS:
        scales += 1
    used = WEIGHTS[:scales]
    return [weight / sum(used) for weight in used]


def _unit(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((hu.clip(HU_MIN, HU_MAX) - HU_MIN) / (HU_MAX - HU_MIN)).astype(np.float32)


def _blur(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return ndimage.gaussian_filter(array, SIGMA, truncate=TRUNCATE)


def _half(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of two voxels a side; an odd last one is dropped."""
    even = array[tuple(slice(0, max(n - n % 2, 1)) for n in array.shape)]
    return downscale_local_mean(even, tuple(min(2, n) for n in even.shape)).astype(np.float32)
