"""The person to be painted, and what every region function is handed: canvas, random numbers and build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, Shape
from .labels import Tissue

Arms = Literal["up", "down"]
# Control points (level [mm], value) of a quantity that changes from head to foot.
Profile = tuple[tuple[float, float], ...]

# Anatomy is written down for a body of this height, and scaled.
REFERENCE_HEIGHT_MM = 1750.0
REFERENCE_BMI = 25.0
HEIGHT_MM = {"F": (1630, 65), "M": (1760, 70)}  # mean, standard deviation
BMI = (26, 4.5)  # mean, standard deviation
BMI_RANGE = (18, 40)
ARMS_DOWN_SHARE = 0.6

FAT_HU = -100.0
SIDES = (-1, 1)  # sign of x: the patient's right, left


@dataclass(frozen=True)
class Person:
    """Who is painted.

    Args:
        sex: "F" or "M".
        height_mm: vertex to sole.
        bmi: body mass index, kg/m2.
        arms: beside the body, or raised beside the head.
    """

    sex: str
    height_mm: float
    bmi: float
    arms: Arms

    @property
    def scale(self) -> float:
        """Height against the reference body; multiplies every u."""
        return self.height_mm / REFERENCE_HEIGHT_MM


@dataclass(frozen=True)
class Build:
    """How the person is built; some are NumPy scalars, and stay so (Note [precision] in canvas.py).

    Args:
        lean: width of the lean body against the reference; multiplies most x and y.
        fat_mm: thickness of the fat under the skin.
        visceral: share of fat between the abdominal organs.
        muscle_hu: of muscle and plain lean tissue.
        muscle_suv: of the same.
        fat_suv: of all fat.
    """

    lean: float
    fat_mm: float
    visceral: float
    muscle_hu: float
    muscle_suv: float
    fat_suv: float


@dataclass(frozen=True, eq=False)
class Sketch:
    """A body being painted.

    Args:
        rng: every random number, drawn in one fixed order: a seed names one body.
        canvas: what is painted.
        person: who.
        build: how built.
        level: [z, y, x] float32 height on the reference body [mm below the vertex]; `canvas.u` unscaled.
    """

    rng: np.random.Generator
    canvas: Canvas
    person: Person
    build: Build
    level: NDArray[np.float32]

    def profile(self, points: Profile) -> NDArray[np.float32]:
        """[z, y, x] quantity interpolated between control points over the whole canvas."""
        return interpolate(points, self.level).astype(np.float32)

    def muscle(self, shape: Shape, mask: float | NDArray = 1.0) -> None:
        """Paints muscle; `mask` as in `Canvas.fill`."""
        self.canvas.fill(shape, self.build.muscle_hu, self.build.muscle_suv, Tissue.SOFT, mask)

    def fat(self, shape: Shape, hu: float = FAT_HU, mask: float | NDArray = 1.0) -> None:
        """Paints fat; `mask` as in `Canvas.fill`."""
        self.canvas.fill(shape, hu, self.build.fat_suv, Tissue.FAT, mask)


def interpolate(points: Profile, at: float | NDArray) -> Any:
    """Linear between control points, constant beyond them; a number for a number, an array for an array."""
    positions, values = zip(*points, strict=True)
    return np.interp(at, positions, values)


def offset(x: float, y: float, u: float) -> NDArray[np.float64]:
    """A way [mm] from one point to another, to add to its (x, y, u)."""
    return np.array([x, y, u], np.float64)


def draw_person(rng: np.random.Generator, arms: Arms | None, bmi: float | None = None) -> Person:
    """Draws a person; `arms` None draws their pose too. A `bmi` that is given leaves the other draws as they are."""
    sex = "F" if rng.random() < 0.5 else "M"
    height = rng.normal(*HEIGHT_MM[sex])
    drawn = np.clip(rng.normal(*BMI), *BMI_RANGE)
    if arms is None:
        arms = "down" if rng.random() < ARMS_DOWN_SHARE else "up"
    return Person(sex, height, drawn if bmi is None else np.float64(bmi), arms)


def draw_build(rng: np.random.Generator, person: Person) -> Build:
    """Draws the build of a person: heavier ones are wider, and most of it is fat."""
    bmi, female = person.bmi, person.sex == "F"
    lean = np.clip(1 + 0.012 * (bmi - REFERENCE_BMI), 0.9, 1.15) * (0.95 if female else 1.0) * person.scale**0.6
    fat = np.clip(4 + 1.55 * (bmi - 17) + rng.normal(0, 2), 4, 45) * (1.15 if female else 0.9)
    return Build(
        lean=lean,
        fat_mm=fat,
        visceral=np.clip(0.15 + 0.03 * (bmi - 20) + rng.normal(0, 0.05), 0.08, 0.6),
        muscle_hu=rng.normal(50, 5),
        muscle_suv=rng.uniform(0.5, 0.75),
        fat_suv=rng.uniform(0.15, 0.3),
    )


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between `low` and `high` whose logarithm is uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high)))
