"""The canvas a body is painted on: a warped grid, signed distances, and paint with a soft edge; it knows no anatomy.

Note [coordinates]: x [mm] grows to the patient's left, y [mm] to the back, and both are 0 at the centre;
u [mm] grows from the vertex down to the feet, against the z index. Every shape is given in (x, y, u).

Note [precision]: a seed names one body, so the arithmetic is part of the contract. Coordinates are float32,
and NumPy keeps float32 against a Python float but not against a NumPy scalar: casting one moves edges by an ulp.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from ..units import HU_AIR
from .labels import Tissue

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float] | NDArray  # (x, y, u), mm


EVERYWHERE: Box = (slice(None), slice(None), slice(None))

# The warp that makes no two bodies symmetric: (x, y, u) amplitude, and the size of one ripple.
WARP_MM = (4.0, 4.0, 5.0)
WARP_CELL_MM = 160.0
# A box is this much wider than its shape, to hold the warp and the soft edge.
BOX_MARGIN_MM = 16.0
# Compact bone holds few cells: uptake of every cortex.
CORTEX_SUV = 0.5
# Inside this fraction of an ellipsoid the first-order distance is useless, and a radial one serves.
ELLIPSOID_CORE = 0.3


class Shape(NamedTuple):
    """A solid: where it may be, and the signed distance to its surface there (negative inside)."""

    box: Box
    distance: NDArray  # [z, y, x] of the box, mm

    def grown(self, mm: float) -> Shape:
        """The solid with its surface moved out."""
        return Shape(self.box, self.distance - mm)

    def shrunk(self, mm: float) -> Shape:
        """The solid with its surface moved in."""
        return Shape(self.box, self.distance + mm)

    def within(self, *distances: NDArray) -> Shape:
        """The part of the solid where every given signed distance [mm], on its box, is negative too."""
        return Shape(self.box, intersection(self.distance, *distances))


def intersection(*distances: NDArray) -> NDArray:
    """Signed distance [mm] to the solid common to all of `distances`."""
    return reduce(np.maximum, distances)


def smooth_noise(
    rng: np.random.Generator,
    shape: Sequence[int],
    cell_voxels: float,
    amplitude: float,
) -> NDArray[np.float32]:
    """Random field: white noise on a coarse grid, interpolated.

    Args:
        rng: drawn from once for each coarse cell.
        shape: (z, y, x) of the field.
        cell_voxels: size of a coarse cell.
        amplitude: standard deviation at the coarse cells, in the unit wanted.

    Returns:
        [z, y, x] float32.
    """
    coarse_shape = [max(3, int(np.ceil(size / cell_voxels)) + 1) for size in shape]
    coarse = rng.standard_normal(coarse_shape).astype(np.float32)
    factors = [size / cells for size, cells in zip(shape, coarse_shape, strict=True)]
    order = 1 if min(coarse_shape) < 4 else 2
    fine = np.asarray(zoom(coarse, factors, order=order, mode="nearest", grid_mode=True))
    return (amplitude * fine[: shape[0], : shape[1], : shape[2]]).astype(np.float32)


class Canvas:
    """The three images being painted, and the grid they share.

    Args:
        rng: drawn from for the warp.
        shape: (z, y, x) voxels.
        voxel_mm: edge of the cubic voxel.
        top_mm: u of the highest slice (the last z index); negative above the vertex.

    Attributes:
        x, y, u: [z, y, x] float32 warped coordinates of each voxel, mm.
        x_axis, y_axis, u_axis: [x], [y], [z] float32 coordinates without the warp, mm.
        ct: [z, y, x] float32, HU, air at first.
        activity: [z, y, x] float32, SUV.
        labels: [z, y, x] uint8, `Tissue`.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], voxel_mm: float, top_mm: float) -> None:
        depth, height, width = shape
        self.shape = shape
        self.voxel_mm = voxel_mm
        self.x_axis = ((np.arange(width) - (width - 1) / 2) * voxel_mm).astype(np.float32)
        self.y_axis = ((np.arange(height) - (height - 1) / 2) * voxel_mm).astype(np.float32)
        self.u_axis = (top_mm + (depth - 1 - np.arange(depth)) * voxel_mm).astype(np.float32)
        warp_x, warp_y, warp_u = (self.noise(rng, WARP_CELL_MM, amplitude) for amplitude in WARP_MM)
        self.x = self.x_axis[None, None, :] + warp_x
        self.y = self.y_axis[None, :, None] + warp_y
        self.u = self.u_axis[:, None, None] + warp_u
        self.ct = np.full(shape, HU_AIR, np.float32)
        self.activity = np.zeros(shape, np.float32)
        self.labels = np.zeros(shape, np.uint8)

    def noise(self, rng: np.random.Generator, cell_mm: float, amplitude: float) -> NDArray[np.float32]:
        """`smooth_noise` over the whole grid, its cells `cell_mm` wide."""
        return smooth_noise(rng, self.shape, cell_mm / self.voxel_mm, amplitude)

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        u: tuple[float, float],
        margin_mm: float = BOX_MARGIN_MM,
    ) -> Box:
        """Slices [z, y, x] of the voxels within `margin_mm` of the ranges (low, high) [mm]; may be empty."""
        return _span(self.u_axis, *u, margin_mm), _span(self.y_axis, *y, margin_mm), _span(self.x_axis, *x, margin_mm)

    def coordinates(self, box: Box) -> tuple[NDArray, NDArray, NDArray]:
        """Warped (x, y, u) [mm] of the voxels of a box, each [z, y, x]."""
        return self.x[box], self.y[box], self.u[box]

    def ellipsoid(self, centre: Point, half_axes: Point, tilt: float = 0.0) -> Shape:
        """Ellipsoid; its distance is exact to first order near the surface.

        Args:
            centre: (x, y, u) [mm].
            half_axes: along (x, y, u) [mm].
            tilt: turn about y, from x towards u [rad].
        """
        (cx, cy, cu), (rx, ry, ru) = centre, half_axes
        smallest = min(rx, ry, ru)
        ex, ey, eu = (max(rx, ry, ru) * 1.15,) * 3 if tilt else (rx, ry, ru)
        box = self.box((cx - ex, cx + ex), (cy - ey, cy + ey), (cu - eu, cu + eu))
        x, y, u = self.coordinates(box)
        x, y, u = x - cx, y - cy, u - cu
        if tilt:
            x, u = np.cos(tilt) * x + np.sin(tilt) * u, -np.sin(tilt) * x + np.cos(tilt) * u
        radius = np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (u / ru) ** 2)  # 1 on the surface
        gradient = np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + (u / ru**2) ** 2) + 1e-6
        near = (radius - 1) * radius / gradient
        return Shape(box, np.where(radius > ELLIPSOID_CORE, near, -smallest * (1 - radius)))

    def capsule(self, start: Point, end: Point, radius: float, end_radius: float | None = None) -> Shape:
        """Rod with round ends from `start` to `end`, (x, y, u) [mm], its radius [mm] changing evenly along it."""
        end_radius = radius if end_radius is None else end_radius
        p, q = np.asarray(start, np.float32), np.asarray(end, np.float32)
        reach = max(radius, end_radius)
        x, y, u = ((min(low, high) - reach, max(low, high) + reach) for low, high in zip(p, q, strict=True))
        box = self.box(x, y, u)
        x, y, u = self.coordinates(box)
        d = q - p
        # Way-points may coincide: the floor keeps 0/0 out.
        length2 = max(float(d @ d), 1e-3)
        t = np.clip(((x - p[0]) * d[0] + (y - p[1]) * d[1] + (u - p[2]) * d[2]) / length2, 0, 1)
        to_axis = np.sqrt((x - p[0] - t * d[0]) ** 2 + (y - p[1] - t * d[1]) ** 2 + (u - p[2] - t * d[2]) ** 2)
        return Shape(box, to_axis - (radius + t * (end_radius - radius)))

    def coverage(self, distance: NDArray) -> NDArray:
        """Share 0..1 of each voxel inside a solid at signed distance `distance` [mm]: an edge one voxel wide."""
        return np.clip(0.5 - distance / self.voxel_mm, 0, 1)

    def fill(
        self,
        shape: Shape,
        hu: float | NDArray,
        suv: float | NDArray,
        tissue: Tissue,
        mask: float | NDArray = 1.0,
    ) -> None:
        """Paints a solid; `mask` is an opacity 0..1, or the voxels [z, y, x] of its box that may be painted."""
        self.paint(shape.box, self.coverage(shape.distance) * mask, hu, suv, tissue)

    def paint(self, box: Box, cover: NDArray, hu: float | NDArray, suv: float | NDArray, tissue: Tissue) -> None:
        """Blends HU and SUV into a box by the share `cover` (0..1, [z, y, x]); the label goes where that is most."""
        if cover.size == 0:
            return
        ct, activity = self.ct[box], self.activity[box]
        ct += cover * (hu - ct)
        activity += cover * (suv - activity)
        self.labels[box][cover > 0.5] = tissue

    def bone(self, shape: Shape, cortex_hu: float, cortex_mm: float, marrow_hu: float, marrow_suv: float = 1.2) -> None:
        """Paints a bone: a cortex `cortex_mm` thick about its marrow."""
        self.fill(shape, cortex_hu, CORTEX_SUV, Tissue.BONE)
        self.fill(shape.shrunk(cortex_mm), marrow_hu, marrow_suv, Tissue.MARROW)


def _span(axis: NDArray, low: float, high: float, margin: float) -> slice:
    inside = np.flatnonzero((axis >= low - margin) & (axis <= high + margin))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
