"""A CT from a label map of a body: its anatomy as it is; HU, fat and the thickness of compact bone are drawn.

Of an atlas such as XCAT's it makes what `body_from_ct` takes for a real CT: a skeleton of real shape, under other fat
and with other bone and lungs for each seed. Muscles, vessels and most organs are one lean tissue with fat strewn in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import VolumeError
from ..units import HU_AIR, HU_MAX, HU_MIN
from ..volume import Volume

# HU, the ranges in which a body's value is drawn: as CTs show these tissues, liver with and without contrast medium.
LEAN_HU = (40.0, 60.0)
FAT_HU = (-110.0, -90.0)
BRAIN_HU = 38.0
LIVER_HU = (50.0, 115.0)
LUNG_HU = (-870.0, -760.0)
GAS_HU = -985.0
COMPACT_BONE_HU = (350.0, 850.0)
SPONGY_BONE_HU = (110.0, 300.0)

SKIN_MM = 2.0
COMPACT_BONE_MM = (1.9, 3.1)  # thickness
FAT_SHELL_MM = (4.0, 22.0)  # beneath the skin
SHELL_FROM_BONE_MM = (4.0, 10.0)  # what of the shell lies closer to bone is muscle
INNER_FAT_FROM_BONE_MM = 6.0
INNER_FAT = (0.5, 1.5)  # standard deviations of noise above which lean tissue is fat: a third, or 7 % of it
BLUR = 0.6  # Gaussian sigma [voxels] of edges


@dataclass(frozen=True)
class LabelNames:
    """Which values of a label map name what; 0 is outside, every other value lean tissue."""

    skeleton: tuple[int, ...]
    lung: tuple[int, ...]
    gas: tuple[int, ...]
    brain: tuple[int, ...] = ()
    liver: tuple[int, ...] = ()


XCAT_MESH = LabelNames(skeleton=(7,), lung=(6,), gas=(2, 4), brain=(3,), liver=(5,))  # mesh50_XCAT_WholeBody_2mm_labels


def ct_from_labels(labels: Volume, seed: int, names: LabelNames = XCAT_MESH) -> Volume:
    """Draws a CT of a label map.

    Args:
        labels: integers [z, y, x], on isotropic voxels of some 2 mm: compact bone must be a voxel thick.
        seed: of HU, fat and bone.
        names: what the values mean.

    Returns:
        HU [z, y, x] on the same grid.

    Raises:
        VolumeError: voxels are not isotropic, or there is no skeleton.
    """
    spacing = np.array(labels.spacing)
    if not np.allclose(spacing, spacing[0], rtol=0.01):
        raise VolumeError(f"expected isotropic voxels of labels, got {spacing.round(3)} mm; resample them")
    painter = _Painter(np.rint(labels.array).astype(np.uint8), names, float(spacing[0]), np.random.default_rng(seed))
    return Volume(painter.hu(), labels.affine, "HU")


class _Painter:
    """Draws fields of one body."""

    def __init__(self, labels: NDArray[np.uint8], names: LabelNames, voxel_mm: float, rng: np.random.Generator) -> None:
        self.labels, self.names, self.voxel_mm, self.rng = labels, names, voxel_mm, rng
        self.bone = np.isin(labels, names.skeleton)
        if not self.bone.any():
            raise VolumeError(f"expected a skeleton of the values {names.skeleton} in the labels, got none")

    def hu(self) -> NDArray[np.float32]:
        """[z, y, x]"""
        hu = np.full(self.labels.shape, HU_AIR, np.float32)
        body = self.labels > 0
        lean = self.rng.uniform(*LEAN_HU) + 6 * self._noise(6)
        fat = self.rng.uniform(*FAT_HU) + 6 * self._noise(6)
        hu[body] = np.where(self._is_fat(body), fat, lean)[body]
        for values, painted in (
            (self.names.brain, BRAIN_HU),
            (self.names.liver, self.rng.uniform(*LIVER_HU)),
            (self.names.lung, self._lung()),
            (self.names.gas, GAS_HU),
            (self.names.skeleton, self._skeleton()),
        ):
            there = np.isin(self.labels, values)
            hu[there] = np.broadcast_to(painted, hu.shape)[there]
        return ndimage.gaussian_filter(hu, BLUR).clip(HU_MIN, HU_MAX)

    def _is_fat(self, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
        from_skin, from_bone = self._depth(body), self._depth(~self.bone)
        shell = from_skin < self.rng.uniform(*FAT_SHELL_MM) * np.exp(0.35 * self._noise(40))
        shell &= from_bone > self.rng.uniform(*SHELL_FROM_BONE_MM)
        inner = (self._noise(7) > self.rng.uniform(*INNER_FAT)) & (from_bone > INNER_FAT_FROM_BONE_MM)
        return (shell | inner) & (from_skin > SKIN_MM)

    def _lung(self) -> NDArray[np.float32]:
        density = self.rng.uniform(*LUNG_HU) + 35 * self._noise(12)
        return density + 60 * np.maximum(self._noise(2.5) - 1.2, 0)  # vessels

    def _skeleton(self) -> NDArray[np.float32]:
        is_compact = self._depth(self.bone) <= self.rng.uniform(*COMPACT_BONE_MM)
        compact = self.rng.uniform(*COMPACT_BONE_HU) + 120 * self._noise(6)
        spongy = self.rng.uniform(*SPONGY_BONE_HU) * (1 + 0.2 * self._noise(5))
        return np.where(is_compact, compact, spongy)

    def _depth(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Distance to what is outside of the mask [mm]."""
        return np.asarray(ndimage.distance_transform_edt(mask, sampling=self.voxel_mm))

    def _noise(self, sigma_mm: float) -> NDArray[np.float32]:
        """Gaussian random field of unit standard deviation."""
        white = self.rng.standard_normal(self.labels.shape, dtype=np.float32)
        field = ndimage.gaussian_filter(white, sigma_mm / self.voxel_mm)
        return field / field.std()
