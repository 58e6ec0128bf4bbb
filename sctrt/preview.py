"""One picture of a result: three cuts through the PET, the synthetic CT, its spread and, where known, the true CT."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from scipy import ndimage

from .evaluation.metrics import LUNG_HU, body_mask
from .files import replaced_when_whole
from .planes import PLANES, Plane, slice_axis
from .preprocess import Grid, model_grid, to_grid
from .units import HU_AIR
from .volume import Volume

DPI = 100
MIN_VOXEL_MM = 2.0  # finer is not seen at this size
SURVEY_MM = 8.0  # voxels in which the cuts are chosen
MARGIN_MM = 24.0  # around the body
MIN_LUNG_CM2 = 40.0  # of an axial slice; less is gas

CT_WINDOW = (-1000.0, 600.0)  # HU; tells lung from air, and shows soft tissue and bone, too
SPREAD_WINDOW = (0.0, 400.0)  # HU; fixed, so that pictures can be compared
DIFFERENCE_WINDOW = (-500.0, 500.0)  # HU
PET_WINDOW_MEDIANS = 4.0  # the upper end, in medians of the body: brain and bladder saturate, the trunk is seen

WIDTH_IN, MAX_HEIGHT_IN = 15.0, 20.0
LEFT_IN, RIGHT_IN, TOP_IN, BOTTOM_IN, GAP_IN = 0.45, 0.15, 0.45, 0.7, 0.1
BAR_IN = 0.12  # height of a colour bar
DARK, LIGHT, MARK = "#222222", "#ffffff", "#0072b2"
HALO_PT, HALO_ALPHA = 2.0, 0.5  # around letters, in the other of the two, so that they can be read on anything
SCALE_MM = 100.0  # length of the scale bar

# At the left, right, top and bottom edges: seen from the feet, from the front and from the patient's left.
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
LETTER_PLACES = ((0.0, 0.5), (1.0, 0.5), (0.5, 1.0), (0.5, 0.0))
LETTER_INSET_PT = 8.0
MARK_SPAN = (0.08, 0.92)  # part of the image's side


@dataclass(frozen=True)
class _Column:
    """One kind of image, and how grey or colour stands for its values."""

    title: str
    unit: str
    colours: str  # matplotlib's name of a colour map
    ink: str  # of letters that can be read on the background
    window: tuple[float, float]
    volume: Volume
    outside: float  # value where the volume does not reach
    minus: Volume | None = None

    def cut(self, grid: Grid) -> NDArray[np.float32]:
        """[z, y, x] on `grid`."""
        array = to_grid(self.volume, grid, self.outside)
        return array if self.minus is None else array - to_grid(self.minus, grid, self.outside)


@dataclass(frozen=True)
class _Survey:
    """A coarse look at the whole volume."""

    grid: Grid
    hu: NDArray[np.float32]  # [z, y, x] of the synthetic CT
    body: NDArray[np.bool_]  # [z, y, x]

    def centre(self) -> NDArray[np.float64]:
        """Voxel (z, y, x) of the body's centre; z at most lung, else at the middle."""
        lung = (self.body & (self.hu > LUNG_HU[0]) & (self.hu < LUNG_HU[1])).sum(axis=(1, 2))
        has_lungs = lung.max() * self.grid.spacing**2 / 100 >= MIN_LUNG_CM2
        z = lung.argmax() if has_lungs else (self.grid.shape[0] - 1) / 2
        return np.array([z, *ndimage.center_of_mass(self.body)[1:]])


@dataclass(frozen=True)
class _View:
    """What is shown: a part of the LPS grid, and the voxel (z, y, x) where the three cuts meet."""

    grid: Grid
    centre: tuple[int, int, int]

    def plane(self, plane: Plane) -> Grid:
        """The one slice of a plane."""
        box = [slice(0, n) for n in self.grid.shape]
        axis = slice_axis(plane)
        box[axis] = slice(self.centre[axis], self.centre[axis] + 1)
        return self.grid.crop((box[0], box[1], box[2]))

    def edges(self, axis: int) -> tuple[float, float]:
        """Where the grid begins and ends along z, y or x [mm]."""
        start = float(self.grid.affine[2 - axis, 3]) - self.grid.spacing / 2
        return start, start + self.grid.shape[axis] * self.grid.spacing

    def position(self, axis: int) -> float:
        """Of the cut along z, y or x [mm]."""
        return float(self.grid.affine[2 - axis, 3]) + self.centre[axis] * self.grid.spacing

    def size(self, axis: int) -> float:
        """Length along z, y or x [mm]."""
        return self.grid.shape[axis] * self.grid.spacing


def save_preview(
    path: str | os.PathLike[str],
    pet: Volume,  # [z, y, x] any unit
    sct: Volume,  # [z, y, x] HU
    spread: Volume,  # [z, y, x] HU
    ct: Volume | None = None,  # [z, y, x] HU
    *,
    spread_of: str = "three planes",
) -> None:
    """Draws axial, coronal and sagittal cuts, in the patient's proportions, and writes them whole or not at all.

    The axial cut goes through most lung, else through the middle; the others through the body's centre. Each volume
    may be on its own grid, in any orientation. With a true CT, it and the difference are drawn, too.

    Args:
        path: ends in .png; an existing file is replaced.
        pet: without attenuation correction.
        sct: the synthetic CT.
        spread: range of several predictions.
        ct: the true CT, where there is one.
        spread_of: what made these predictions, for the title.

    Raises:
        ValueError: another extension, or a missing directory.
        OSError: the disk is full, not writable, ...; no file is left behind.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a preview name ending in .png, got {path.name!r}; rename it")
    if not path.parent.is_dir():
        raise ValueError(f"the preview's directory {path.parent} does not exist; create it first")
    figure = draw(pet, sct, spread, ct, spread_of=spread_of)
    with replaced_when_whole(path) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": "sctrt"})


def draw(
    pet: Volume, sct: Volume, spread: Volume, ct: Volume | None = None, *, spread_of: str = "three planes"
) -> Figure:
    """The figure that `save_preview` writes; same arguments."""
    survey = _survey(pet, sct, ct)
    view = _choose_view(pet, survey)
    columns = _columns(pet, sct, spread, ct, _pet_window(pet, survey), spread_of)
    figure, axes, bars = _layout(view, len(columns))
    for i, column in enumerate(columns):
        axes[0, i].set_title(column.title, fontsize=12, color=DARK, pad=7)
        for row, plane in enumerate(PLANES):
            _draw_cut(axes[row, i], column, view, plane)
        _draw_bar(figure, axes[0, i], bars[i], column.unit)
    for row, plane in enumerate(PLANES):
        axis = slice_axis(plane)
        axes[row, 0].set_ylabel(f"{plane},  {'zyx'[axis]} = {view.position(axis):.0f} mm", fontsize=9, color=DARK)
        _mark_other_cuts(axes[row, 0], view, plane)
    _draw_scale(axes[0, 0], view)
    return figure


def _survey(pet: Volume, sct: Volume, ct: Volume | None) -> _Survey:
    """Finds the body in the synthetic and the true CT; all is body where neither shows one."""
    grid = model_grid(pet, SURVEY_MM)
    hu = to_grid(sct, grid, HU_AIR)
    body = body_mask(Volume(hu, grid.affine, "HU"))
    if ct is not None:
        body |= body_mask(Volume(to_grid(ct, grid, HU_AIR), grid.affine, "HU"))
    return _Survey(grid, hu, body if body.any() else np.ones_like(body))


def _choose_view(pet: Volume, survey: _Survey) -> _View:
    """The body with a margin (all of z), on a grid as fine as the PET's, and where to cut it."""
    grid = model_grid(pet, max(MIN_VOXEL_MM, min(pet.spacing)))
    ratio = survey.grid.spacing / grid.spacing
    shift = (survey.grid.affine - grid.affine)[:3, 3][::-1] / grid.spacing  # (z, y, x)
    margin = MARGIN_MM / grid.spacing
    box = [slice(0, grid.shape[0])]
    for axis in (1, 2):
        inside = np.flatnonzero(survey.body.any(axis=(0, 3 - axis)))
        first, last = inside[[0, -1]] * ratio + shift[axis]
        box.append(slice(max(0, round(first - margin)), min(grid.shape[axis], round(last + margin) + 1)))
    voxel = [round(float(v)) - b.start for v, b in zip(survey.centre() * ratio + shift, box, strict=True)]
    z, y, x = (min(max(v, 0), b.stop - b.start - 1) for v, b in zip(voxel, box, strict=True))
    return _View(grid.crop((box[0], box[1], box[2])), (z, y, x))


def _pet_window(pet: Volume, survey: _Survey) -> tuple[float, float]:
    high = PET_WINDOW_MEDIANS * float(np.median(to_grid(pet, survey.grid, 0.0)[survey.body]))
    return 0.0, high if high > 0 else 1.0


def _columns(
    pet: Volume, sct: Volume, spread: Volume, ct: Volume | None, pet_window: tuple[float, float], spread_of: str
) -> list[_Column]:
    unit = "arbitrary unit" if pet.unit == "arbitrary" else pet.unit
    columns = [
        _Column("NAC PET", unit, "gray_r", DARK, pet_window, pet, 0.0),
        _Column("Synthetic CT", "HU", "gray", LIGHT, CT_WINDOW, sct, HU_AIR),
        _Column(f"Spread of the {spread_of}", "HU", "magma", LIGHT, SPREAD_WINDOW, spread, 0.0),
    ]
    if ct is not None:
        columns.append(_Column("True CT", "HU", "gray", LIGHT, CT_WINDOW, ct, HU_AIR))
        columns.append(_Column("Synthetic minus true", "HU", "RdBu_r", DARK, DIFFERENCE_WINDOW, sct, HU_AIR, ct))
    return columns


def _layout(view: _View, columns: int) -> tuple[Figure, NDArray, list[Axes]]:
    """A figure with [3, columns] axes in one scale for all, and an axes for a colour bar below each column."""
    heights = [view.size(1), view.size(0), view.size(0)]  # mm
    width = max(view.size(2), view.size(1))
    inch_per_mm = min(
        (WIDTH_IN - LEFT_IN - RIGHT_IN - GAP_IN * (columns - 1)) / (columns * width),
        (MAX_HEIGHT_IN - TOP_IN - BOTTOM_IN - GAP_IN * 2) / sum(heights),
    )
    column_in, row_in = width * inch_per_mm, [h * inch_per_mm for h in heights]
    size = (
        LEFT_IN + RIGHT_IN + column_in * columns + GAP_IN * (columns - 1),
        TOP_IN + BOTTOM_IN + sum(row_in) + GAP_IN * 2,
    )
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.subplots(
        3,
        columns,
        gridspec_kw={
            "height_ratios": heights,
            "left": LEFT_IN / size[0],
            "right": 1 - RIGHT_IN / size[0],
            "bottom": BOTTOM_IN / size[1],
            "top": 1 - TOP_IN / size[1],
            "wspace": GAP_IN / column_in,
            "hspace": GAP_IN / (sum(row_in) / 3),
        },
    )
    bars = [
        figure.add_axes(
            (
                (LEFT_IN + i * (column_in + GAP_IN) + 0.1 * column_in) / size[0],
                (BOTTOM_IN - 0.1 - BAR_IN) / size[1],
                0.8 * column_in / size[0],
                BAR_IN / size[1],
            )
        )
        for i in range(columns)
    ]
    return figure, axes, bars


def _draw_cut(axes: Axes, column: _Column, view: _View, plane: Plane) -> None:
    """One image in LPS mm: left of the patient, back and head are right, right (sagittal) or below, and above."""
    axis = slice_axis(plane)
    down, across = (other for other in range(3) if other != axis)
    low, high = view.edges(down)
    axes.imshow(
        column.cut(view.plane(plane)).squeeze(axis),
        cmap=column.colours,
        vmin=column.window[0],
        vmax=column.window[1],
        interpolation="bilinear",
        origin="upper" if plane == "axial" else "lower",
        extent=(*view.edges(across), *((high, low) if plane == "axial" else (low, high))),
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_linewidth(0.4)
    halo = [Stroke(linewidth=HALO_PT, foreground=LIGHT if column.ink == DARK else DARK, alpha=HALO_ALPHA), Normal()]
    for letter, (x, y) in zip(LETTERS[plane], LETTER_PLACES, strict=True):
        axes.annotate(
            letter,
            (x, y),
            xycoords="axes fraction",
            xytext=(LETTER_INSET_PT * (0.5 - x) * 2, LETTER_INSET_PT * (0.5 - y) * 2),
            textcoords="offset points",
            ha="center",
            va="center",
            color=column.ink,
            fontsize=9,
            fontweight="bold",  # thin strokes vanish between pixels
            path_effects=halo,
        )


def _draw_bar(figure: Figure, axes: Axes, place: Axes, unit: str) -> None:
    bar = figure.colorbar(axes.images[0], cax=place, orientation="horizontal")
    bar.set_label(unit, fontsize=9, color=DARK, labelpad=2)
    bar.ax.tick_params(labelsize=8, colors=DARK, length=2, pad=2)
    bar.outline.set_linewidth(0.4)


def _mark_other_cuts(axes: Axes, view: _View, plane: Plane) -> None:
    """Thin lines where the other two cuts pass, short of the letters."""
    down, across = (other for other in range(3) if other != slice_axis(plane))
    style = {"color": MARK, "linewidth": 0.6, "linestyle": (0, (6, 6))}
    axes.axvline(view.position(across), *MARK_SPAN, **style)
    axes.axhline(view.position(down), *MARK_SPAN, **style)


def _draw_scale(axes: Axes, view: _View) -> None:
    """A bar of 10 cm in the lower left corner of the axial cut."""
    left, bottom = view.edges(2)[0] + 0.05 * view.size(2), view.edges(1)[1] - 0.06 * view.size(1)
    axes.plot([left, left + SCALE_MM], [bottom, bottom], color=DARK, linewidth=1.5, solid_capstyle="butt")
    axes.text(
        left + SCALE_MM / 2, bottom - 0.01 * view.size(1), "10 cm", ha="center", va="bottom", fontsize=7, color=DARK
    )
