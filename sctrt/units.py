"""Hounsfield units: what they mean, and how they map to the network's units; and widths of Gaussians."""

from __future__ import annotations

import math

HU_AIR = -1000.0
# Tissue classes of a CT, wherever one is measured or summed up.
LUNG_HU = (-950.0, -500.0)
FAT_HU = (-150.0, -30.0)
SOFT_HU = (-30.0, 150.0)
BONE_ABOVE = 200.0  # HU
HU_MIN, HU_MAX = -1024.0, 2976.0  # mapped to -1 and 1; source: arXiv 2504.07450
HU_SCALE = (HU_MAX - HU_MIN) / 2  # HU a network unit
HU_OFFSET = (HU_MAX + HU_MIN) / 2  # HU at network 0
SIGMA_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))


def hu_to_network(hu):
    """Any array of HU -> [-1, 1], clipped."""
    return ((hu - HU_OFFSET) / HU_SCALE).clip(-1, 1)


def network_to_hu(value):
    """Any array in network units -> HU."""
    return value * HU_SCALE + HU_OFFSET
