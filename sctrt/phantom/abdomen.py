"""The organs below the diaphragm: liver, spleen, stomach, pancreas, kidneys, bowel, and those of the pelvis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .cage import Cage
from .canvas import EVERYWHERE, Shape, intersection
from .labels import Tissue
from .sketch import SIDES, Sketch, log_uniform, offset

FATTY_LIVER_BMI = 32
KIDNEY_HALF_AXES_MM = (26, 26, 53)
KIDNEY_FAT_MM = 12
KIDNEY_TILT = 0.25  # rad; the upper poles lean together
KIDNEY_LEVEL_MM = {-1: 650, 1: 638}  # the right one is pushed down by the liver
# Way-points (x, y, level) [mm] of the colon from caecum to rectum; x of those off the midline scales with the build.
COLON = (
    (-95, 5, 830), (-100, 10, 760), (-98, 5, 700), (-60, -45, 690), (0, -65, 705), (60, -45, 680),
    (98, 10, 650), (102, 15, 740), (92, 5, 810),
)  # fmt: skip
SIGMOID = ((40, -5, 840), (5, 45, 850), (0, 60, 900))
COLON_GAS_SHARE, SMALL_BOWEL_GAS_SHARE = 0.35, 0.1
SMALL_BOWEL_LOOPS, SEGMENTS_PER_LOOP = 7, 6
# Bowel gives way to these.
FIRMER_THAN_BOWEL = (Tissue.LUNG, Tissue.LIVER, Tissue.SPLEEN, Tissue.KIDNEY, Tissue.BLOOD)


def draw_upper_abdomen(sketch: Sketch, cage: Cage, diaphragm: NDArray) -> None:
    """Paints liver, spleen, stomach and pancreas under the diaphragm."""
    liver_suv = sketch.rng.uniform(1.8, 2.7)
    _draw_liver(sketch, cage, diaphragm, liver_suv)
    _draw_spleen(sketch, cage, diaphragm, liver_suv)
    _draw_stomach(sketch, cage, diaphragm)
    k = sketch.person.scale
    pancreas = sketch.canvas.capsule((-30, 10, 655 * k), (55, 22, 615 * k), 11, 8)
    sketch.canvas.fill(pancreas, 38, 1.5, Tissue.SOFT)


def _draw_liver(sketch: Sketch, cage: Cage, diaphragm: NDArray, suv: float) -> None:
    canvas, rng, lean = sketch.canvas, sketch.rng, sketch.build.lean
    level = 690 * sketch.person.scale * rng.uniform(0.97, 1.04)
    lower_edge = (canvas.u - level) + 0.9 * (canvas.x + 40 * lean) - 0.15 * canvas.y  # rises to the left
    liver = intersection(
        diaphragm + 4 - canvas.u, cage.distance + 5, lower_edge, canvas.x - 62 * lean, canvas.y - 72 * lean
    )
    fatty = sketch.person.bmi >= FATTY_LIVER_BMI
    hu = rng.normal(35, 10) if fatty else rng.normal(57, 7)
    canvas.fill(Shape(EVERYWHERE, liver), hu, suv, Tissue.LIVER)


def _draw_spleen(sketch: Sketch, cage: Cage, diaphragm: NDArray, liver_suv: float) -> None:
    canvas, k = sketch.canvas, sketch.person.scale
    half_axes = np.array([27, 38, 50]) * sketch.rng.uniform(0.85, 1.2)
    spleen = canvas.ellipsoid((88 * sketch.build.lean, 40, 590 * k), half_axes)
    box = spleen.box
    spleen = spleen.within(cage.distance[box] + 4, diaphragm[box] + 3 - canvas.u[box])
    canvas.fill(spleen, 48, liver_suv * 0.85, Tissue.SPLEEN)


def _draw_stomach(sketch: Sketch, cage: Cage, diaphragm: NDArray) -> None:
    """Wall, content, and gas afloat in front of it."""
    canvas, k = sketch.canvas, sketch.person.scale
    stomach = canvas.ellipsoid((62 * sketch.build.lean, -28, 590 * k), (40, 36, 55))
    box = stomach.box
    stomach = stomach.within(diaphragm[box] + 4 - canvas.u[box], cage.distance[box] + 8)
    canvas.fill(stomach, 40, 2.0, Tissue.STOMACH)
    canvas.fill(stomach.shrunk(6), 20, 0.6, Tissue.STOMACH)
    surface = canvas.y[box] + 28 + sketch.rng.uniform(0, 18)
    canvas.fill(stomach.shrunk(7).within(surface), -950, 0, Tissue.GAS)


def draw_kidneys(sketch: Sketch) -> None:
    """Paints both kidneys in their fat, each with urine in its pelvis."""
    canvas, rng, lean, k = sketch.canvas, sketch.rng, sketch.build.lean, sketch.person.scale
    for side in SIDES:
        centre = np.array([side * 62 * lean, 42 * lean, KIDNEY_LEVEL_MM[side] * k]) + rng.normal(0, 4, 3)
        half_axes = np.array(KIDNEY_HALF_AXES_MM) * rng.uniform(0.9, 1.1)
        tilt = -side * KIDNEY_TILT
        capsule = canvas.ellipsoid(centre, half_axes + KIDNEY_FAT_MM, tilt)
        sketch.fat(capsule, mask=~np.isin(canvas.labels[capsule.box], (Tissue.LIVER, Tissue.SPLEEN)))
        canvas.fill(canvas.ellipsoid(centre, half_axes, tilt), 33, rng.uniform(2, 3.2), Tissue.KIDNEY)
        renal_pelvis = canvas.ellipsoid(centre + offset(-side * 8, -2, 0), (9, 11, 22))
        canvas.fill(renal_pelvis, 12, rng.uniform(5, 22), Tissue.KIDNEY)


def draw_bowel(sketch: Sketch, cage: Cage) -> None:
    """Paints the colon along its frame, and loops of small bowel at random within it.

    Gas is drawn apart from uptake: a PET image cannot show where it is, so no network may learn to guess it.
    """
    rng, lean, k = sketch.rng, sketch.build.lean, sketch.person.scale
    cavity = sketch.canvas.coverage(cage.distance + 5)
    suv = np.exp(rng.normal(np.log(1.3), 0.45))
    frame = [(x * lean, y, level * k) for x, y, level in COLON] + [(x, y, level * k) for x, y, level in SIGMOID]
    colon = [np.asarray(point, np.float32) + rng.normal(0, 4, 3) for point in frame]
    _draw_tube(sketch, cavity, colon, rng.uniform(17, 24), COLON_GAS_SHARE, suv)
    low, high = (-80 * lean, -68, 680 * k), (80 * lean, 20, 860 * k)
    for _ in range(SMALL_BOWEL_LOOPS):
        loop = [np.array([rng.uniform(-65, 65) * lean, rng.uniform(-60, 5), rng.uniform(700, 840) * k])]
        for _ in range(SEGMENTS_PER_LOOP):
            loop.append(np.clip(loop[-1] + rng.normal(0, 28, 3), low, high))
        _draw_tube(sketch, cavity, loop, rng.uniform(9, 13), SMALL_BOWEL_GAS_SHARE, suv * rng.uniform(0.6, 2))


def _draw_tube(
    sketch: Sketch, cavity: NDArray, points: Sequence[NDArray], radius: float, gas_share: float, suv: float
) -> None:
    """Paints bowel through `points`; each segment holds gas, or other content, or is collapsed."""
    canvas, rng = sketch.canvas, sketch.rng
    for start, end in pairwise(points):
        segment = canvas.capsule(start, end, radius)
        free = cavity[segment.box] * ~np.isin(canvas.labels[segment.box], FIRMER_THAN_BOWEL)
        canvas.fill(segment, 35, suv, Tissue.BOWEL, mask=free)
        if rng.random() < gas_share:
            canvas.fill(segment.shrunk(radius * 0.3), -900, 0, Tissue.GAS, mask=free)
        elif rng.random() < 0.5:
            canvas.fill(segment.shrunk(4), rng.uniform(-30, 60), suv * 0.5, Tissue.BOWEL, mask=free)


def draw_pelvic_organs(sketch: Sketch) -> None:
    """Paints the bladder, its wall, and the prostate or cervix behind it."""
    canvas, rng, k = sketch.canvas, sketch.rng, sketch.person.scale
    radius = rng.uniform(26, 44)
    centre = np.array([0, -32, 870 * k])  # an array: Note [precision]
    bladder = canvas.ellipsoid(centre, (radius * 1.15, radius * 0.85, radius))
    canvas.fill(bladder.grown(3), 35, 1, Tissue.SOFT)
    canvas.fill(bladder, rng.normal(6, 4), log_uniform(rng, 8, 45), Tissue.BLADDER)
    canvas.fill(canvas.ellipsoid((0, 8, 885 * k), (22, 18, 22)), 45, 1.4, Tissue.SOFT)


def draw_trunk_muscles(sketch: Sketch) -> None:
    """Paints the psoas, and the sheet of fat between the gluteal muscles."""
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    for side in SIDES:
        psoas = canvas.capsule((side * 34 * lean, 44 * lean, 620 * k), (side * 70 * lean, 0, 880 * k), 16, 22)
        sketch.muscle(psoas, mask=canvas.labels[psoas.box] != Tissue.KIDNEY)
        sketch.fat(canvas.ellipsoid((side * 74 * lean, 66 * lean, 880 * k), (52, 5, 75)), hu=-90, mask=0.7)
