"""Pictures of corrected PETs as PNG bytes: where they differ from the reference, and how often by how much."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .figures import MUTED, png, show, style
from .pet_case import PetCase

TOP_PERCENTILE = 99.5  # of the reference in the body: hotter voxels, of the bladder or brain, are as dark as it
DIFFERENCE_WINDOW = (-25.0, 25.0)  # %
MIN_SHARE = 0.1  # of the body's mean: relative differences of colder voxels say nothing
PLANES = (1, 2)  # coronal, sagittal


def differences(case: PetCase) -> bytes:
    """Coronal and sagittal cuts: the reference, and each PET's relative difference from it, in the body."""
    body, reference = case.regions.body, case.reference.array
    mean = float(reference[body].mean(dtype=np.float64))
    counted = body & (reference > MIN_SHARE * mean)
    where = [int(np.median(np.flatnonzero(body.any(axis=(0, 3 - plane))))) for plane in PLANES]
    lengths = np.array(reference.shape) * case.reference.spacing
    columns = 1 + len(case.pets)
    height = 2 * 2.0 * lengths[0] / max(lengths[1:])
    figure = Figure(figsize=(2.0 * columns, min(height, 14.0) + 1.3), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    top = float(np.percentile(reference[body], TOP_PERCENTILE)) or 1.0
    for row, (plane, index) in enumerate(zip(PLANES, where, strict=True)):
        show(axes[row, 0], np.take(reference, index, plane), plane, case.reference.spacing, (0, top), "gray_r")
        for column, pet in enumerate(case.pets.values(), 1):
            change = _relative(*(np.take(one, index, plane) for one in (pet.array, reference, counted)))
            show(axes[row, column], change, plane, case.reference.spacing, DIFFERENCE_WINDOW, "RdBu_r")
    for ax, title in zip(axes[0], ["Reference", *case.pets], strict=True):
        ax.set_title(title, fontsize=9)
    figure.colorbar(axes[0, 0].images[0], ax=axes[1, 0], orientation="horizontal", label=_unit(case))
    label = "PET minus reference [%]"
    figure.colorbar(axes[0, 1].images[0], ax=axes[1, 1:], orientation="horizontal", label=label, aspect=40)
    return png(figure)


def joint_histograms(case: PetCase) -> bytes:
    """One panel a map: voxels of the body by their value in the reference and in the PET."""
    figure = Figure(figsize=(2.6 * len(case.errors), 2.9), layout="constrained")
    axes = figure.subplots(1, len(case.errors), squeeze=False)[0]
    for ax, (name, error) in zip(axes, case.errors.items(), strict=True):
        edges = np.array(error.histogram.edges)
        _panel(ax, edges, np.array(error.histogram.counts))
        ax.set_title(name, fontsize=9)
    axes[0].set_ylabel(f"PET {_unit(case)}", fontsize=9)
    return png(figure)


def _panel(ax: Axes, edges: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    style(ax, "reference", "")
    if counts.any():
        ax.pcolormesh(edges, edges, np.ma.masked_equal(counts.T, 0), norm=LogNorm(1, counts.max()), cmap="viridis")
    ax.plot(edges[[0, -1]], edges[[0, -1]], color=MUTED, linewidth=0.8)
    ax.set_aspect("equal")


def _relative(pet: NDArray, reference: NDArray, counted: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Per cent; NaN where nothing is counted."""
    safe = np.where(counted, reference, 1)
    return np.where(counted, 100 * (pet / safe - 1), np.nan)


def _unit(case: PetCase) -> str:
    unit = case.reference.unit
    return "[arbitrary unit]" if unit == "arbitrary" else f"[{unit}]"
