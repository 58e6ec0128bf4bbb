"""What training makes small: errors of voxels, of attenuation, and of its line integrals.

The line integrals of a slice are what the PET sees of a CT. A CT that is a little too wide or too dense everywhere has
a small error in each voxel and a large one along each line, and the corrected PET follows the lines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attenuation import DEFAULT_KVP, MU_PER_HU_BELOW, MU_WATER, line
from ..units import HU_AIR, network_to_hu
from .config import TrainingConfig

BONE_HU = 150.0  # above: weighted as bone
AIR_HU = -950.0  # below: weighted as air (a higher threshold would hit the lung)
CM_PER_MM = 0.1


def reconstruction_loss(predicted: Tensor, ct: Tensor, config: TrainingConfig, squared: bool = False) -> Tensor:
    """Weighted absolute error of voxels, or ten times the squared one; and of mu and its line integrals, if asked for.

    Args:
        predicted: [N, 1, H, W], network units.
        ct: [N, 1, H, W], network units.
        config: the recipe.
        squared: instead of absolute: absolute error alone tends to the tissue that is most frequent.
    """
    weight = tissue_weight(ct, config)
    error = predicted - ct
    loss = (weight * (10 * error.square() if squared else error.abs())).sum() / weight.sum()
    if config.mu_weight:
        loss = loss + config.mu_weight * (_mu(predicted) - _mu(ct)).abs().mean() / MU_WATER
    if config.line_weight:
        lines = line_errors(predicted, ct, config.spacing_mm)
        loss = loss + config.line_weight * sum(along.abs().mean() for along in lines) / len(lines)
    return loss


def tissue_weight(ct: Tensor, config: TrainingConfig) -> Tensor:
    """Weight of each pixel of a CT in network units: bone counts more, air less."""
    hu = network_to_hu(ct)
    weight = torch.ones_like(ct)
    weight[hu < AIR_HU] = config.air_weight
    weight[hu > BONE_HU] = config.bone_weight
    return weight


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
