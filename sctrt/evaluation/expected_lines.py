"""From the spread of three planes, the error to expect of attenuation factors along lines; beside the true one.

A spread tells how far three guesses lie apart, not how far all of them are off: what they have in common it cannot see.
Whether it is an uncertainty all the same is what is measured here. Lines are those of `lines.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .lines import line_set
from .uncertainty import calibration


class LineDecile(BaseModel):
    """A tenth of the lines, by the error to expect; means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expected_percent: float
    true_percent: float


class ExpectedError(BaseModel):
    """The error to expect of the factor exp(integral of mu), and the true one, absolute, of each line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int
    expected_percent: float  # mean
    true_percent: float  # mean
    rank_correlation: float | None  # Spearman's; None where one of them is constant
    area_sparsification: float  # see `Calibration`, with lines for voxels
    area_ideal: float
    deciles: list[LineDecile]  # least expected first


def expected_from_uncertainty(
    mu_spread: NDArray[np.floating],
    mu_error: NDArray[np.floating],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> dict[str, ExpectedError]:
    """What a volume of uncertainty alone tells: "correlated" and "independent" voxels, from above and from below.

    Errors of one sign all along a line add up as they are, independent ones in quadrature. Real ones lie between, or
    above where they are not seen in the spread. "uniform" is the body's mean everywhere in it, which knows of a line
    nothing but its length: what is to be beaten.

    Args:
        mu_spread: [z, y, x] uncertainty of mu [1/cm], 0 or more, axes in LPS order.
        mu_error: [z, y, x] synthetic minus true [1/cm].
        body: [z, y, x] of the true CT, not empty.
        spacing: (z, y, x) [mm].
    """
    correlated, independent, uniform, errors = [], [], [], []
    mean = np.where(body, mu_spread[body].mean(), 0)
    variance = np.square(mu_spread, dtype=np.float64)
    for lines in line_set(body, spacing):
        errors.append(lines.integrals(mu_error))
        correlated.append(lines.integrals(mu_spread))
        independent.append(np.sqrt(lines.squared().integrals(variance)))
        uniform.append(lines.integrals(mean))
    ways = {"correlated": correlated, "independent": independent, "uniform": uniform}
    return {way: _beside(expected, errors) for way, expected in ways.items()}


def expected_from_planes(
    mu_planes: Sequence[NDArray[np.floating]],
    mu_error: NDArray[np.floating],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> dict[str, ExpectedError]:
    """What the planes' own integrals tell: their "range", and their "sd" (of a sample, n - 1), along each line.

    Args:
        mu_planes: [z, y, x] of each plane alone [1/cm], axes in LPS order.
        mu_error: [z, y, x] of the fused map, synthetic minus true [1/cm].
        body: [z, y, x] of the true CT, not empty.
        spacing: (z, y, x) [mm].
    """
    ranges, deviations, errors = [], [], []
    for lines in line_set(body, spacing):
        logs = np.stack([lines.integrals(mu) for mu in mu_planes])
        ranges.append(np.ptp(logs, axis=0))
        deviations.append(logs.std(axis=0, ddof=1))
        errors.append(lines.integrals(mu_error))
    return {"range": _beside(ranges, errors), "sd": _beside(deviations, errors)}


def _beside(expected: list[NDArray[np.float64]], errors: list[NDArray[np.float64]]) -> ExpectedError:
    """Of logarithms of factors, one array [n] an angle."""
    percent = 100 * np.expm1(np.concatenate(expected))
    true = np.abs(100 * np.expm1(np.concatenate(errors)))
    found = calibration(percent, true)
    return ExpectedError(
        lines=true.size,
        expected_percent=float(percent.mean()),
        true_percent=float(true.mean()),
        rank_correlation=found.rank_correlation,
        area_sparsification=found.area_sparsification,
        area_ideal=found.area_ideal,
        deciles=[LineDecile(expected_percent=d.uncertainty_hu, true_percent=d.mae_hu) for d in found.deciles],
    )
