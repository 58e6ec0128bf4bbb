"""Measures a synthetic CT against the true one and against trivial baselines; needs no torch."""

from .baselines import BASELINES, four_class, soft_mean, water
from .case import Case, evaluate
from .metrics import Metrics, body_mask, compare
from .report import PHANTOM_NOTE, markdown, table

__all__ = [
    "BASELINES",
    "PHANTOM_NOTE",
    "Case",
    "Metrics",
    "body_mask",
    "compare",
    "evaluate",
    "four_class",
    "markdown",
    "soft_mean",
    "table",
    "water",
]
