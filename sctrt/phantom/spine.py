"""The spine from the skull down to the sacrum; it sets the trabecular bone of the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .canvas import Shape
from .labels import Tissue
from .sketch import SIDES, Profile, Sketch, interpolate
from .torso import FAR_OUTSIDE

CERVICAL, THORACIC, LUMBAR = 7, 12, 5
VERTEBRAE = CERVICAL + THORACIC + LUMBAR
# Levels [mm] of the upper edges, and the lower edge of the last.
EDGES_MM = (
    *(165 + 17 * i for i in range(CERVICAL)),
    *np.linspace(284, 560, THORACIC + 1)[:-1],
    *np.linspace(560, 762, LUMBAR + 1),
)
# y [mm] of the vertebral bodies' centres by level: the spine's curves.
CURVE: Profile = ((150, 12), (230, 18), (300, 38), (420, 62), (560, 58), (680, 42), (770, 55), (860, 78))
# Radius [mm] of a vertebral body by its number from the top.
BODY_RADIUS: Profile = ((0, 9.5), (6, 11), (7, 12.5), (18, 18), (23, 24))
CERVICAL_DISC_SHARE, DISC_SHARE = 0.2, 0.22  # of a vertebra's height
CANAL_RADIUS_MM = 9.5
TRABECULAR_HU = (190, 45)  # mean, standard deviation
TRABECULAR_HU_RANGE = (90, 300)


@dataclass(frozen=True)
class Trabecular:
    """HU and SUV of the spine's marrow in one body; drawn apart, for age sets the one and blood the other."""

    hu: float
    suv: float


@dataclass(frozen=True)
class Vertebra:
    """One vertebra's place and size: number from the top, and mm."""

    number: int
    upper: float  # u of its edges, disc included
    lower: float
    y: float  # of its body's centre
    radius: float
    canal_y: float
    canal_radius: float

    @property
    def level(self) -> float:
        return (self.upper + self.lower) / 2

    @property
    def height(self) -> float:
        return self.lower - self.upper


def curve(sketch: Sketch, u: float | NDArray) -> Any:
    """y [mm] of the spine's centre at u [mm], a number or an array."""
    return interpolate(CURVE, u / sketch.person.scale) * sketch.build.lean


def draw_spine(sketch: Sketch) -> Trabecular:
    """Draws the marrow of this body, and paints vertebrae, discs and spinal canal from the top down."""
    hu = np.clip(sketch.rng.normal(*TRABECULAR_HU), *TRABECULAR_HU_RANGE)
    trabecular = Trabecular(hu=hu, suv=sketch.rng.uniform(1.2, 2.2))
    for number in range(VERTEBRAE):
        _draw_vertebra(sketch, _place_vertebra(sketch, number), trabecular)
    return trabecular


def _place_vertebra(sketch: Sketch, number: int) -> Vertebra:
    k = sketch.person.scale
    upper, lower = EDGES_MM[number] * k, EDGES_MM[number + 1] * k
    radius = interpolate(BODY_RADIUS, number) * k
    y = curve(sketch, (upper + lower) / 2)
    return Vertebra(number, upper, lower, y, radius, canal_y=y + radius + 9 * k, canal_radius=CANAL_RADIUS_MM * k)


def _draw_vertebra(sketch: Sketch, bone: Vertebra, trabecular: Trabecular) -> None:
    """Disc, body, arch, processes, and the cord in its canal, each over the one before."""
    canvas = sketch.canvas
    box = canvas.box(x=(-70, 70), y=(bone.y - 40, bone.y + 75), u=(bone.upper, bone.lower), margin_mm=6)
    x, y, u = canvas.coordinates(box)
    from_level = np.abs(u - bone.level)
    from_axis = np.sqrt((x / 1.2) ** 2 + (y - bone.y) ** 2)
    disc = bone.height * (CERVICAL_DISC_SHARE if bone.number < CERVICAL else DISC_SHARE)
    whole = np.maximum(from_axis - bone.radius * 0.97, from_level - bone.height / 2)
    canvas.fill(Shape(box, whole), 85, 0.6, Tissue.SOFT)
    body = np.maximum(from_axis - bone.radius, from_level - (bone.height - disc) / 2)
    canvas.bone(Shape(box, body), 420, 2, trabecular.hu, trabecular.suv)

    ring = np.sqrt(x**2 + (y - bone.canal_y) ** 2) - bone.canal_radius - 4
    arch = np.where(y > bone.y + bone.radius * 0.6, np.maximum(ring, from_level - bone.height * 0.33), FAR_OUTSIDE)
    canvas.bone(Shape(box, arch), 520, 2, marrow_hu=260, marrow_suv=trabecular.suv * 0.8)
    if bone.number > 2:
        _draw_processes(sketch, bone)
    canal = np.sqrt((x / 1.15) ** 2 + (y - bone.canal_y) ** 2) - bone.canal_radius
    canvas.fill(Shape(box, np.maximum(canal, from_level - bone.height)), 30, 1.4, Tissue.SOFT)


def _draw_processes(sketch: Sketch, bone: Vertebra) -> None:
    """The spinous process, which slopes down most in the chest, and one to each side."""
    canvas, k = sketch.canvas, sketch.person.scale
    length = 26 * k if bone.number < CERVICAL else 32 * k
    slope = 0.55 if CERVICAL <= bone.number < CERVICAL + THORACIC else 0.15
    root = bone.canal_y + bone.canal_radius
    spinous = canvas.capsule((0, root, bone.level), (0, root + length * 0.75, bone.level + bone.height * slope), 4)
    canvas.bone(spinous, 450, 2, marrow_hu=250, marrow_suv=0.9)
    reach = (22 + 14 * (bone.number / (VERTEBRAE - 1))) * k
    for side in SIDES:
        transverse = canvas.capsule(
            (side * 10, bone.canal_y - 2, bone.level), (side * reach, bone.canal_y + 5, bone.level), 5
        )
        canvas.bone(transverse, 420, 2, marrow_hu=230, marrow_suv=1.0)
