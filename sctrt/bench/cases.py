"""The volumes that whole syntheses are timed on: procedural bodies, the same for the same seed, and no downloads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .. import ops
from ..bundle import Normaliser
from ..files import write_json
from ..phantom import make_body
from ..preprocess import (
    Grid,
    body_reference,
    compress,
    model_grid,
    overview_level,
    position,
    pyramid,
    smooth,
    to_grid,
)
from ..volume import Volume

Shape = tuple[int, int, int]  # (z, y, x)

PAINT_MM = 4.0  # voxels that a body is painted in: finer ones take minutes, and time does not depend on details
SUV_TO_BQ = 5000.0  # Bq/ml at SUV 1, of 350 MBq in 70 kg
ESCAPE = 0.13  # 1/cm; of photons from the depth, about 1.5 times the attenuation of water at 511 keV
FWHM_MM = 7.0  # of the scanner and its filter
SCATTER = 0.02  # of the body's mean, everywhere
NOISE = 0.1  # relative, before the blur
AIR_HU = -500.0  # above it is body


@dataclass(frozen=True)
class Size:
    """One of the suite's fixed volumes."""

    shape: Shape
    voxel_mm: float
    meaning: str
    paint_mm: float = PAINT_MM


SIZES = {
    "body": Size((290, 128, 128), 4.0, "a whole body in 4 mm"),
    "S": Size((240, 200, 200), 3.0, "a torso in 3 mm"),
    "M": Size((480, 400, 400), 1.5, "a torso in 1.5 mm"),
    "L": Size((700, 400, 400), 1.5, "a trunk in 1.5 mm"),
    "XL": Size((531, 512, 512), 1.5, "a torso in 1.5 mm, wide field of view"),
    "tiny": Size((36, 24, 24), 8.0, "only to see that everything runs; its times mean nothing", paint_mm=12.0),
}


def make_pet(shape: Shape, voxel_mm: float, seed: int, paint_mm: float = PAINT_MM) -> Volume:
    """A PET [Bq/ml] that looks uncorrected: a phantom's uptake, dimmed with depth, noisy, blurred.

    No simulation, which takes minutes: no scan, no reconstruction, no time of flight; lungs do not shine through. It
    has a body's size, outline and contrast, which is what time and memory depend on. What a CT made of it looks like
    says nothing of a model.

    Args:
        shape: (z, y, x); a longer or wider grid than the body is filled up, a shorter one cuts it around its middle.
        voxel_mm: edge of the cubic voxel.
        seed: of body and noise.
        paint_mm: voxels that the body is painted in.
    """
    body = make_body(seed, paint_mm)
    inside = ndimage.binary_fill_holes(body.ct.array > AIR_HU)
    depth_cm = ndimage.distance_transform_edt(inside) * (paint_mm / 10)
    uptake = body.activity.array * np.exp(-ESCAPE * depth_cm)
    rng = np.random.default_rng(seed)
    uptake *= 1 + NOISE * rng.standard_normal(uptake.shape)
    blurred = ndimage.gaussian_filter(uptake, FWHM_MM / 2.355 / paint_mm)
    blurred += SCATTER * blurred[inside].mean()
    painted = np.ascontiguousarray(np.maximum(blurred, 0) * SUV_TO_BQ, np.float32)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    middle = body.activity.affine @ [*((np.array(painted.shape[::-1]) - 1) / 2), 1.0]
    affine[:3, 3] = middle[:3] - voxel_mm * (np.array(shape[::-1]) - 1) / 2
    matrix = ops.grid_matrix(affine, body.activity.affine)
    return Volume(ops.resample(painted, matrix, shape), affine, "Bq/ml")


def middle_part(pet: Volume, share: float) -> Volume:
    """The middle axial slices of a PET, one at least."""
    n = pet.shape[0]
    wanted = min(n, max(1, round(share * n)))
    start = (n - wanted) // 2
    affine = pet.affine.copy()
    affine[:3, 3] += affine[:3, 2] * start
    return Volume(np.ascontiguousarray(pet.array[start : start + wanted]), affine, pet.unit)


def stacked(pet: Volume, times: float) -> Volume:
    """A PET of `times` as many axial slices: its middle part, or itself and its mirror images on top of each other."""
    if times <= 1:
        return middle_part(pet, times)
    whole = [pet.array if i % 2 == 0 else pet.array[::-1] for i in range(ceil(times))]
    array = np.concatenate(whole)[: round(times * pet.shape[0])]
    return Volume(np.ascontiguousarray(array), pet.affine, pet.unit)


def magnified(pet: Volume, times: float) -> Volume:
    """A body of `times` the volume in voxels of the same size."""
    factor = times ** (1 / 3)
    z, y, x = (max(1, round(n * factor)) for n in pet.shape)
    matrix = np.diag([*((n / m) for n, m in zip(pet.shape[::-1], (x, y, z), strict=True)), 1.0])
    matrix[:3, 3] = (np.diag(matrix)[:3] - 1) / 2
    return Volume(ops.resample(pet.array, matrix, (z, y, x)), pet.affine, pet.unit)


@dataclass(frozen=True)
class Case:
    """A PET as a file that several processes read."""

    folder: Path

    @property
    def pet(self) -> Volume:
        facts = self.facts
        return Volume(np.load(self.folder / "pet.npy"), np.array(facts["affine"]), "Bq/ml")

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())


def save_case(folder: Path, name: str, pet: Volume, **facts: Any) -> Case:
    """Writes a PET and what is known of it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pet.npy", pet.array)
    known = {"name": name, "shape_zyx": list(pet.shape), "voxel_mm": pet.spacing[0], "affine": pet.affine.tolist()}
    write_json(folder / "case.json", {**known, **facts})
    return Case(folder)


def whole_view(pet: Volume, spacing: float, normaliser: Normaliser) -> tuple[NDArray[np.float32], Grid]:
    """The network's input over all of the PET's field of view, as one writes it who does not look for the body.

    Returns:
        [C, z, y, x] and its grid; inside the body's box what `preprocess.network_input` gives, but that positions count
        from the middle of the view.
    """
    grid = model_grid(pet, spacing)
    array = to_grid(pet, grid, 0.0)
    coarse = overview_level(spacing)
    reference = body_reference(pyramid(array, coarse)[coarse])
    channels = np.empty((normaliser.channels, *grid.shape), np.float32)
    for i, level in enumerate(normaliser.scales):
        channels[i] = compress(smooth(array, level) / np.float32(reference), normaliser.exponent)
    if normaliser.position:
        for i, distance in enumerate(position(grid), len(normaliser.scales)):
            channels[i] = distance
    return channels, grid


def spread_out(count: int, total: int) -> list[int]:
    """`count` slices of `total`, evenly spaced, none of the ends; all of them for 0 or too many."""
    if not 0 < count < total:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]
