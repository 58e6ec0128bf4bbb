"""Hounsfield units <-> the network's units."""

from __future__ import annotations

HU_AIR = -1000.0
HU_MIN, HU_MAX = -1024.0, 2976.0  # mapped to -1 and 1; source: arXiv 2504.07450
HU_SCALE = (HU_MAX - HU_MIN) / 2  # HU a network unit
HU_OFFSET = (HU_MAX + HU_MIN) / 2  # HU at network 0


def hu_to_network(hu):
    """Any array of HU -> [-1, 1], clipped."""
    return ((hu - HU_OFFSET) / HU_SCALE).clip(-1, 1)


def network_to_hu(value):
    """Any array in network units -> HU."""
    return value * HU_SCALE + HU_OFFSET
