"""Lesions, in tissue that is there to hold them."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, Point, Shape
from .labels import Tissue
from .phantom import Lesion
from .sketch import Sketch, log_uniform

COUNT_RANGE = (2, 9)  # the upper end excluded
# Tissue a lesion may start in, and how often.
SITES = {Tissue.LUNG: 0.3, Tissue.LIVER: 0.2, Tissue.MARROW: 0.3, Tissue.SOFT: 0.2}
TOP_LEVEL_MM, BOTTOM_LEVEL_MM = 300, 900  # neither in the head nor in the legs
RADIUS_MM = (5, 16)
ECCENTRICITY = (0.75, 1.25)  # of each half-axis against the radius
SUV = (3.5, 14)


def draw_lesions(sketch: Sketch, count: int | None) -> tuple[Lesion, ...]:
    """Paints `count` lesions (None: two to eight), fewer if their tissue is missing."""
    canvas, rng, k = sketch.canvas, sketch.rng, sketch.person.scale
    levels = (canvas.u > TOP_LEVEL_MM * k) & (canvas.u < BOTTOM_LEVEL_MM * k)
    if count is None:
        count = int(rng.integers(*COUNT_RANGE))
    lesions = []
    for _ in range(count):
        site = list(SITES)[rng.choice(len(SITES), p=list(SITES.values()))]
        candidates = np.flatnonzero((canvas.labels == site) & levels)
        if candidates.size:
            z, y, x = np.unravel_index(candidates[rng.integers(candidates.size)], canvas.shape)
            centre = np.array([canvas.x_axis[x], canvas.y_axis[y], canvas.u_axis[z]])
            lesions.append(_draw_lesion(canvas, rng, site, centre))
    return tuple(lesions)


def _draw_lesion(canvas: Canvas, rng: np.random.Generator, site: Tissue, centre: Point) -> Lesion:
    radius = rng.uniform(*RADIUS_MM)
    suv = log_uniform(rng, *SUV)
    shape = canvas.ellipsoid(centre, radius * rng.uniform(*ECCENTRICITY, 3))
    # All are drawn, so that what follows does not depend on the site.
    hu = {
        Tissue.LUNG: rng.normal(35, 10),
        Tissue.LIVER: rng.normal(40, 8),
        Tissue.SOFT: rng.normal(42, 6),
        Tissue.MARROW: rng.choice([60.0, 500.0]),  # lytic or sclerotic
    }
    canvas.fill(shape, hu[site], suv, Tissue.LESION)
    return Lesion(site.name.lower(), float(radius), float(suv), _innermost_voxel(shape))


def _innermost_voxel(shape: Shape) -> tuple[int, int, int]:
    """Index [z, y, x] of the voxel deepest in a solid: the warp has moved it from where it was meant to be."""
    deepest = np.unravel_index(np.argmin(shape.distance), shape.distance.shape)
    z, y, x = (int(side.start + step) for side, step in zip(shape.box, deepest, strict=True))
    return z, y, x
