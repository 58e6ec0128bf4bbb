"""Is the uncertainty one? Whether voxels that are said to be uncertain are those that err."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats

DECILES = 10
FRACTIONS = np.linspace(0, 0.95, 20)  # of voxels removed, the most uncertain first


class Decile(BaseModel):
    """A tenth of the body's voxels, by their uncertainty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uncertainty_hu: float  # mean
    mae_hu: float
    rmse_hu: float


class Calibration(BaseModel):
    """Of a spread [HU] against the absolute error [HU] in the body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deciles: list[Decile]  # least uncertain first
    rank_correlation: float | None  # Spearman's, of uncertainty and |error|; None where one of them is constant
    removed: list[float]  # share of voxels
    sparsification_mae_hu: list[float]  # of the rest, when the most uncertain are removed
    ideal_mae_hu: list[float]  # of the rest, when those with the largest errors are removed
    area_sparsification: float  # under the curve divided by the MAE of all: 1 says nothing, lower is better
    area_ideal: float
    area_error: float  # between the two (AUSE): 0 is ideal


def calibration(
    uncertainty: NDArray[np.floating],  # [n] HU
    error: NDArray[np.floating],  # [n] synthetic minus true [HU]
) -> Calibration:
    """Compares uncertainty and error, voxel by voxel; among those of equal uncertainty each errs by their mean.

    Source: Ilg et al., ECCV 2018, "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow".
    """
    absolute = np.abs(error.astype(np.float64))
    _, level, sizes = np.unique(uncertainty, return_inverse=True, return_counts=True)
    by_uncertainty = np.argsort(level, kind="stable")
    expected, squared = ((np.bincount(level, one) / sizes)[level] for one in (absolute, absolute**2))
    curve = _rest(expected[by_uncertainty])
    ideal = _rest(np.sort(absolute))
    mae = absolute.mean() or 1.0  # a perfect CT has flat curves of area 0
    areas = [float(np.trapezoid(one / mae, FRACTIONS) / FRACTIONS[-1]) for one in (curve, ideal)]
    constant = np.ptp(uncertainty) == 0 or np.ptp(absolute) == 0
    return Calibration(
        deciles=[
            _decile(uncertainty[part], expected[part], squared[part])
            for part in np.array_split(by_uncertainty, DECILES)
        ],
        rank_correlation=None if constant else float(stats.spearmanr(uncertainty, absolute).statistic),
        removed=FRACTIONS.tolist(),
        sparsification_mae_hu=curve.tolist(),
        ideal_mae_hu=ideal.tolist(),
        area_sparsification=areas[0],
        area_ideal=areas[1],
        area_error=areas[0] - areas[1],
    )


def _rest(ascending: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the first voxels when a share of the last ones is removed, for each of `FRACTIONS`."""
    kept = np.maximum(1, np.rint((1 - FRACTIONS) * ascending.size).astype(int))
    return np.cumsum(ascending)[kept - 1] / kept


def _decile(uncertainty: NDArray[np.floating], absolute: NDArray[np.float64], squared: NDArray[np.float64]) -> Decile:
    return Decile(
        uncertainty_hu=float(uncertainty.mean(dtype=np.float64)),
        mae_hu=float(absolute.mean()),
        rmse_hu=float(np.sqrt(squared.mean())),
    )
