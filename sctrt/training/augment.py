"""Another patient in another scan, made of a cached case: PET and CT are changed together, as bodies and scans differ.

What an image cannot tell, it is not asked for: other timing resolutions and count levels change a PET without
attenuation correction in ways that only a new simulation (`simulated.py`) or another scan shows. The noise here stands
for fewer counts in the reconstructed image: OSEM's noise is about proportional to the image (Barrett et al. 1994,
Phys. Med. Biol. 39:833).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from ..bundle import Normaliser
from ..preprocess import network_input
from ..units import HU_AIR, HU_MAX, HU_MIN, hu_to_network
from ..volume import Volume
from .cache import Box, CachedCase, box_in

MARGIN_MM = 24.0  # around the body box, in which a changed body may lie
SPLINE = 3  # order: linear interpolation would lower thin bone and smooth the noise
NOISE_FWHM_MM = 6.0  # the noise's grain, about the reconstruction's resolution
FWHM_PER_SIGMA = 2.3548
MIN_PART = 48  # voxels of z that a truncated scan keeps


class Augmentation(BaseModel):
    """How much is changed; every number 0 changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    truncated: float = Field(default=0.5, ge=0, le=1)  # share of the visits that see a part of z alone
    deformed: float = Field(default=0.5, ge=0, le=1)  # share of the visits whose body is moved and warped
    flip: float = Field(default=0.0, ge=0, le=1)  # of those, the share seen in a mirror, left for right
    rotation_degrees: float = Field(default=4.0, ge=0, le=45)  # standard deviation, about each axis
    stretch: float = Field(default=0.06, ge=0, le=0.3)  # standard deviation of the log, along each axis
    warp_mm: float = Field(default=5.0, ge=0)  # standard deviation of a smooth displacement
    warp_grid_mm: float = Field(default=80.0, gt=0)  # between the points at which it is drawn
    noise: float = Field(default=0.08, ge=0, le=1)  # largest relative standard deviation that is added
    gain: float = Field(default=0.12, ge=0, le=1)  # standard deviation of the log of the PET's scale


NO_AUGMENTATION = Augmentation(truncated=0, deformed=0, noise=0, gain=0)


def random_rows(z: int, rng: np.random.Generator) -> slice:
    """A random part of `z` slices, of MIN_PART or more where there are so many."""
    length = int(rng.integers(min(MIN_PART, z), z + 1))
    start = int(rng.integers(z - length + 1))
    return slice(start, start + length)


def changed(
    case: CachedCase, rows: slice, augmentation: Augmentation, spacing_mm: float, rng: np.random.Generator
) -> tuple[Volume, NDArray[np.float32]]:
    """The slices `rows` [z] of a case, moved, warped and made noisier.

    Returns:
        The PET, and the CT [z, y, x] HU on its grid.
    """
    pet, ct = part(case.volume(), rows), case.ct[rows].astype(np.float32)
    box = _wider(_box_in(case, rows), round(MARGIN_MM / spacing_mm), ct.shape)
    if rng.random() < augmentation.deformed and ct[box].size:
        at = deformation(ct[box].shape, augmentation, spacing_mm, rng)
        for array, outside, low, high in ((pet.array, 0.0, 0.0, np.inf), (ct, HU_AIR, HU_MIN, HU_MAX)):
            moved = ndimage.map_coordinates(array[box], at, order=SPLINE, mode="constant", cval=outside)
            array[box] = moved.clip(low, high)
    if augmentation.noise:
        amount = float(rng.uniform(0, augmentation.noise))
        pet.array[...] *= 1 + amount * _grain(pet.shape, spacing_mm, rng)
        np.maximum(pet.array, 0, out=pet.array)
    return pet, ct


def part(volume: Volume, rows: slice) -> Volume:
    """The slices `rows` [z] of a volume, as if no more had been scanned."""
    first, last, _ = rows.indices(volume.shape[0])
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    return Volume(volume.array[first:last], affine, volume.unit)


def network_case(
    pet: Volume, ct: NDArray[np.float32], spacing_mm: float, normaliser: Normaliser
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the network will see of a PET on its grid, and what it shall make of it.

    Args:
        pet: on the model's grid.
        ct: [z, y, x] HU on the same grid.

    Returns:
        PET [C, Z, Y, X] and CT [Z, Y, X] of the body box, network units.

    Raises:
        VolumeError: there is no body.
    """
    prepared = network_input(pet, spacing_mm, normaliser)
    return np.asarray(prepared.channels), hu_to_network(ct[box_in(prepared.grid, pet.affine)])


def deformation(
    shape: tuple[int, ...], augmentation: Augmentation, spacing_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Where each voxel of a changed body is taken from: coordinates [3, z, y, x] in voxels of the unchanged one."""
    middle = (np.array(shape) - 1) / 2
    axes = [np.arange(n, dtype=np.float32) - m for n, m in zip(shape, middle, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"))
    matrix = _rotation(np.radians(augmentation.rotation_degrees) * rng.standard_normal(3))
    matrix = matrix * np.exp(augmentation.stretch * rng.standard_normal(3))
    if rng.random() < augmentation.flip:
        matrix[:, 2] *= -1
    at = np.tensordot(matrix.astype(np.float32), offsets, axes=1) + middle[:, None, None, None].astype(np.float32)
    coarse = [max(2, 1 + round(n * spacing_mm / augmentation.warp_grid_mm)) for n in shape]
    for i in range(3):
        drawn = augmentation.warp_mm / spacing_mm * rng.standard_normal(coarse)
        at[i] += ndimage.zoom(drawn, np.array(shape) / coarse, order=SPLINE, grid_mode=True, mode="nearest")
    return at


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] about z, then y, then x, of coordinates (z, y, x)."""
    matrix = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _grain(shape: tuple[int, ...], spacing_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise [z, y, x] of mean 0 and standard deviation 1."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, NOISE_FWHM_MM / FWHM_PER_SIGMA / spacing_mm)
    return noise / max(float(noise.std()), 1e-6)


def _box_in(case: CachedCase, rows: slice) -> Box:
    """The body box in the slices `rows` of a case; perhaps empty."""
    first, last, _ = rows.indices(case.pet.shape[0])
    z, y, x = case.box
    low, high = (min(max(i, first), last) - first for i in (z.start, z.stop))
    return slice(low, high), y, x


def _wider(box: Box, margin: int, shape: tuple[int, ...]) -> Box:
    z, y, x = (
        slice(max(part.start - margin, 0), min(part.stop + margin, n)) for part, n in zip(box, shape, strict=True)
    )
    return z, y, x
