"""Measures a synthetic CT against the true one and against trivial baselines; needs no torch."""

from .baselines import BASELINES, four_class, soft_mean, water
from .metrics import Metrics, body_mask, compare
from .report import PHANTOM_NOTE, markdown, table

__all__ = [
    "BASELINES",
    "PHANTOM_NOTE",
    "Metrics",
    "body_mask",
    "compare",
    "four_class",
    "markdown",
    "soft_mean",
    "table",
    "water",
]
