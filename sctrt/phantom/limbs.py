"""Arms with their bones, and thighs without (the femora belong to the skeleton)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .labels import Tissue
from .sketch import SIDES, Sketch, offset
from .torso import Outline

ARM_RADIUS_MM = 42
THIGH_RADIUS_MM = 80
SEPTA_PER_THIGH = 4
FINGER_Y_MM = (-24, -8, 8, 24)  # the palm faces the thigh


def draw_thighs(sketch: Sketch) -> None:
    """Paints both thighs, with sheets of fat between their muscles."""
    canvas, build, k = sketch.canvas, sketch.build, sketch.person.scale
    radius = THIGH_RADIUS_MM * build.lean
    for side in SIDES:
        hip, knee = (side * 88 * k * build.lean, 5, 905 * k), (side * 82 * k, 5, 1330 * k)
        skin = canvas.capsule(hip, knee, radius + build.fat_mm * 0.9, radius * 0.8 + build.fat_mm * 0.7)
        sketch.fat(skin, hu=-102, mask=canvas.labels[skin.box] == Tissue.AIR)
    for side in SIDES:
        hip, knee = (side * 86 * k * build.lean, 5, 915 * k), (side * 82 * k, 5, 1330 * k)
        sketch.muscle(canvas.capsule(hip, knee, radius, radius * 0.8))
        for _ in range(SEPTA_PER_THIGH):
            angle = sketch.rng.uniform(0, 2 * np.pi)
            top = (hip[0] + 42 * np.cos(angle), 5 + 42 * np.sin(angle), 900 * k)
            bottom = (knee[0] + 36 * np.cos(angle), 5 + 36 * np.sin(angle), 1330 * k)
            sketch.fat(canvas.capsule(top, bottom, 7, 6), hu=-90, mask=0.8)


def draw_arms(sketch: Sketch, outline: Outline) -> None:
    """Paints both arms, down beside the trunk or up beside the head."""
    for side in SIDES:
        shoulder, elbow, wrist = _arm_joints(sketch, outline, side)
        _draw_arm_flesh(sketch, shoulder, elbow, wrist)
        _draw_arm_bones(sketch, side, shoulder, elbow, wrist)
        if sketch.person.arms == "down":
            _draw_hand(sketch, wrist)


def _arm_joints(sketch: Sketch, outline: Outline, side: int) -> tuple[NDArray, NDArray, NDArray]:
    """Shoulder, elbow and wrist (x, y, u) [mm]."""
    build, k, rng = sketch.build, sketch.person.scale, sketch.rng
    shoulder = np.array([side * 168 * build.lean, 10, 345 * k])
    if sketch.person.arms == "down":
        elbow = np.array([side * (outline.widest_mm * 0.97 + build.fat_mm * 0.8 + 34), 25, 640 * k])
        wrist = np.array([side * (outline.widest_mm * 0.95 + build.fat_mm + 38), -5, 885 * k])
    else:
        elbow = np.array([side * rng.uniform(185, 215), -25, 60 * k])
        wrist = np.array([side * rng.uniform(40, 90), -60, -160])
    return shoulder, elbow, wrist


def _draw_arm_flesh(sketch: Sketch, shoulder: NDArray, elbow: NDArray, wrist: NDArray) -> None:
    canvas, fat = sketch.canvas, sketch.build.fat_mm
    radius = ARM_RADIUS_MM * sketch.build.lean
    segments = ((shoulder, elbow, radius, radius * 0.78), (elbow, wrist, radius * 0.8, radius * 0.52))
    for start, end, start_radius, end_radius in segments:
        skin = canvas.capsule(start, end, start_radius + fat * 0.35, end_radius + fat * 0.25)
        sketch.fat(skin, mask=canvas.labels[skin.box] != Tissue.SOFT)
    for segment in segments:
        sketch.muscle(canvas.capsule(*segment))


def _draw_arm_bones(sketch: Sketch, side: int, shoulder: NDArray, elbow: NDArray, wrist: NDArray) -> None:
    canvas = sketch.canvas
    humerus = canvas.capsule(shoulder, elbow, 12.5, 11)
    canvas.bone(humerus, 950, 5, marrow_hu=-30, marrow_suv=0.5)
    humeral_head = canvas.ellipsoid(shoulder + offset(-side * 8, 0, 2), (24, 24, 24))
    canvas.bone(humeral_head, 450, 3, marrow_hu=220, marrow_suv=1.0)
    # The forearm's bones lie behind each other with the arm down, and beside each other with it up.
    apart = offset(0, 12, 0) if sketch.person.arms == "down" else offset(10 * side, 6, 0)
    canvas.bone(canvas.capsule(elbow + apart, wrist + apart, 8, 7), 950, 4, marrow_hu=100, marrow_suv=0.5)
    canvas.bone(canvas.capsule(elbow - apart, wrist - apart, 8, 8), 950, 4, marrow_hu=100, marrow_suv=0.5)


def _draw_hand(sketch: Sketch, wrist: NDArray) -> None:
    canvas = sketch.canvas
    canvas.fill(canvas.ellipsoid(wrist + offset(0, 0, 70), (18, 38, 75)), 40, 0.6, Tissue.SOFT)
    for y in FINGER_Y_MM:
        finger = canvas.capsule(wrist + offset(0, y * 0.5, 20), wrist + offset(0, y, 130), 5)
        canvas.bone(finger, 600, 3, marrow_hu=200, marrow_suv=0.5)
