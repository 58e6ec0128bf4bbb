"""Ways to make one CT of three planes', side by side on the same predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..ops import AGREEMENT_HU
from .case import Case
from .summary import Better, flat

MEDIAN = "median"

# Heading, dotted name of a number of `Case`, format, and what is better; None: shown, and no reason to prefer one.
# Jaggedness below the true CT's is no fault, nor a merit: it may be blur.
ROWS: tuple[tuple[str, str, str, Better | None], ...] = (
    ("MAE, body [HU]", "body.mae_hu", ".2f", "low"),
    ("MAE, body + 12 mm [HU]", "dilated_12mm.mae_hu", ".2f", "low"),
    ("ME, body [HU]", "body.me_hu", "+.2f", "near 0"),
    ("MAE, air in the body [HU]", "body.tissues.air.mae_hu", ".1f", "low"),
    ("MAE, lung [HU]", "body.tissues.lung.mae_hu", ".1f", "low"),
    ("MAE, fat [HU]", "body.tissues.fat.mae_hu", ".1f", "low"),
    ("MAE, soft tissue [HU]", "body.tissues.soft.mae_hu", ".1f", "low"),
    ("MAE, bone [HU]", "body.tissues.bone.mae_hu", ".1f", "low"),
    ("Dice, bone above 200 HU", "dice.bone_above_200", ".3f", "high"),
    ("Attenuation factor along lines, mean absolute error [%]", "lines.mean_abs_percent", ".2f", "low"),
    ("Attenuation factor along lines, mean error [%]", "lines.mean_percent", "+.2f", "near 0"),
    ("Contour, synthetic wider by [mm]", "contour.bias_mm", "+.2f", "near 0"),
    ("Jaggedness between slices along z [HU]", "jaggedness.z.synthetic_hu", ".2f", None),
    ("Jaggedness of the true CT along z [HU]", "jaggedness.z.true_hu", ".2f", None),
)

Numbers = dict[str, float | None]  # by dotted name


def inverse_spread(planes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Mean of three predictions, each weighted by 1 / (its distances to both others + `AGREEMENT_HU`).

    The third weighs half of two that agree at least, so this lies between median and mean.

    Args:
        planes: three of [z, y, x] HU.
    """
    total, weights = np.zeros_like(planes[0]), np.zeros_like(planes[0])
    for one in planes:
        weight = 1 / (sum(np.abs(one - other) for other in planes) + AGREEMENT_HU)
        total += weight * one
        weights += weight
    return total / weights


WEIGHTED = {"inverse-spread": inverse_spread}  # beside those that a synthesis offers


def numbers(case: Case) -> Numbers:
    """Those of `ROWS`."""
    found = flat(case)
    return {name: found.get(name) for _, name, _, _ in ROWS}


def compared(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> tuple[int, int]:
    """In how many of the `ROWS` that both have and that tell, the first is better, and in how many the other."""
    better = [_better(one[name], other[name], what) for _, name, _, what in ROWS]
    return better.count(True), better.count(False)


def _better(one: float | None, other: float | None, what: Better | None) -> bool | None:
    if what is None or one is None or other is None:
        return None
    if what == "high":
        one, other = -one, -other
    elif what == "near 0":
        one, other = abs(one), abs(other)
    return None if one == other else one < other
