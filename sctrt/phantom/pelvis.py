"""Sacrum, hip bones and femora."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import Shape, intersection
from .labels import Tissue
from .sketch import SIDES, Sketch, offset
from .spine import Trabecular, curve

ILIUM_TOP_MM, ILIUM_BOTTOM_MM = 715, 880
HIP_LEVEL_MM = 882


def draw_pelvis(sketch: Sketch, trabecular: Trabecular) -> None:
    """Paints the sacrum, then each hip bone with the femur in its socket."""
    _draw_sacrum(sketch, trabecular)
    for side in SIDES:
        _draw_ilium(sketch, side, trabecular)
        hip = np.array([side * 90 * sketch.build.lean, 2, HIP_LEVEL_MM * sketch.person.scale])
        _draw_socket(sketch, hip)
        _draw_femur(sketch, side, hip)
        _draw_pubis_and_ischium(sketch, side, hip)


def _draw_sacrum(sketch: Sketch, trabecular: Trabecular) -> None:
    canvas, k = sketch.canvas, sketch.person.scale
    box = canvas.box(x=(-60, 60), y=(20, 120), u=(760 * k, 880 * k))
    x, y, u = canvas.coordinates(box)
    half_width = np.interp(u / k, [760, 790, 880], [48, 50, 12])
    half_depth = np.interp(u / k, [760, 800, 880], [24, 18, 7])
    sacrum = intersection(
        np.abs(x) - half_width, np.abs(y - curve(sketch, u) - 4) - half_depth, np.abs(u - 818 * k) - 58 * k
    )
    canvas.bone(Shape(box, sacrum), 380, 2.5, trabecular.hu * 0.8, trabecular.suv)


def _draw_ilium(sketch: Sketch, side: int, trabecular: Trabecular) -> None:
    """The wing of the hip bone: a curved plate that bends inwards to meet the sacrum."""
    canvas, k = sketch.canvas, sketch.person.scale
    top, bottom = ILIUM_TOP_MM * k, ILIUM_BOTTOM_MM * k
    across = (min(side * 20, side * 150), max(side * 20, side * 150))
    box = canvas.box(x=across, y=(-70, 110), u=(top, bottom))
    x, y, u = canvas.coordinates(box)
    front = np.interp(u / k, [715, 760, 820, 870], [108, 104, 88, 84]) * sketch.build.lean
    plate = side * (front - 0.62 * np.maximum(0, y - 5))
    half_length = np.interp(u / k, [715, 735, 800, 870], [30, 62, 48, 24])
    half_thickness = np.interp(u / k, [715, 740, 820, 870], [7, 5.5, 7, 13])
    middle = np.interp(u / k, [715, 870], [8, 0])
    ilium = intersection(
        np.abs(x - plate) * 0.85 - half_thickness,
        np.abs(y - 12 - middle) - half_length,
        (ILIUM_TOP_MM + 1) * k - u,
        u - bottom,
    )
    canvas.bone(Shape(box, ilium), 560, 2.5, marrow_hu=230, marrow_suv=trabecular.suv * 0.8)


def _draw_socket(sketch: Sketch, hip: NDArray) -> None:
    """The acetabulum, hollowed out for the joint."""
    canvas = sketch.canvas
    canvas.bone(canvas.ellipsoid(hip, (36, 34, 34)), 600, 4, marrow_hu=300, marrow_suv=1.0)
    canvas.fill(canvas.ellipsoid(hip, (29, 28, 28)), 60, 0.6, Tissue.SOFT)


def _draw_femur(sketch: Sketch, side: int, hip: NDArray) -> None:
    """Head, neck and shaft."""
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    trochanter = hip + offset(side * 44, 8, 34)
    knee = (side * 98 * lean, -6, 1330 * k)
    canvas.bone(canvas.ellipsoid(hip + offset(side * 2, 0, 2), (25, 25, 25)), 600, 2.5, marrow_hu=300, marrow_suv=0.8)
    canvas.bone(canvas.capsule(hip + offset(side * 4, 0, 3), trochanter, 17, 16), 600, 3, marrow_hu=220, marrow_suv=0.6)
    shaft = canvas.capsule(trochanter + offset(-side * 2, -2, 0), knee, 18, 14)
    canvas.bone(shaft, 1150, 6, marrow_hu=20, marrow_suv=0.5)


def _draw_pubis_and_ischium(sketch: Sketch, side: int, hip: NDArray) -> None:
    canvas, lean, k = sketch.canvas, sketch.build.lean, sketch.person.scale
    pubis = canvas.capsule(hip + offset(-side * 8, -12, 2), (side * 10, -52, 900 * k), 12, 10)
    canvas.bone(pubis, 500, 3, marrow_hu=220, marrow_suv=1.0)
    ischium = canvas.capsule(hip + offset(-side * 10, 18, 10), (side * 60 * lean, 30, 940 * k), 15, 13)
    canvas.bone(ischium, 550, 3, marrow_hu=240, marrow_suv=0.9)
    ramus = canvas.capsule((side * 58 * lean, 24, 940 * k), (side * 12, -48, 915 * k), 8)
    canvas.bone(ramus, 500, 3, marrow_hu=240, marrow_suv=0.9)
