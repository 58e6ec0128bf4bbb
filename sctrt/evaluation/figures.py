"""Pictures of one case as PNG bytes; it writes no files."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .case import Case
from .expected_lines import ExpectedError
from .histogram import EDGES
from .lines import BINS
from .pairs import Pair

DPI = 90
CT_WINDOW = (-1000.0, 600.0)  # HU
DIFFERENCE_WINDOW = (-500.0, 500.0)  # HU
TRUE, SYNTHETIC, MUTED = "#222222", "#d55e00", "#888888"
PLANES = ("axial", "coronal", "sagittal")


def cuts(pair: Pair) -> bytes:
    """True, synthetic and difference through the body's middle, in mm: the patient's right at the left, head up."""
    centre = [int(np.median(np.flatnonzero(pair.body.any(axis=tuple({0, 1, 2} - {axis}))))) for axis in range(3)]
    difference = pair.sct - pair.ct
    columns = (("True CT", pair.ct), ("Synthetic CT", pair.sct), ("Synthetic minus true", difference))
    lengths = np.array(pair.ct.shape) * pair.spacing
    heights = [lengths[1], lengths[0], lengths[0]]
    width = max(lengths[1], lengths[2])
    figure = Figure(figsize=(9.0, 9.0 * sum(heights) / (3 * width) + 0.6), layout="constrained")
    axes = figure.subplots(3, 3, gridspec_kw={"height_ratios": heights})
    for column, (title, volume) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=10)
        for axis in range(3):
            cut = np.take(volume, centre[axis], axis)
            window, colours = (DIFFERENCE_WINDOW, "RdBu_r") if volume is difference else (CT_WINDOW, "gray")
            show(axes[axis, column], cut, axis, pair.spacing, window, colours)
            axes[axis, 0].set_ylabel(PLANES[axis], fontsize=9)
    for image, place in ((axes[0, 0].images[0], axes[2, :2]), (axes[0, 2].images[0], axes[2, 2])):
        figure.colorbar(image, ax=place, orientation="horizontal", label="HU", shrink=0.7, aspect=30)
    return png(figure)


def histogram(case: Case) -> bytes:
    """Voxels of the body by HU, both CTs."""
    figure, axes = _plot("HU", "voxels of the body")
    for name, counts, colour in (
        ("true", case.histogram.true, TRUE),
        ("synthetic", case.histogram.synthetic, SYNTHETIC),
    ):
        axes.stairs(counts, EDGES, label=name, color=colour)
    axes.set(yscale="log", xlim=(-1024, 1600), ylim=(0.8, None))
    axes.legend(frameon=False)
    return png(figure)


def lines(case: Case) -> bytes:
    """Lines by the error of their attenuation factor."""
    figure, axes = _plot("error of the attenuation factor along a line [%]", "lines")
    axes.stairs(case.lines.histogram_counts, BINS * 100, color=SYNTHETIC, fill=True)
    axes.axvline(0, color=TRUE, linewidth=0.8)
    axes.axvline(case.lines.mean_percent, color=TRUE, linestyle="--", label=f"mean {case.lines.mean_percent:+.2f} %")
    reach = max(5.0, 1.5 * case.lines.p99_abs_percent)
    axes.set(xlim=(-min(reach, 50), min(reach, 50)))
    axes.legend(frameon=False)
    return png(figure)


def calibration(case: Case) -> bytes | None:
    """Error by decile of uncertainty, and the sparsification curve beside the ideal; None without uncertainty."""
    found = case.uncertainty
    if found is None:
        return None
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    style(left, "mean uncertainty of the decile [HU]", "MAE of the decile [HU]")
    left.plot([d.uncertainty_hu for d in found.deciles], [d.mae_hu for d in found.deciles], "o-", color=SYNTHETIC)
    end = max(max(d.uncertainty_hu, d.mae_hu) for d in found.deciles) or 1.0
    left.plot([0, end], [0, end], color=MUTED, linestyle=":", label="equal")
    left.legend(frameon=False)
    style(right, "voxels removed, the most uncertain first [%]", "MAE of the rest [HU]")
    removed = np.array(found.removed) * 100
    right.plot(removed, found.sparsification_mae_hu, color=SYNTHETIC, label="by uncertainty")
    right.plot(removed, found.ideal_mae_hu, color=TRUE, linestyle="--", label="ideal: by error")
    right.set_ylim(0, None)
    right.legend(frameon=False)
    return png(figure)


def code_counts(codes: Mapping[str, NDArray[np.int32]]) -> bytes:
    """How often each code is used, the most used first; codes below 0 are none."""
    figure, axes = _plot("codes, the most used first", "latents")
    for plane, index in codes.items():
        counts = np.bincount(index[index >= 0])
        used = np.sort(counts[counts > 0])[::-1]
        axes.plot(np.arange(1, used.size + 1), used, label=f"{plane}, {used.size} codes", linewidth=1.2)
    axes.set(yscale="log", ylim=(0.8, None))
    axes.legend(frameon=False)
    return png(figure)


def expected_lines(found: Mapping[str, ExpectedError]) -> bytes:
    """True against expected error of attenuation factors, by decile of the latter."""
    figure, axes = _plot("mean error to expect, of the decile [%]", "mean true error of the decile [%]")
    for name, one in found.items():
        points = [(d.expected_percent, d.true_percent) for d in one.deciles]
        axes.plot(*zip(*points, strict=True), "o-", label=name, markersize=3, linewidth=1.2)
    end = max(one.deciles[-1].true_percent for one in found.values()) or 1.0
    axes.plot([0, end], [0, end], color=MUTED, linestyle=":", label="equal")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def show(
    axes: Axes,
    image: NDArray,
    axis: int,
    spacing: tuple[float, float, float],
    window: tuple[float, float],
    colours: str,
) -> None:
    """A cut [y, x], [z, x] or [z, y] across `axis` of a volume in LPS order, in mm: head up.

    Args:
        axes: where it is drawn.
        image: the cut.
        axis: 0 axial, 1 coronal, 2 sagittal.
        spacing: (z, y, x) of the volume [mm].
        window: values of the first and last colour.
        colours: matplotlib's name of the colours.
    """
    down, across = (step for other, step in enumerate(spacing) if other != axis)
    low, high = window
    origin = "upper" if axis == 0 else "lower"
    axes.imshow(image, cmap=colours, vmin=low, vmax=high, origin=origin, aspect=down / across)
    axes.set(xticks=[], yticks=[])


def _plot(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axes = figure.subplots()
    style(axes, across, up)
    return figure, axes


def style(axes: Axes, across: str, up: str) -> None:
    """Labels, and no more lines than needed."""
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """The file's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": "sctrt"})
    return out.getvalue()
