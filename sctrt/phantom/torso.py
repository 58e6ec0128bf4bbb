"""The trunk's outline, the neck and the breasts: skin, fat under it, and lean tissue within."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .canvas import EVERYWHERE, Shape
from .labels import Tissue
from .sketch import SIDES, Profile, Sketch

# Half-axes [mm] of the lean trunk, from the root of the neck to the perineum.
HALF_WIDTH: Profile = (
    (285, 55), (305, 95), (325, 150), (350, 172), (400, 158), (470, 155), (560, 148), (650, 140),
    (720, 146), (800, 160), (860, 168), (900, 166), (935, 150), (965, 90), (985, 20),
)  # fmt: skip
HALF_DEPTH: Profile = (
    (285, 55), (310, 66), (340, 84), (400, 98), (470, 106), (560, 104), (650, 98), (720, 96),
    (800, 102), (860, 104), (900, 98), (935, 84), (965, 50), (985, 12),
)  # fmt: skip
# Share of the body's fat thickness at each level, and how far that fat pushes the outline forward.
FAT_SHARE: Profile = (
    (285, 0.3), (340, 0.5), (450, 0.7), (600, 1.0), (720, 1.25), (830, 1.3), (900, 1.0), (960, 0.3), (1100, 0.1),
)  # fmt: skip
FORWARD_SHARE: Profile = ((400, 0), (600, 1), (760, 1.3), (900, 0.3), (1000, 0))

TOP_LEVEL_MM, BOTTOM_LEVEL_MM = 283, 985
CROSS_SECTION_EXPONENT = 2.45  # between an ellipse (2) and a rectangle
BELLY_LEVEL_MM, BELLY_HEIGHT_MM = 690, 110
BELLY_BMI = 24  # no belly below
BELLY_MM_PER_BMI = 1.6
# Distance given to voxels that no part of the trunk may fill.
FAR_OUTSIDE = np.float32(999)


@dataclass(frozen=True, eq=False)
class Outline:
    """The trunk's outline, which the organs within have to respect.

    Args:
        inside_levels: [z, y, x] bool, between neck and perineum.
        belly: [z, y, x] mm by which a belly bulges forward; 0 behind the frontal plane.
        widest_mm: largest half-width of the lean trunk.
    """

    inside_levels: NDArray[np.bool_]
    belly: NDArray
    widest_mm: float


def draw_torso(sketch: Sketch) -> Outline:
    """Paints the trunk, fat first and lean tissue into it."""
    canvas, build, k = sketch.canvas, sketch.build, sketch.person.scale
    half_width = sketch.profile(HALF_WIDTH) * build.lean
    half_depth = sketch.profile(HALF_DEPTH) * build.lean
    fat = sketch.profile(FAT_SHARE) * build.fat_mm
    forward = -0.35 * fat * sketch.profile(FORWARD_SHARE)
    belly = _belly(sketch)
    inside = (canvas.u > TOP_LEVEL_MM * k) & (canvas.u < BOTTOM_LEVEL_MM * k)

    skin = _superellipse(canvas.x, canvas.y - forward, half_width + fat, half_depth + (fat * 0.8 + belly))
    # Only a belly carries the lean trunk forward with the fat.
    lean_y = canvas.y - forward if belly.any() else canvas.y
    lean = _superellipse(canvas.x, lean_y, half_width, half_depth + belly * 0.55)
    sketch.fat(Shape(EVERYWHERE, np.where(inside, skin, FAR_OUTSIDE)), hu=sketch.rng.normal(-102, 5))
    sketch.muscle(Shape(EVERYWHERE, np.where(inside, lean, FAR_OUTSIDE)))
    return Outline(inside, belly, half_width.max())


def _belly(sketch: Sketch) -> NDArray:
    """[z, y, x] mm added to the half-depth in front, by body mass index."""
    height = (sketch.level - BELLY_LEVEL_MM) / BELLY_HEIGHT_MM
    bulge = np.maximum(0, sketch.person.bmi - BELLY_BMI) * BELLY_MM_PER_BMI * np.exp(-(height**2)).astype(np.float32)
    return bulge * (sketch.canvas.y < 0)


def _superellipse(x: NDArray, y: NDArray, half_width: NDArray, half_depth: NDArray) -> NDArray:
    """Approximate signed distance [mm] to a cylinder whose cross-section is a rounded box."""
    n = CROSS_SECTION_EXPONENT
    radius = (np.abs(x / half_width) ** n + np.abs(y / half_depth) ** n) ** (1 / n)
    return (radius - 1) * np.minimum(half_width, half_depth)


def draw_neck(sketch: Sketch) -> None:
    """Paints the neck from the jaw into the shoulders."""
    canvas, build, k = sketch.canvas, sketch.build, sketch.person.scale
    radius = (56 if sketch.person.sex == "F" else 64) * build.lean
    top, bottom = (0, 14, 150 * k), (0, 18, 320 * k)
    sketch.fat(canvas.capsule(top, bottom, radius + build.fat_mm * 0.25))
    sketch.muscle(canvas.capsule(top, bottom, radius - 2))


def draw_breasts(sketch: Sketch) -> None:
    """Paints a woman's breasts: fat, with glandular tissue at the core; a man is left as he is."""
    if sketch.person.sex != "F":
        return
    canvas, build, k = sketch.canvas, sketch.build, sketch.person.scale
    radius = sketch.rng.uniform(38, 60) * (0.8 + 0.01 * sketch.person.bmi)
    for side in SIDES:
        centre = (side * 82 * build.lean, -92 * build.lean - build.fat_mm * 0.3, 465 * k)
        breast = canvas.ellipsoid(centre, (radius, radius * 0.75, radius))
        sketch.fat(breast, hu=-95, mask=canvas.labels[breast.box] == Tissue.AIR)
        centre = (side * 82 * build.lean, -98 * build.lean - build.fat_mm * 0.3, 465 * k)
        gland = canvas.ellipsoid(centre, (radius * 0.5, radius * 0.4, radius * 0.5))
        canvas.fill(gland, 20, 0.6, Tissue.FAT, mask=0.5)
