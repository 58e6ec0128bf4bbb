"""Bones of the chest: ribs with their cartilage, breastbone, collar bones and shoulder blades."""

from __future__ import annotations

import numpy as np

from .cage import Cage
from .canvas import EVERYWHERE, Shape, intersection
from .labels import Tissue
from .sketch import SIDES, Sketch
from .torso import FAR_OUTSIDE, Outline

RIBS = 12
FIRST_RIB_MM = 292
RIB_SPACING_MM = 25.5
RIB_DROP_MM = 78  # a rib ends this much lower in front than behind
RIB_HALF_HEIGHT_MM, RIB_HALF_THICKNESS_MM = 6.5, 4.2
RIB_DEPTH_MM = 3  # of the ribs' middle, outside the cage's inner wall
# Azimuth [rad] from the spine at which bone gives way to cartilage: true, false and floating ribs.
TRUE_RIBS, TRUE_RIB_END = 7, 2.42
FALSE_RIBS, FALSE_RIB_END = 10, 2.15
FLOATING_RIB_END = 1.5
RIB_HEAD, CARTILAGE_END = 0.12, 2.98  # rad
SCAPULA_DEPTH_MM = 19  # of the shoulder blade's middle, outside the cage's inner wall


def draw_ribs(sketch: Sketch, outline: Outline, cage: Cage) -> None:
    """Paints twelve pairs of ribs, which slope down to the front, and the cartilage of the upper ten."""
    canvas, k = sketch.canvas, sketch.person.scale
    drop = RIB_DROP_MM * np.clip((sketch.level - 290) / 120, 0.25, 1)
    spacing = RIB_SPACING_MM * k
    count = (canvas.u - drop * k * (1 - np.cos(cage.azimuth)) / 2 * 0.95 - FIRST_RIB_MM * k) / spacing
    rib = np.floor(count)
    along_height = np.abs(count - rib - 0.5) * RIB_SPACING_MM * k / RIB_HALF_HEIGHT_MM
    along_thickness = (cage.distance - RIB_DEPTH_MM) / RIB_HALF_THICKNESS_MM
    shape = Shape(EVERYWHERE, (np.hypot(along_height, along_thickness) - 1) * RIB_HALF_THICKNESS_MM)

    azimuth = np.abs(cage.azimuth)
    bone_end = np.where(rib < TRUE_RIBS, TRUE_RIB_END, np.where(rib < FALSE_RIBS, FALSE_RIB_END, FLOATING_RIB_END))
    is_rib = (rib >= 0) & (rib < RIBS) & outline.inside_levels & (azimuth > RIB_HEAD)
    is_bone = is_rib & (azimuth < bone_end)
    is_cartilage = is_rib & (azimuth >= bone_end) & (rib < FALSE_RIBS) & (azimuth < CARTILAGE_END)
    canvas.fill(shape, 550, 0.6, Tissue.BONE, mask=is_bone)
    canvas.fill(shape.shrunk(2.0), 180, 1.1, Tissue.MARROW, mask=is_bone)
    canvas.fill(shape, 95, 0.4, Tissue.SOFT, mask=is_cartilage)


def draw_sternum(sketch: Sketch, cage: Cage) -> None:
    """Paints the breastbone onto the front of the cage."""
    canvas, k = sketch.canvas, sketch.person.scale
    box = canvas.box(x=(-30, 30), y=(-130, -40), u=(330 * k, 520 * k))
    x, y, u = canvas.coordinates(box)
    half_width = np.interp(u / k, [335, 365, 400, 500], [27, 16, 17, 12])
    sternum = intersection(
        np.abs(x) - half_width, np.abs(cage.distance[box] - RIB_DEPTH_MM) - 5.5, 338 * k - u, u - 505 * k
    )
    canvas.bone(Shape(box, np.where(y < 0, sternum, FAR_OUTSIDE)), 420, 2, marrow_hu=140, marrow_suv=1.3)


def draw_shoulder_girdle(sketch: Sketch, cage: Cage) -> None:
    """Paints collar bone and shoulder blade of each side."""
    for side in SIDES:
        _draw_clavicle(sketch, side)
        _draw_scapula(sketch, cage, side)


def _draw_clavicle(sketch: Sketch, side: int) -> None:
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    sternal_end = (side * 14, -66 * lean, 334 * k)
    bend = (side * 80 * lean, -44 * lean, 318 * k)
    shoulder_end = (side * 150 * lean, 8, 322 * k)
    canvas.bone(canvas.capsule(sternal_end, bend, 6.5), 700, 3, marrow_hu=250)
    canvas.bone(canvas.capsule(bend, shoulder_end, 6.5), 700, 3, marrow_hu=250)


def _draw_scapula(sketch: Sketch, cage: Cage, side: int) -> None:
    """A blade that narrows downwards, parallel to the cage, and the spine across it."""
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    across = (-140 * lean, -45) if side < 0 else (45, 150 * lean)
    box = canvas.box(x=across, y=(20, 130), u=(330 * k, 480 * k))
    x, y, u = canvas.coordinates(box)
    half_width = np.interp(u / k, [335, 380, 470], [42, 30, 8])
    blade = intersection(
        np.abs(cage.distance[box] - SCAPULA_DEPTH_MM) - 3,
        np.abs(np.abs(x) - 96 * lean) - half_width,
        np.abs(u - 405 * k) - 68 * k,
        20 - y,
    )
    canvas.bone(Shape(box, blade), 500, 2, marrow_hu=250, marrow_suv=0.8)
    spine = canvas.capsule((side * 70 * lean, 92 * lean, 350 * k), (side * 150 * lean, 40, 332 * k), 7, 8)
    canvas.bone(spine, 550, 3, marrow_hu=250)
