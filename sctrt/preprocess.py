"""From a PET volume to the network's input: model grid, body box, normaliser. Pure NumPy and our kernels.

Everything is decided in world coordinates, so a body stored in another orientation gives the same input.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from . import ops
from .bundle import Normaliser
from .errors import VolumeError
from .volume import Volume

BOX_THRESHOLD = 0.45  # of the body's median; scatter outside the body stays below
BOX_MARGIN_MM = 12.0
MIN_BODY_ML = 500.0
MIN_PART_ML = 100.0  # smaller objects are noise outside the body
POSITION_MM = 250.0
AIR_INPUT = -1.0  # network units


@dataclass(frozen=True)
class Grid:
    """An axis-aligned LPS grid with cubic voxels."""

    affine: NDArray[np.float64]  # [4, 4] voxel (x, y, z) -> LPS mm
    shape: tuple[int, int, int]  # (z, y, x)

    @property
    def spacing(self) -> float:
        """Voxel size [mm]."""
        return float(self.affine[0, 0])

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """The sub-grid of a (z, y, x) box."""
        start = np.array([s.start for s in box[::-1]])
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        return Grid(affine, tuple(s.stop - s.start for s in box))


@dataclass(frozen=True)
class NetworkInput:
    """What the network sees of one PET volume."""

    channels: NDArray[np.float32]  # [C, Z, Y, X] in [-1, 1]: the PET at each scale, then perhaps x and y
    grid: Grid  # of the body box
    reference: float  # the PET value that was mapped to the curve's middle, in the PET's unit


def model_grid(volume: Volume, spacing: float) -> Grid:
    """The LPS grid of `spacing` mm that covers the volume, centred on it."""
    z, y, x = volume.shape
    edges = np.array([(i, j, k, 1) for i in (-0.5, x - 0.5) for j in (-0.5, y - 0.5) for k in (-0.5, z - 0.5)])
    world = (volume.affine @ edges.T)[:3]
    low, high = world.min(axis=1), world.max(axis=1)
    count = np.array([max(1, ceil(round(extent, 3) / spacing - 1e-3)) for extent in high - low])
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high) / 2 - spacing * (count - 1) / 2
    return Grid(affine, (int(count[2]), int(count[1]), int(count[0])))


def to_grid(volume: Volume, grid: Grid, fill: float) -> NDArray[np.float32]:
    """The volume sampled on `grid` (trilinear), `fill` outside; finer voxels than the grid's are averaged.

    Returns:
        [z, y, x] float32 in the volume's unit.
    """
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    step = np.abs(ops.grid_matrix(grid.affine, volume.affine)[:3, :3]).max(axis=0)  # volume voxels a grid voxel
    parts = np.maximum(1, np.rint(step)).astype(int)  # (x, y, z) samples a grid voxel
    sub = np.diag([*(1 / parts), 1.0])  # sample (x, y, z) -> grid voxel
    sub[:3, 3] = (1 / parts - 1) / 2
    matrix = ops.grid_matrix(grid.affine @ sub, volume.affine)
    (pz, py, px), (z, y, x) = parts[::-1], grid.shape
    samples = ops.resample(array, matrix, (z * pz, y * py, x * px), fill=fill)
    return samples if parts.max() == 1 else samples.reshape(z, pz, y, py, x, px).mean(axis=(1, 3, 5))


def pyramid(array: NDArray[np.float32], levels: int) -> list[NDArray[np.float32]]:
    """[z, y, x] and, for each level from 1 on, its averages over 2^level voxels a side."""
    pair = np.diag([2.0, 2.0, 2.0, 1.0])
    pair[:3, 3] = 0.5
    averages = [array]
    for _ in range(levels):
        averages.append(ops.resample(averages[-1], pair, tuple(ceil(n / 2) for n in averages[-1].shape)))
    return averages


def level_matrix(level: int, start: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.float64]:
    """From voxels of a box of the finest grid, whose first one is `start` (z, y, x), to those of a pyramid's level."""
    factor = 2.0**level
    matrix = np.diag([1 / factor, 1 / factor, 1 / factor, 1.0])
    matrix[:3, 3] = (np.array(start[::-1]) + 0.5) / factor - 0.5
    return matrix


def smooth(array: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    """[z, y, x] averaged over 2^level voxels a side and brought back by trilinear interpolation."""
    return array if level == 0 else ops.resample(pyramid(array, level)[level], level_matrix(level), array.shape)


def body_reference(pet: NDArray[np.float32]) -> float:
    """Median PET value of the body: the voxels above Otsu's threshold on the cube root.

    Raises:
        VolumeError: there is no signal, or no contrast.
    """
    root = np.cbrt(np.maximum(pet, 0))
    if root.max() <= 0:
        raise VolumeError("expected a PET volume with signal, got no positive voxel; check that the file holds the PET")
    if root.min() == root.max():
        raise VolumeError("expected a PET volume with a body, got the same value everywhere; check the file")
    return float(np.median(pet[root > threshold_otsu(root)]))


def body_box(pet: NDArray[np.float32], reference: float, spacing: float) -> tuple[slice, slice, slice]:
    """The (z, y, x) box around the body and its parts (legs, arms lying apart), with a margin, within the volume.

    Raises:
        VolumeError: the parts together are smaller than half a litre.
    """
    mask = ndimage.binary_opening(smooth(pet, 1) > BOX_THRESHOLD * reference)
    objects, n = ndimage.label(mask)
    sizes_ml = np.bincount(objects.ravel(), minlength=n + 1) * spacing**3 / 1000
    parts = [i for i in range(1, n + 1) if sizes_ml[i] >= MIN_PART_ML]
    if sizes_ml[parts].sum() < MIN_BODY_ML:
        raise VolumeError(
            f"expected a body of at least {MIN_BODY_ML:.0f} ml in the PET, found {sizes_ml[parts].sum():.0f} ml; "
            "check the voxel size in the header and that the volume is a whole-body PET"
        )
    boxes = ndimage.find_objects(objects)
    margin = ceil(BOX_MARGIN_MM / spacing)
    start = np.min([[s.start for s in boxes[i - 1]] for i in parts], axis=0) - margin
    stop = np.max([[s.stop for s in boxes[i - 1]] for i in parts], axis=0) + margin
    z, y, x = (slice(max(0, int(a)), min(n, int(b))) for a, b, n in zip(start, stop, pet.shape, strict=True))
    return z, y, x


def compress(ratio: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """PET relative to the body's median -> [-1, 1): 2 r^p / (1 + r^p) - 1, as ops.resample does it on the way."""
    power = np.maximum(ratio, 0) ** np.float32(exponent)
    return (1 - 2 / (1 + power)).astype(np.float32)


def network_input(pet: Volume, spacing: float, normaliser: Normaliser) -> NetworkInput:
    """Resamples, normalises and crops a PET volume for the network.

    Args:
        pet: any unit, any grid.
        spacing: of the model [mm].
        normaliser: from the model's manifest.

    Raises:
        VolumeError: no signal, or no body.
    """
    grid = model_grid(pet, spacing)
    array = to_grid(pet, grid, fill=0.0)
    reference = body_reference(array)
    box = body_box(array, reference, spacing)
    grid = grid.crop(box)
    start = tuple(s.start for s in box)
    levels = pyramid(array, max(normaliser.scales))
    channels = np.empty((normaliser.channels, *grid.shape), np.float32)
    for level, channel in zip(normaliser.scales, channels, strict=False):  # crops, brings back and compresses in one
        back = level_matrix(level, start)
        exponent = normaliser.exponent
        ops.resample(levels[level], back, grid.shape, reference=reference, exponent=exponent, out=channel)
    if normaliser.position:
        channels[-2:] = position(grid)
    return NetworkInput(channels, grid, reference)


def position(grid: Grid) -> list[NDArray[np.float32]]:
    """Distance from the box's middle to the left and to the back, each [z, y, x] in units of `POSITION_MM`, clipped.

    A sagittal or coronal slice cannot tell otherwise where in the body it lies. There is none along z, whose
    field of view differs from scan to scan.
    """
    _, ny, nx = grid.shape
    x, y = ((np.arange(n) - (n - 1) / 2) * grid.spacing / POSITION_MM for n in (nx, ny))
    planes = np.broadcast_to(x, (ny, nx)), np.broadcast_to(y[:, None], (ny, nx))
    return [np.broadcast_to(plane.clip(-1, 1).astype(np.float32), grid.shape) for plane in planes]
