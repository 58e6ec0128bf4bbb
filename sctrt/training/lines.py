"""Line integrals of a slice's attenuation: what the PET sees of a CT.

A CT that is a little too wide or too dense everywhere has a small error in each voxel and a large one along each line,
and the corrected PET follows the lines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attenuation import DEFAULT_KVP, MU_PER_HU_BELOW, line
from ..units import HU_AIR, network_to_hu

CM_PER_MM = 0.1


def line_errors(predicted: Tensor, ct: Tensor, spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Errors of the line integrals along columns and rows of slices: logarithms of attenuation factors.

    Args:
        predicted: [N, 1, H, W], network units.
        ct: [N, 1, H, W], network units.
        spacing_mm: voxel size.

    Returns:
        Predicted minus true integral along columns [N, 1, W] and along rows [N, 1, H]; without a unit.
    """
    error = (_mu(predicted) - _mu(ct)) * (spacing_mm * CM_PER_MM)
    return error.sum(dim=2), error.sum(dim=3)


def _mu(network: Tensor) -> Tensor:
    """Attenuation [1/cm] of network units, Carney 2006 at the default tube voltage; see `attenuation.hu_to_mu`."""
    slope, offset, break_point = line("carney", DEFAULT_KVP)
    hu = network_to_hu(network)
    above_air = hu - HU_AIR
    return torch.where(hu < break_point, MU_PER_HU_BELOW * above_air, slope * above_air + offset).clamp_min(0)
