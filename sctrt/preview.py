"""One picture of a result: three cuts through the PET, the synthetic CT, its spread and, where known, the true CT."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from .evaluation.metrics import LUNG_HU, body_mask
from .planes import PLANES, slice_axis
from .preprocess import Grid, model_grid, to_grid
from .units import HU_AIR
from .volume import Volume

DPI = 100
MIN_VOXEL_MM = 2.0  # finer is not seen at this size
SURVEY_MM = 8.0  # voxels in which the cuts are chosen
MARGIN_MM = 24.0  # around the body
MIN_LUNG_CM2 = 40.0  # of an axial slice; less is gas

CT_WINDOW = (-750.0, 750.0)  # HU; shows lung, soft tissue and bone at once
SPREAD_WINDOW = (0.0, 400.0)  # HU; fixed, so that pictures can be compared
DIFFERENCE_WINDOW = (-500.0, 500.0)  # HU
PET_PERCENTILE = 99.0  # of the body: the brain and the bladder saturate, the trunk is seen

WIDTH_IN, MAX_HEIGHT_IN = 15.0, 20.0
LEFT_IN, RIGHT_IN, TOP_IN, BOTTOM_IN, GAP_IN = 0.35, 0.15, 0.5, 0.75, 0.12
BAR_IN = 0.12
INK, MARK = "#1a1a1a", "#e69f00"

# Letters at the left, right, top and bottom edge. Seen from the patient's feet, front and left side (DICOM's custom).
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


@dataclass(frozen=True)
class _Column:
    """One kind of image: where it comes from and how grey or colour stands for its value."""

    title: str
    unit: str
    colours: str
    window: tuple[float, float]
    source: Volume
    outside: float  # value where the volume does not reach
    subtract: Volume | None = None
    extend: str = "both"  # which ends of the window cut values off


def save_preview(
    path: str | os.PathLike[str],
    pet: Volume,  # [z, y, x] any unit
    sct: Volume,  # [z, y, x] HU
    spread: Volume,  # [z, y, x] HU
    ct: Volume | None = None,  # [z, y, x] HU
) -> None:
    """Draws axial, coronal and sagittal cuts, in the patient's proportions, and writes them whole or not at all.

    The axial cut goes through most lung, else through the middle; the others through the body's centre. Each volume
    may be on its own grid, in any orientation. With a true CT, it and the difference are drawn, too.

    Args:
        path: ends in .png; an existing file is replaced.
        pet: without attenuation correction.
        sct: the synthetic CT.
        spread: range of the three planes' predictions.
        ct: the true CT, where there is one.

    Raises:
        ValueError: another extension, or a missing directory.
        OSError: the disk is full, not writable, ...; no file is left behind.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a preview name ending in .png, got {path.name!r}; rename it")
    if not path.parent.is_dir():
        raise ValueError(f"the directory {path.parent} of the preview does not exist; create it first")
    figure = draw(pet, sct, spread, ct)
    temporary = path.with_name(f".sctrt-{secrets.token_hex(8)}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": "sctrt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def draw(pet: Volume, sct: Volume, spread: Volume, ct: Volume | None = None) -> Figure:
    """The figure that `save_preview` writes; same arguments."""
    grid, centre = _cuts(pet, sct)
    columns = _columns(pet, sct, spread, ct)
    heights = {plane: _extent(grid, plane)[1] for plane in PLANES}  # mm
    width = max(_extent(grid, plane)[0] for plane in PLANES)
    inch_per_mm = min(
        (WIDTH_IN - LEFT_IN - RIGHT_IN - GAP_IN * (len(columns) - 1)) / (len(columns) * width),
        (MAX_HEIGHT_IN - TOP_IN - BOTTOM_IN - 2 * GAP_IN) / sum(heights.values()),
    )
    column_in = width * inch_per_mm
    size = (
        LEFT_IN + RIGHT_IN + column_in * len(columns) + GAP_IN * (len(columns) - 1),
        TOP_IN + BOTTOM_IN + sum(heights.values()) * inch_per_mm + 2 * GAP_IN,
    )
    figure = Figure(figsize=size, facecolor="white")
    for index, column in enumerate(columns):
        left = LEFT_IN + index * (column_in + GAP_IN)
        top = size[1] - TOP_IN
        for plane in PLANES:
            panel = [n * inch_per_mm for n in _extent(grid, plane)]
            box = (left + (column_in - panel[0]) / 2, top - panel[1], *panel)
            axes = _add_axes(figure, size, box)
            _draw_cut(axes, column, grid, plane, centre)
            _write_letters(axes, plane, column)
            if index == 0:
                _mark_other_cuts(axes, grid, plane, centre)
                y = (top - panel[1] / 2) / size[1]
                label = f"{plane}, {'zyx'[slice_axis(plane)]} = {_position(grid, plane, centre):.0f} mm"
                figure.text(0.12 / size[0], y, label, rotation=90, va="center", ha="center", color=INK, fontsize=9)
            top -= panel[1] + GAP_IN
        figure.text(
            (left + column_in / 2) / size[0], 1 - 0.25 / size[1], column.title,
            ha="center", va="center", fontsize=12, color=INK,
        )
        _draw_bar(figure, size, (left + 0.1 * column_in, BOTTOM_IN - 0.15 - BAR_IN, 0.8 * column_in, BAR_IN), column)
    return figure
