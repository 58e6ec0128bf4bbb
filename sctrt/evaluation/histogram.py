"""HU histograms of both bodies, and how far apart they lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..units import HU_MAX, HU_MIN

EDGES = np.linspace(HU_MIN, HU_MAX, 201)  # HU; what lies beyond counts in the first or last bin


class Histograms(BaseModel):
    """Voxels of the true body by HU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_hu: float
    bin_hu: float
    synthetic: list[int]
    true: list[int]
    wasserstein_hu: float  # HU by which a voxel has to be moved on average to turn one into the other


def histograms(sct: NDArray[np.float32], ct: NDArray[np.float32]) -> Histograms:
    """Of the voxels [n] of a mask, HU. As many are in both, so that the distance is that of the sorted values."""
    one, other = (np.histogram(hu.clip(HU_MIN, HU_MAX), EDGES)[0] for hu in (sct, ct))
    return Histograms(
        first_hu=float(EDGES[0]),
        bin_hu=float(EDGES[1] - EDGES[0]),
        synthetic=one.tolist(),
        true=other.tolist(),
        wasserstein_hu=float(np.abs(np.sort(sct) - np.sort(ct)).mean(dtype=np.float64)),
    )
