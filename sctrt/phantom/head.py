"""The head: skull, brain, face and the air within."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import CORTEX_SUV, Box, Shape, smooth_noise
from .labels import Tissue
from .sketch import SIDES, Sketch, offset

SIZE = {"F": 0.97, "M": 1.02}  # against the reference head, on top of height
SKULL_Y_MM, SKULL_U_MM = -4, 96
SKULL_HALF_AXES_MM = (75, 95, 93)
SKULL_THICKNESS_MM = 6.5
SCALP_MM = 4
GREY_MATTER_MM = 11  # mean depth from the brain's surface
# The skull's base is a plane: level [mm] at y = 0, and how much it sinks to the back.
SKULL_BASE_MM, SKULL_BASE_SLOPE = 152, 0.12
BRAIN_BASE_MM = 150
ENAMEL_HU = 1900
TEETH_PER_JAW = 9
TEETH_LEVELS_MM = (186, 200)  # upper jaw, lower jaw


def draw_head(sketch: Sketch) -> None:
    """Paints the head from the outside in, then the face, teeth and air."""
    size = sketch.person.scale * SIZE[sketch.person.sex]
    _draw_scalp_and_face(sketch, size)
    _draw_skull(sketch, size)
    _draw_brain(sketch, size)
    _draw_skull_base(sketch, size)
    for side in SIDES:
        _draw_petrous_bone(sketch, size, side)
        _draw_orbit(sketch, size, side)
        _draw_maxillary_sinus(sketch, size, side)
        _draw_mandible(sketch, size, side)
        _draw_cheek_bone(sketch, size, side)
        _draw_glands(sketch, size, side)
    _draw_teeth(sketch, size)
    _draw_air(sketch, size)


def _skull_centre(size: float) -> NDArray:
    return np.array([0, SKULL_Y_MM, SKULL_U_MM * size])


def _skull(sketch: Sketch, size: float, deeper_mm: float = 0.0) -> Shape:
    """The skull's outer surface, or the one `deeper_mm` below it (negative: above), without its flat base."""
    return sketch.canvas.ellipsoid(_skull_centre(size), np.array(SKULL_HALF_AXES_MM) * size - deeper_mm)


def _below_base(sketch: Sketch, box: Box, size: float, base_mm: float = SKULL_BASE_MM) -> NDArray:
    """Distance [mm] below the skull's base, negative above it, [z, y, x] of a box."""
    _, y, u = sketch.canvas.coordinates(box)
    return u - (base_mm + SKULL_BASE_SLOPE * y) * size


def _draw_scalp_and_face(sketch: Sketch, size: float) -> None:
    canvas = sketch.canvas
    canvas.fill(_skull(sketch, size, deeper_mm=-SCALP_MM), -40, 0.4, Tissue.FAT)
    face = canvas.ellipsoid(_skull_centre(size) + offset(0, -30, 75), (60, 62, 66))
    canvas.fill(face, 40, 0.6, Tissue.SOFT)
    jaw = canvas.ellipsoid((0, -38, 165 * size), (58 * size, 55 * size, 62 * size))
    canvas.fill(jaw, 40, 0.7, Tissue.SOFT)


def _draw_skull(sketch: Sketch, size: float) -> None:
    """The vault, two plates with marrow between; soft tissue where it ends below."""
    canvas = sketch.canvas
    skull = _skull(sketch, size)
    box, outside = skull
    below_base = _below_base(sketch, box, size)
    canvas.fill(skull.within(-below_base), 45, 0.7, Tissue.SOFT, mask=canvas.y[box] > -40)
    vault = skull.within(-(outside + SKULL_THICKNESS_MM), below_base)
    canvas.fill(vault, 1150, CORTEX_SUV, Tissue.BONE)
    marrow = Shape(box, np.maximum(np.abs(outside + 3.3) - 1.0, below_base))
    canvas.fill(marrow, 350, 1, Tissue.MARROW, mask=0.6)


def _draw_brain(sketch: Sketch, size: float) -> None:
    """White matter under folded grey matter; ventricles, basal ganglia and cerebellum."""
    canvas, rng = sketch.canvas, sketch.rng
    brain = _skull(sketch, size, deeper_mm=SKULL_THICKNESS_MM)
    brain = brain.within(_below_base(sketch, brain.box, size, BRAIN_BASE_MM))
    grey_suv = rng.uniform(6.5, 11)
    folds = smooth_noise(rng, brain.distance.shape, 12 / canvas.voxel_mm, 1.0)
    canvas.fill(brain, 35, grey_suv * 0.5, Tissue.BRAIN)
    in_grey = canvas.coverage(-(brain.distance + GREY_MATTER_MM + 4 * folds))
    canvas.fill(brain, 39, grey_suv, Tissue.BRAIN, mask=in_grey)
    for side in SIDES:
        ventricle = canvas.ellipsoid((side * 12, -4, 88 * size), (6, 28, 9), tilt=side * 0.5)
        canvas.fill(ventricle, 8, 0.8, Tissue.BRAIN)
        basal_ganglia = canvas.ellipsoid((side * 22, -10, 100 * size), (10, 18, 12))
        canvas.fill(basal_ganglia, 40, grey_suv * 1.15, Tissue.BRAIN)
        cerebellum = canvas.ellipsoid((side * 25, 45, 140 * size), (25, 25, 19))
        canvas.fill(cerebellum, 38, grey_suv * 0.8, Tissue.BRAIN)


def _draw_skull_base(sketch: Sketch, size: float) -> None:
    canvas = sketch.canvas
    box = canvas.box(x=(-70, 70), y=(-80, 70), u=(135 * size, 165 * size))
    rim = np.hypot(canvas.x[box] / 62, canvas.y[box] / 80) * 60 - 60
    plate = np.maximum(np.abs(_below_base(sketch, box, size)) - 4, rim)
    canvas.fill(Shape(box, plate), 700, CORTEX_SUV, Tissue.BONE)


def _draw_petrous_bone(sketch: Sketch, size: float, side: int) -> None:
    """The hard bone about the ear, with the mastoid's air cells for marrow."""
    canvas = sketch.canvas
    petrous = canvas.ellipsoid((side * 45, 25, 150 * size), (18, 22, 14))
    canvas.bone(petrous, 900, 5, marrow_hu=-250, marrow_suv=0.5)


def _draw_orbit(sketch: Sketch, size: float, side: int) -> None:
    canvas = sketch.canvas
    orbit = canvas.ellipsoid((side * 32, -78 * size, 128 * size), (20, 20, 18))
    canvas.fill(orbit.grown(3), 700, CORTEX_SUV, Tissue.BONE)
    canvas.fill(orbit, -60, 0.4, Tissue.FAT)
    eye = canvas.ellipsoid((side * 32, -84 * size, 128 * size), (12, 12, 12))
    canvas.fill(eye, 25, 1, Tissue.SOFT)


def _draw_maxillary_sinus(sketch: Sketch, size: float, side: int) -> None:
    canvas = sketch.canvas
    sinus = canvas.ellipsoid((side * 27, -66 * size, 158 * size), (14, 16, 15))
    canvas.fill(sinus.grown(2), 500, CORTEX_SUV, Tissue.BONE)
    canvas.fill(sinus, -980, 0, Tissue.GAS)


def _draw_mandible(sketch: Sketch, size: float, side: int) -> None:
    canvas = sketch.canvas
    joint, angle = (side * 52, 0, 165 * size), (side * 46, -14, 205 * size)
    chin = (side * 8, -80 * size, 222 * size)
    canvas.bone(canvas.capsule(joint, angle, 7), 1000, 3, marrow_hu=250, marrow_suv=0.6)
    canvas.bone(canvas.capsule(angle, chin, 8), 1000, 3, marrow_hu=250, marrow_suv=0.6)


def _draw_cheek_bone(sketch: Sketch, size: float, side: int) -> None:
    canvas = sketch.canvas
    arch = canvas.capsule((side * 62, -20, 146 * size), (side * 44, -72 * size, 148 * size), 4.5)
    canvas.bone(arch, 800, 3, marrow_hu=250, marrow_suv=0.5)


def _draw_glands(sketch: Sketch, size: float, side: int) -> None:
    """Parotid gland, and the tonsil, which may be hot."""
    canvas = sketch.canvas
    parotid = canvas.ellipsoid((side * 52, 4, 190 * size), (12, 18, 22))
    canvas.fill(parotid, 25, 2.2, Tissue.SOFT)
    tonsil = canvas.ellipsoid((side * 16, -10, 205 * size), (7, 9, 11))
    canvas.fill(tonsil, 45, sketch.rng.uniform(2, 6), Tissue.SOFT)


def _draw_teeth(sketch: Sketch, size: float) -> None:
    """Two arches of teeth."""
    canvas = sketch.canvas
    for level in TEETH_LEVELS_MM:
        for angle in np.linspace(-1.15, 1.15, TEETH_PER_JAW):
            y = -74 + 26 - 26 * np.cos(angle) - 6
            tooth = canvas.ellipsoid((30 * size * np.sin(angle), y * size, level * size), (4, 4, 7))
            canvas.fill(tooth, ENAMEL_HU, 0.4, Tissue.BONE)


def _draw_air(sketch: Sketch, size: float) -> None:
    """Nose, throat and frontal sinus; thin walls keep the first two from being all air."""
    canvas = sketch.canvas
    nose = canvas.ellipsoid((0, -66 * size, 150 * size), (9, 26, 26))
    canvas.fill(nose, -900, 0, Tissue.GAS, mask=0.7)
    throat = canvas.capsule((0, -34, 165 * size), (0, -8, 228 * sketch.person.scale), 8, 9)
    canvas.fill(throat, -990, 0, Tissue.GAS, mask=0.9)
    frontal_sinus = canvas.ellipsoid((0, -88 * size, 92 * size), (18, 8, 12))
    canvas.fill(frontal_sinus, -900, 0, Tissue.GAS)
