"""Errors of line integrals: by what factor each coincidence would be corrected wrongly. It knows no scanner.

The attenuation correction factor of a line is exp(integral of mu). Two maps differ by the ratio exp(integral of their
difference), whatever the activity is: what HU errors that cancel along a line leave over, and what those that add up
make, stands here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import sparse

ANGLES = 16  # of parallel lines in each axial slice, evenly over 180 degrees
SPACING_MM = 4.0  # of lines, and of slices at least
MIN_CHORD_MM = 10.0  # of a line in the true body; shorter ones are hardly attenuated
BINS = np.linspace(-0.5, 0.5, 101)  # of the histogram; what lies beyond counts in the first or last


class LineErrors(BaseModel):
    """Of the factor exp(integral of mu_synthetic - mu_true) - 1, over all lines that cross the true body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int
    described: str
    mean_abs_percent: float
    mean_percent: float
    p99_abs_percent: float
    histogram_counts: list[int]  # by BINS


def line_errors(
    mu_error: NDArray[np.floating],
    body: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> LineErrors:
    """Measures every line of the set.

    Args:
        mu_error: [z, y, x] synthetic minus true [1/cm], axes in LPS order.
        body: [z, y, x] of the true CT, not empty.
        spacing: (z, y, x) [mm].
    """
    stride = max(1, round(SPACING_MM / spacing[0]))
    start = int(np.flatnonzero(body.any(axis=(1, 2)))[0]) % stride  # at least one slice holds body
    error, chord = mu_error[start::stride], body[start::stride].astype(np.float32)
    factors = []
    for angle in np.arange(ANGLES) * math.pi / ANGLES:
        matrix = line_matrix(error.shape[1:], spacing[1:], angle)
        crossed = integrals(matrix, chord) * 10 >= MIN_CHORD_MM
        factors.append(np.expm1(integrals(matrix, error)[crossed].astype(np.float64)))
    values = np.concatenate(factors)
    return LineErrors(
        lines=values.size,
        described=f"parallel lines {SPACING_MM:g} mm apart in axial slices {stride * spacing[0]:.3g} mm apart, "
        f"{ANGLES} angles over 180 degrees, at least {MIN_CHORD_MM:g} mm in the true body",
        mean_abs_percent=_percent(np.abs(values).mean()),
        mean_percent=_percent(values.mean()),
        p99_abs_percent=_percent(np.percentile(np.abs(values), 99)),
        histogram_counts=np.histogram(values.clip(BINS[0], BINS[-1]), BINS)[0].tolist(),
    )


def integrals(matrix: sparse.csr_matrix, volume: NDArray[np.floating]) -> NDArray[np.floating]:
    """[line, z]: integrals of a volume [z, y, x] along a slice's lines, in the volume's unit times cm."""
    return matrix @ volume.reshape(len(volume), -1).T


def line_matrix(
    shape: tuple[int, ...],  # (y, x)
    spacing: tuple[float, ...],  # (y, x) [mm]
    angle: float,  # radians from the x axis
) -> sparse.csr_matrix:
    """[line, y * x] lengths [cm]: lines through a slice, sampled every voxel and interpolated bilinearly."""
    reach = math.hypot(*(n * step for n, step in zip(shape, spacing, strict=True))) / 2
    across = np.arange(-reach, reach, SPACING_MM)
    depth_step = min(spacing)
    along = np.arange(-reach, reach, depth_step)
    cos, sin = math.cos(angle), math.sin(angle)
    x = (across[:, None] * -sin + along * cos) / spacing[1] + (shape[1] - 1) / 2
    y = (across[:, None] * cos + along * sin) / spacing[0] + (shape[0] - 1) / 2
    first_y, first_x = np.floor(y).astype(int), np.floor(x).astype(int)
    rows, columns, weights = [], [], []
    for dy in (0, 1):
        for dx in (0, 1):
            iy, ix = first_y + dy, first_x + dx
            inside = (iy >= 0) & (iy < shape[0]) & (ix >= 0) & (ix < shape[1])
            weight = (1 - np.abs(y - iy)) * (1 - np.abs(x - ix)) * depth_step / 10
            rows.append(np.nonzero(inside)[0])
            columns.append((iy * shape[1] + ix)[inside])
            weights.append(weight[inside].astype(np.float32))
    indices = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_matrix((np.concatenate(weights), indices), shape=(len(across), math.prod(shape)))


def _percent(value: float) -> float:
    return 100 * float(value)
