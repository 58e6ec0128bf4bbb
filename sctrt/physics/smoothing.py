"""Gaussian filters on tensors, zero outside."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..units import SIGMA_PER_FWHM

KERNEL_SIGMAS = 3  # the kernel ends here
NEGLIGIBLE_SIGMA = 1e-3  # samples; a narrower kernel is the identity


def smooth_axis(values: Tensor, sigma: float, axis: int) -> Tensor:
    """Convolves one axis of any tensor with a Gaussian of standard deviation `sigma` [samples]."""
    if sigma < NEGLIGIBLE_SIGMA:
        return values
    radius = math.ceil(KERNEL_SIGMAS * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    lines = values.movedim(axis, -1)
    smoothed = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel[None, None], padding=radius)
    return smoothed.view(lines.shape).movedim(-1, axis)


def smooth_image(image: Tensor, fwhm_mm: float, spacing: tuple[float, float, float]) -> Tensor:
    """Filters an image [z, y, x] of voxel size `spacing` (z, y, x) [mm] with an isotropic Gaussian."""
    for axis, step in enumerate(spacing):
        image = smooth_axis(image, fwhm_mm * SIGMA_PER_FWHM / step, axis)
    return image.contiguous()
