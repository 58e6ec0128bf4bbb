"""Lungs with their vessels, the heart, the great vessels, the airways and the oesophagus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .cage import Cage
from .canvas import EVERYWHERE, Shape, intersection
from .labels import Tissue
from .sketch import SIDES, Profile, Sketch, log_uniform
from .torso import FAR_OUTSIDE, Outline

LUNG_TOP_MM = 300
MEDIASTINUM_HALF_WIDTH: Profile = ((290, 60), (320, 42), (360, 34), (420, 30), (470, 36), (560, 36), (700, 30))
PULMONARY_VESSELS_PER_LUNG = 26
HEART_TILT = 0.6  # rad, of the heart's long axis out of the horizontal
HEART_HALF_AXES_MM = (50, 42, 54)
# The left ventricle along the heart's own axes, the radius that distances are scaled by, and the cavity's share of it.
VENTRICLE_CENTRE_MM = (14, -2, 8)
VENTRICLE_HALF_AXES_MM = (40, 33, 37)
VENTRICLE_RADIUS_MM = 34
VENTRICLE_CAVITY = 0.68
# Way-points (x, y, level) and radius [mm] of the vessels in the trunk.
GREAT_VESSELS = {
    "ascending aorta": (((4, -8, 360), (6, -14, 400), (4, -16, 440)), 15),
    "arch and descending aorta": (((6, -10, 362), (18, 22, 372), (22, 30, 420), (14, 28, 560), (6, 18, 700)), 12.5),
    "superior vena cava": (((-12, -16, 345), (-16, -16, 440)), 10),
    "inferior vena cava": (((-14, 22, 560), (-12, 20, 720)), 11),
}
NECK_VESSELS = ((24, 4.5), (32, 6))  # |x| and radius [mm]: carotid artery, jugular vein
CARINA_MM = 392  # level at which the windpipe forks


@dataclass(frozen=True)
class Blood:
    """HU and SUV of blood in one body."""

    hu: float
    suv: float


@dataclass(frozen=True, eq=False)
class Heart:
    """The heart's place.

    Args:
        axes: coordinates [z, y, x] mm along its own three axes, from its centre.
        distance: [z, y, x] mm to its surface, negative inside.
    """

    axes: tuple[NDArray, NDArray, NDArray]
    distance: NDArray


def place_heart(sketch: Sketch) -> Heart:
    """Draws the heart's place and size; paints nothing."""
    canvas, rng, k = sketch.canvas, sketch.rng, sketch.person.scale
    centre = np.array([28 * sketch.build.lean, -22, 470 * k]) + rng.normal(0, 4, 3)
    half_axes = np.array(HEART_HALF_AXES_MM) * rng.uniform(0.92, 1.12) * k**0.5
    x, y, u = canvas.x - centre[0], canvas.y - centre[1], canvas.u - centre[2]
    cos, sin = np.cos(HEART_TILT), np.sin(HEART_TILT)
    x, u = cos * x + sin * u, -sin * x + cos * u
    radius = np.sqrt((x / (half_axes[0] * 1.18)) ** 2 + (y / half_axes[1]) ** 2 + (u / (half_axes[2] * 0.9)) ** 2)
    return Heart(axes=(x, y, u), distance=(radius - 1) * half_axes.min())


def draw_lungs(sketch: Sketch, outline: Outline, cage: Cage, diaphragm: NDArray, heart: Heart) -> None:
    """Paints both lungs into what the cage leaves beside the mediastinum: denser and busier towards the back."""
    canvas, rng = sketch.canvas, sketch.rng
    lungs = intersection(
        cage.distance + 3,
        canvas.u - diaphragm,
        -_mediastinum(sketch),
        -heart.distance - 2,
        LUNG_TOP_MM * sketch.person.scale - canvas.u,
    )
    hu, suv = rng.uniform(-840, -700), rng.uniform(0.35, 0.6)
    texture = canvas.noise(rng, 14, 22) + (canvas.y / 90 * 45) + rng.normal(0, 5)
    shape = Shape(EVERYWHERE, np.where(outline.inside_levels, lungs, FAR_OUTSIDE))
    canvas.fill(shape, hu + texture, suv * (1 + 0.25 * canvas.y / 90), Tissue.LUNG)
    _draw_pulmonary_vessels(sketch)


def _mediastinum(sketch: Sketch) -> NDArray:
    """Signed distance [mm] to the tissue between the lungs: a slab about the midline, and the spine."""
    x, y = sketch.canvas.x, sketch.canvas.y
    half_width = sketch.profile(MEDIASTINUM_HALF_WIDTH) * (0.75 + 0.35 * np.clip(-y / 60, 0, 1))
    spine = np.sqrt((x / 1.25) ** 2 + (y - 78 * sketch.build.lean) ** 2) - 36
    return np.minimum(np.abs(x - 4) - half_width, spine)


def _draw_pulmonary_vessels(sketch: Sketch) -> None:
    canvas, rng, k = sketch.canvas, sketch.rng, sketch.person.scale
    lung = canvas.labels == Tissue.LUNG
    for side in SIDES:
        for _ in range(PULMONARY_VESSELS_PER_LUNG):
            hilum = np.array([side * 40, rng.normal(8, 12), 415 * k + rng.normal(0, 18)])
            way = rng.standard_normal(3) * [0.5, 0.8, 1]
            way[0] = side * abs(way[0]) + side * 0.5  # out of the mediastinum
            way /= np.linalg.norm(way)
            fork = hilum + way * rng.uniform(25, 55)
            end = fork + (way + 0.5 * rng.standard_normal(3)) * rng.uniform(20, 40)
            trunk = canvas.capsule(hilum, fork, rng.uniform(3, 6), 2.2)
            for vessel in (trunk, canvas.capsule(fork, end, 2.2, 1.2)):
                canvas.fill(vessel, 40, 1.3, Tissue.BLOOD, mask=lung[vessel.box])


def draw_heart(sketch: Sketch, heart: Heart, diaphragm: NDArray) -> Blood:
    """Draws what blood is in this body, and paints the heart: blood, and the left ventricle's wall in it."""
    canvas, rng = sketch.canvas, sketch.rng
    suv = rng.uniform(1.4, 2.0)
    blood = Blood(hu=rng.normal(42, 4), suv=suv)
    cover = canvas.coverage(heart.distance) * (canvas.u < diaphragm + 12)
    canvas.paint(EVERYWHERE, cover, blood.hu, blood.suv, Tissue.BLOOD)

    offsets = zip(heart.axes, VENTRICLE_CENTRE_MM, VENTRICLE_HALF_AXES_MM, strict=True)
    x, y, u = (((along - centre) / half_axis) ** 2 for along, centre, half_axis in offsets)
    radius = np.sqrt(x + y + u)
    wall = Shape(EVERYWHERE, (radius - 1) * VENTRICLE_RADIUS_MM)
    cavity = Shape(EVERYWHERE, (radius - VENTRICLE_CAVITY) * VENTRICLE_RADIUS_MM)
    in_heart = cover > 0.3
    canvas.fill(wall, blood.hu + 6, log_uniform(rng, 1.0, 9), Tissue.HEART, mask=in_heart)
    canvas.fill(cavity, blood.hu, blood.suv, Tissue.BLOOD, mask=in_heart)
    return blood


def draw_great_vessels(sketch: Sketch, blood: Blood) -> None:
    """Paints aorta and venae cavae, and the vessels of the neck."""
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    for points, radius in GREAT_VESSELS.values():
        way = [(x * lean, y * lean, level * k) for x, y, level in points]
        for start, end in pairwise(way):
            canvas.fill(canvas.capsule(start, end, radius), blood.hu, blood.suv, Tissue.BLOOD)
    for side in SIDES:
        for x, radius in NECK_VESSELS:
            vessel = canvas.capsule((side * x, -4, 200 * k), (side * x * 0.6, -8, 345 * k), radius)
            canvas.fill(vessel, blood.hu, blood.suv, Tissue.BLOOD)


def draw_airways(sketch: Sketch) -> None:
    """Paints windpipe and main bronchi, then the oesophagus behind them."""
    canvas, k = sketch.canvas, sketch.person.scale
    carina = CARINA_MM * k
    windpipe = canvas.capsule((0, -6, 225 * k), (2, 10, carina), 9.5)
    canvas.fill(windpipe.grown(2), 30, 0.8, Tissue.SOFT)
    canvas.fill(windpipe, -1000, 0, Tissue.GAS)
    for side in SIDES:
        bronchus = canvas.capsule((2, 10, carina), (side * 36, 14, carina + 28), 7, 5)
        canvas.fill(bronchus, -990, 0, Tissue.GAS)
    oesophagus = canvas.capsule((6, 26, 250 * k), (10, 26, 540 * k), 8)
    canvas.fill(oesophagus, 35, 1.3, Tissue.SOFT)
