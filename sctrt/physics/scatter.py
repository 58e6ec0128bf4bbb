"""The broad shape of scattered coincidences: a stand-in for a scatter simulation, without tails outside the body."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .geometry import TofGeometry
from .smoothing import smooth_axis

# Standard deviations of the blur. Chosen for a smooth shape without the body's detail, not fitted to a scanner.
RADIAL_SIGMA_MM = 80.0
AXIAL_SIGMA_MM = 50.0
TOF_SIGMA_MM = 70.0
COARSENING = 4  # the shape is computed on every fourth radial sample and slice


def scatter_shape(geometry: TofGeometry, unattenuated: Tensor, attenuation: Tensor) -> Tensor:
    """Blurs the coincidences that attenuation removes; most of them were scattered, not absorbed.

    Args:
        geometry: of the data.
        unattenuated: [V, S, T, Z] projections of the activity.
        attenuation: [V, S, 1, Z] factors.

    Returns:
        [V, S, T, Z] in the unit of `unattenuated`; its scale means nothing.
    """
    removed = unattenuated * (1 - attenuation)
    n_views, n_radial, n_tof, n_z = removed.shape
    planes = removed.permute(0, 2, 1, 3).reshape(n_views * n_tof, 1, n_radial, n_z)
    coarse = F.avg_pool2d(planes, COARSENING, ceil_mode=True)
    size = coarse.shape[2:]
    coarse = coarse.view(n_views, n_tof, *size)
    coarse = smooth_axis(coarse, RADIAL_SIGMA_MM / (geometry.radial_mm * COARSENING), 2)
    coarse = smooth_axis(coarse, AXIAL_SIGMA_MM / (geometry.z_mm * COARSENING), 3)
    coarse = smooth_axis(coarse, TOF_SIGMA_MM / geometry.tof_bin_mm, 1)
    coarse = coarse.reshape(n_views * n_tof, 1, *size)
    shape = F.interpolate(coarse, size=(n_radial, n_z), mode="bilinear", align_corners=False)
    return shape.view(n_views, n_tof, n_radial, n_z).permute(0, 2, 1, 3).contiguous()
