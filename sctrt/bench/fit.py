"""How a cost grows: the exponent of a power law, and a straight line, fitted to a few points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .report import Exponent

CONFIDENCE = 0.95
LEAST_POINTS = 3  # for a spread


def exponent(x: Sequence[float], y: Sequence[float]) -> Exponent:
    """Least squares on logarithms, with the interval that Student's distribution gives for so few points.

    Args:
        x: positive, at least two of them different.
        y: positive.

    Raises:
        ValueError: otherwise.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    if a.shape != b.shape or a.ndim != 1 or len(set(a.tolist())) < 2 or not ((a > 0).all() and (b > 0).all()):
        raise ValueError(f"expected two different positive x or more, and a positive y for each, got {x} and {y}")
    log_x, log_y = np.log(a) - np.log(a).mean(), np.log(b) - np.log(b).mean()
    value = float(log_x @ log_y / (log_x @ log_x))
    if len(a) < LEAST_POINTS:
        return Exponent(value=value)
    residual = log_y - value * log_x
    error = np.sqrt(residual @ residual / (len(a) - 2) / (log_x @ log_x))  # of the slope
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(a) - 2) * error)
    return Exponent(value=value, low=value - half, high=value + half)


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(y at x = 0, slope) by least squares; ValueError with fewer than two different x."""
    if len(set(x)) < 2 or len(x) != len(y):
        raise ValueError(f"expected two different x or more, and a y for each, got {x} and {y}")
    line = stats.linregress(x, y)
    return float(line.intercept), float(line.slope)
