"""The rib cage as geometry, the diaphragm across it, and the fat of the abdominal cavity below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .canvas import EVERYWHERE, intersection
from .labels import Tissue
from .sketch import FAT_HU, Profile, Sketch
from .torso import Outline

# Half-axes [mm] of the inner wall of trunk and chest.
HALF_WIDTH: Profile = (
    (290, 28), (305, 52), (330, 84), (380, 114), (440, 126), (520, 133), (600, 131), (680, 122), (760, 118),
)  # fmt: skip
HALF_DEPTH: Profile = (
    (290, 30), (305, 40), (330, 58), (380, 76), (440, 86), (520, 92), (600, 90), (680, 84), (760, 82),
)  # fmt: skip
ABDOMEN_TOP_MM, ABDOMEN_BOTTOM_MM = 500, 900
RIGHT_DOME_MM, LEFT_DOME_MM = 515, 535  # mean level of the diaphragm's domes


@dataclass(frozen=True, eq=False)
class Cage:
    """The inner wall of the trunk; ribs, lungs and abdominal organs follow it.

    Args:
        azimuth: [z, y, x] rad about the trunk's axis: 0 behind, +-pi in front.
        distance: [z, y, x] mm to the wall, negative inside.
    """

    azimuth: NDArray
    distance: NDArray


def rib_cage(sketch: Sketch) -> Cage:
    """Measures the cage; paints nothing."""
    half_width = sketch.profile(HALF_WIDTH) * sketch.build.lean
    half_depth = sketch.profile(HALF_DEPTH) * sketch.build.lean
    x, y = sketch.canvas.x / half_width, (sketch.canvas.y + 3) / half_depth
    radius = np.sqrt(x**2 + y**2)
    return Cage(azimuth=np.arctan2(x, y), distance=(radius - 1) * np.minimum(half_width, half_depth))


def draw_visceral_fat(sketch: Sketch, outline: Outline, cage: Cage) -> None:
    """Paints fat into the abdominal cavity in cloudy patches, more of it with a higher body mass index."""
    canvas, k = sketch.canvas, sketch.person.scale
    levels = np.maximum(ABDOMEN_TOP_MM * k - canvas.u, canvas.u - ABDOMEN_BOTTOM_MM * k)
    cavity = canvas.coverage(intersection(cage.distance + 4 - outline.belly * 0.5, levels))
    patches = canvas.noise(sketch.rng, 60, 0.5) + 0.35 + sketch.build.visceral * 1.2
    canvas.paint(EVERYWHERE, cavity * np.clip(patches, 0, 1), FAT_HU, sketch.build.fat_suv, Tissue.FAT)


def draw_diaphragm(sketch: Sketch) -> NDArray[np.float32]:
    """Draws the level of each dome; returns u [mm] of the diaphragm above or below each voxel, [z, y, x]."""
    x, y, k = sketch.canvas.x, sketch.canvas.y, sketch.person.scale
    right = RIGHT_DOME_MM * k + sketch.rng.normal(0, 10)
    left = LEFT_DOME_MM * k + sketch.rng.normal(0, 10)
    sideways = 0.011 * ((np.abs(x) - 62) ** 2) * (1 / sketch.build.lean)
    backwards = np.where(y > 0, 0.011, 0.006) * y**2
    return (np.where(x < 0, right, left) + sideways + backwards + 0.25 * (y + 20)).astype(np.float32)
