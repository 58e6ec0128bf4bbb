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

    pet: NDArray[np.float32]  # [C, Z, Y, X] in [-1, 1], one channel a scale
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
    """The volume sampled on `grid` (trilinear), `fill` outside; axes finer than the grid are averaged first.

    Returns:
        [z, y, x] float32 in the volume's unit.
    """
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    affine = volume.affine
    while True:
        ratio = grid.spacing / np.linalg.norm(affine[:3, :3], axis=0)  # (x, y, z)
        halve = (ratio > 1.5) & (np.array(array.shape[::-1]) > 1)
        if not halve.any():
            return ops.resample(array, ops.grid_matrix(grid.affine, affine), grid.shape, fill=fill)
        step = np.where(halve, 2.0, 1.0)
        pair = np.diag([*step, 1.0])  # coarse voxel (x, y, z) -> fine voxel, between each two
        pair[:3, 3] = (step - 1) / 2
        shape = tuple(ceil(n / s) for n, s in zip(array.shape, step[::-1], strict=True))
        array = ops.resample(array, pair, shape)
        affine = affine @ pair


def smooth(array: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    """[z, y, x] averaged over 2^level voxels a side and brought back by trilinear interpolation."""
    coarse = array
    for _ in range(level):
        pair = np.diag([2.0, 2.0, 2.0, 1.0])
        pair[:3, 3] = 0.5
        coarse = ops.resample(coarse, pair, tuple(ceil(n / 2) for n in coarse.shape))
    if level == 0:
        return array
    factor = 2.0**level
    back = np.diag([1 / factor, 1 / factor, 1 / factor, 1.0])
    back[:3, 3] = 0.5 / factor - 0.5
    return ops.resample(coarse, back, array.shape)


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
    """The (z, y, x) box around the largest object, with a margin, within the volume.

    Raises:
        VolumeError: that object is smaller than half a litre.
    """
    mask = ndimage.binary_opening(smooth(pet, 1) > BOX_THRESHOLD * reference)
    objects, n = ndimage.label(mask)
    sizes = np.bincount(objects.ravel(), minlength=2)[1:]
    volume_ml = sizes.max() * spacing**3 / 1000
    if n == 0 or volume_ml < MIN_BODY_ML:
        raise VolumeError(
            f"expected a body of at least {MIN_BODY_ML:.0f} ml in the PET, found {volume_ml:.0f} ml; "
            "check the voxel size in the header and that the volume is a whole-body PET"
        )
    box = ndimage.find_objects(objects)[np.argmax(sizes)]
    margin = ceil(BOX_MARGIN_MM / spacing)
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, pet.shape, strict=True))


def compress(ratio: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """PET relative to the body's median -> [-1, 1): 2 r^p / (1 + r^p) - 1."""
    power = np.maximum(ratio, 0) ** np.float32(exponent)
    return 1 - 2 / (1 + power)


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
    channels = [compress(smooth(array, level)[box] / reference, normaliser.exponent) for level in normaliser.scales]
    return NetworkInput(np.stack(channels).astype(np.float32), grid.crop(box), reference)
