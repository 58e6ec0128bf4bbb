"""Errors of line integrals: by what factor each coincidence would be corrected wrongly. It knows no scanner.

The attenuation correction factor of a line is exp(integral of mu). Two maps differ by the ratio exp(integral of their
difference), whatever the activity is: what HU errors that cancel along a line leave over, and what those that add up
make, stands here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import sparse

from ..errors import VolumeError

ANGLES = 16  # of parallel lines in each axial slice, evenly over 180 degrees
SPACING_MM = 4.0  # of lines, and of slices at least
MIN_CHORD_MM = 10.0  # of a line in the true body; shorter ones are hardly attenuated
BINS = np.linspace(-0.5, 0.5, 101)  # of the histogram; what lies beyond counts in the first or last


@dataclass(frozen=True)
class Lines:
    """Those of one angle.

    Args:
        matrix: [line, y * x] lengths [cm] in a slice's voxels.
        slices: of the volume's z.
        crossed: [line, z] bool, those that cross the body.
    """

    matrix: sparse.csr_matrix
    slices: slice
    crossed: NDArray[np.bool_]

    def squared(self) -> Lines:
        """With squared lengths [cm2]: integrals of a variance are those of independent voxels' sum."""
        return Lines(self.matrix.multiply(self.matrix).tocsr(), self.slices, self.crossed)

    def integrals(self, volume: NDArray[np.floating]) -> NDArray[np.float64]:
        """[n] of a volume [z, y, x] along those that cross the body, in the volume's unit times cm."""
        return integrals(self.matrix, volume[self.slices])[self.crossed].astype(np.float64)


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

    Raises:
        VolumeError: no line crosses enough of the body.
    """
    step = _stride(spacing) * spacing[0]
    factors = [np.expm1(lines.integrals(mu_error)) for lines in line_set(body, spacing)]
    values = np.concatenate(factors)
    if not values.size:
        raise VolumeError(
            f"expected a body in the true CT, got one of {int(body.sum())} voxels that no line crosses for "
            f"{MIN_CHORD_MM:g} mm; check its rescale slope"
        )
    return LineErrors(
        lines=values.size,
        described=f"parallel lines {SPACING_MM:g} mm apart in axial slices {step:.3g} mm apart, "
        f"{ANGLES} angles over 180 degrees, at least {MIN_CHORD_MM:g} mm in the true body",
        mean_abs_percent=_percent(np.abs(values).mean()),
        mean_percent=_percent(values.mean()),
        p99_abs_percent=_percent(np.percentile(np.abs(values), 99)),
        histogram_counts=np.histogram(values.clip(BINS[0], BINS[-1]), BINS)[0].tolist(),
    )


def line_set(body: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Iterator[Lines]:
    """The lines on which all maps are compared, angle by angle.

    Args:
        body: [z, y, x] of the true CT, not empty, axes in LPS order.
        spacing: (z, y, x) [mm].
    """
    stride = _stride(spacing)
    start = int(np.flatnonzero(body.any(axis=(1, 2)))[0]) % stride  # at least one slice holds body
    slices = slice(start, None, stride)
    chord = body[slices].astype(np.float32)
    for angle in np.arange(ANGLES) * math.pi / ANGLES:
        matrix = line_matrix(body.shape[1:], spacing[1:], angle)
        yield Lines(matrix, slices, integrals(matrix, chord) * 10 >= MIN_CHORD_MM)


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


def _stride(spacing: tuple[float, float, float]) -> int:
    """Every how many-th slice has lines."""
    return max(1, round(SPACING_MM / spacing[0]))


def _percent(value: float) -> float:
    return 100 * float(value)
