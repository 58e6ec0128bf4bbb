"""From a PET volume to the network's input: model grid, body box, normaliser. Our kernels, on either device.

Everything is decided in world coordinates, so a body stored in another orientation gives the same input. What is to
be decided is decided on the host, on an overview of voxels of 4 mm or more.
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
from .device import Array, Device, Host
from .domain import Features, features
from .errors import VolumeError
from .volume import Volume

BOX_THRESHOLD = 0.45  # of the body's median; scatter outside the body stays below
BOX_MARGIN_MM = 12.0
MIN_BODY_ML = 500.0
MIN_PART_ML = 100.0  # smaller objects are noise outside the body
POSITION_MM = 250.0
AIR_INPUT = -1.0  # network units
OVERVIEW_MM = 4.0  # voxels of the overview are at least as large

Occupied = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]  # of z, y, x: which slices hold body


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

    channels: Array  # [C, Z, Y, X] float32 in [-1, 1], on the device: the PET at each scale, then perhaps x and y
    grid: Grid  # of the body box
    occupied: Occupied  # of the box's slices along z, y and x, those with body or within the margin of one
    reference: float  # the PET value that was mapped to the curve's middle, in the PET's unit
    features: Features  # of the PET, by which a scan unlike those trained on can be told


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
    return sample(np.ascontiguousarray(volume.array, dtype=np.float32), volume.affine, grid, fill)


def sample(array: Array, affine: NDArray[np.float64], grid: Grid, fill: float, stream: int = 0) -> Array:
    """`to_grid` of an array [z, y, x] float32 where it lies, on a host or a GPU.

    Averages are NumPy's or CuPy's, which may differ in the last place.
    """
    parts = samples_per_voxel(affine, grid)
    sub = np.diag([*(1 / parts), 1.0])  # sample (x, y, z) -> grid voxel
    sub[:3, 3] = (1 / parts - 1) / 2
    matrix = ops.grid_matrix(grid.affine @ sub, affine)
    (pz, py, px), (z, y, x) = parts[::-1].tolist(), grid.shape
    samples = ops.resample(array, matrix, (z * pz, y * py, x * px), fill=fill, stream=stream)
    return samples if parts.max() == 1 else samples.reshape(z, pz, y, py, x, px).mean(axis=(1, 3, 5))


def samples_per_voxel(affine: NDArray[np.float64], grid: Grid) -> NDArray[np.int_]:
    """How many samples along (x, y, z) are averaged in a voxel of `grid`, about one a voxel of the volume."""
    step = np.abs(ops.grid_matrix(grid.affine, affine)[:3, :3]).max(axis=0)  # volume voxels a grid voxel
    return np.maximum(1, np.rint(step)).astype(int)


def pyramid(array: Array, levels: int, stream: int = 0) -> list[Array]:
    """[z, y, x] and, for each level from 1 on, its averages over 2^level voxels a side."""
    pair = np.diag([2.0, 2.0, 2.0, 1.0])
    pair[:3, 3] = 0.5
    averages = [array]
    for _ in range(levels):
        half = tuple(ceil(n / 2) for n in averages[-1].shape)
        averages.append(ops.resample(averages[-1], pair, half, stream=stream))
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


def occupied_slices(pet: NDArray[np.float32], reference: float, spacing: float) -> Occupied:
    """Which slices along z, y and x hold the body or its parts (legs, arms lying apart), or lie within the margin.

    Raises:
        VolumeError: the parts together are smaller than half a litre.
    """
    mask = opened(smooth(pet, 1) > BOX_THRESHOLD * reference)
    objects, n = ndimage.label(mask)
    sizes_ml = np.bincount(objects.ravel(), minlength=n + 1) * spacing**3 / 1000
    parts = [i for i in range(1, n + 1) if sizes_ml[i] >= MIN_PART_ML]
    if sizes_ml[parts].sum() < MIN_BODY_ML:
        raise VolumeError(
            f"expected a body of at least {MIN_BODY_ML:.0f} ml in the PET, found {sizes_ml[parts].sum():.0f} ml; "
            "check the voxel size in the header and that the volume is a whole-body PET"
        )
    body = np.isin(objects, parts)
    margin = ceil(BOX_MARGIN_MM / spacing)
    z, y, x = (ndimage.binary_dilation(body.any(axis=others), iterations=margin) for others in ((1, 2), (0, 2), (0, 1)))
    return z, y, x


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of [z, y, x] that lie in a cross of 7 which fits into the mask: SciPy's binary_opening, but fast."""
    return _with_neighbours(_with_neighbours(mask, np.logical_and), np.logical_or)


def _with_neighbours(mask: NDArray[np.bool_], combine: np.ufunc) -> NDArray[np.bool_]:
    """Each voxel combined with the six beside it; outside there are none."""
    padded, found = np.pad(mask, 1), mask.copy()
    for axis in range(3):
        for start in (0, 2):
            beside = [slice(1, -1)] * 3
            beside[axis] = slice(start, start + mask.shape[axis])
            combine(found, padded[tuple(beside)], out=found)
    return found


def body_box(occupied: Occupied) -> tuple[slice, slice, slice]:
    """The (z, y, x) box from the first to the last occupied slice along each axis."""
    z, y, x = (slice(int(held[0]), int(held[-1]) + 1) for held in map(np.flatnonzero, occupied))
    return z, y, x


def compress(ratio: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """PET relative to the body's median -> [-1, 1): 2 r^p / (1 + r^p) - 1, as ops.resample does it on the way."""
    power = np.maximum(ratio, 0) ** np.float32(exponent)
    return (1 - 2 / (1 + power)).astype(np.float32)


def network_input(pet: Volume, spacing: float, normaliser: Normaliser, device: Device | None = None) -> NetworkInput:
    """Resamples, normalises and crops a PET volume for the network.

    The PET goes to the device once; only the overview comes back.

    Args:
        pet: any unit, any grid.
        spacing: of the model [mm].
        normaliser: from the model's manifest.
        device: where the work is done and the channels stay; None means the host.

    Raises:
        VolumeError: no signal, or no body.
        OutOfMemory: the device has too little memory.
    """
    device = device or Host()
    with device:
        grid = model_grid(pet, spacing)
        uploaded = device.put(np.ascontiguousarray(pet.array, dtype=np.float32))
        array = sample(uploaded, pet.affine, grid, 0.0, device.stream)
        del uploaded
        coarse = overview_level(spacing)
        levels = pyramid(array, max(coarse, *normaliser.scales), device.stream)
        overview = device.get(levels[coarse])
        reference = body_reference(overview)
        overview_mm = spacing * 2**coarse
        occupied = _finer(occupied_slices(overview, reference, overview_mm), coarse, grid.shape)
        seen = features(overview, overview_mm, reference, pet.spacing, length_mm=grid.shape[0] * spacing)
        box = body_box(occupied)
        channels = _channels(levels, grid.crop(box), box, reference, normaliser, device)
    z, y, x = (held[part] for held, part in zip(occupied, box, strict=True))
    return NetworkInput(channels, grid.crop(box), (z, y, x), reference, seen)


def overview_level(spacing: float) -> int:
    """The first level of the pyramid at which voxels are OVERVIEW_MM or larger."""
    return max(0, ceil(np.log2(OVERVIEW_MM / spacing) - 1e-6))


def _finer(occupied: Occupied, level: int, shape: tuple[int, int, int]) -> Occupied:
    """Occupied slices of a pyramid's level as those of the finest grid."""
    z, y, x = (np.repeat(held, 2**level)[:n] for held, n in zip(occupied, shape, strict=True))
    return z, y, x


def _channels(
    levels: list[Array],
    grid: Grid,
    box: tuple[slice, slice, slice],
    reference: float,
    normaliser: Normaliser,
    device: Device,
) -> Array:
    """[C, Z, Y, X]: each level cropped, brought back to the grid and compressed in one go; then the position."""
    channels = device.empty((normaliser.channels, *grid.shape))
    z, y, x = (part.start for part in box)
    for i, level in enumerate(normaliser.scales):
        ops.resample(
            levels[level],
            level_matrix(level, (z, y, x)),
            grid.shape,
            reference=reference,
            exponent=normaliser.exponent,
            out=channels[i],
            stream=device.stream,
        )
    if normaliser.position:
        for i, distance in enumerate(position(grid), len(normaliser.scales)):
            channels[i][...] = device.put(distance)
    return channels


def position(grid: Grid) -> list[NDArray[np.float32]]:
    """Distance from the box's middle to the left [x] and to the back [y, 1], in units of `POSITION_MM`, clipped.

    A sagittal or coronal slice cannot tell otherwise where in the body it lies. There is none along z, whose
    field of view differs from scan to scan.
    """
    _, ny, nx = grid.shape
    x, y = ((np.arange(n) - (n - 1) / 2) * grid.spacing / POSITION_MM for n in (nx, ny))
    x, y = (distance.clip(-1, 1).astype(np.float32) for distance in (x, y))
    return [x, y[:, None]]
