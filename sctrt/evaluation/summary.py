"""A case as one flat row, and rows as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from .case import Case
from .pet_bic_mac import NAMES
from .pet_error import SYNTHETIC
from .report import MISSING

if TYPE_CHECKING:
    from .cohort import Mean

# What is long and no number of its own: curves, counts and words stay in the JSON.
LISTS = ("histogram_counts", "synthetic", "true", "removed", "sparsification_mae_hu", "ideal_mae_hu", "deciles")
PET_LISTS = ("scan", "unit", "lesions", "organs", "edges", "counts")
SKIPPED = ("shape_zyx", "spacing_zyx_mm", "kvp", "notes", "warnings", "described", *LISTS, *PET_LISTS)

# Of the PET that the synthetic CT corrects; other maps stand beside it in tables of their own (`pet_report`).
PET = f"pet_ac.maps.{SYNTHETIC}"
PET_TISSUES = ("body", "lung", "fat", "soft tissue", "bone", "brain", "heart", "liver")
Better = Literal["low", "high", "near 0"]
# The table for people: heading, dotted name, format, and what is better; None: no reason to prefer one.
ROWS: tuple[tuple[str, str, str, Better | None], ...] = (
    ("MAE, body [HU]", "body.mae_hu", ".1f", "low"),
    ("MAE, body + 12 mm [HU]", "dilated_12mm.mae_hu", ".1f", "low"),
    ("ME, body [HU]", "body.me_hu", "+.1f", "near 0"),
    ("RMSE, body [HU]", "body.rmse_hu", ".1f", "low"),
    ("PSNR, body, range 4000 HU [dB]", "body.psnr_db_range_4000", ".2f", "high"),
    ("PSNR, body, range 3000 HU [dB]", "body.psnr_db_range_3000", ".2f", "high"),
    ("SSIM, body", "body.ssim", ".4f", "high"),
    ("MS-SSIM, body", "body.ms_ssim", ".4f", "high"),
    ("MAE, air in the body [HU]", "body.tissues.air.mae_hu", ".1f", "low"),
    ("MAE, lung [HU]", "body.tissues.lung.mae_hu", ".1f", "low"),
    ("MAE, fat [HU]", "body.tissues.fat.mae_hu", ".1f", "low"),
    ("MAE, soft tissue [HU]", "body.tissues.soft.mae_hu", ".1f", "low"),
    ("MAE, bone [HU]", "body.tissues.bone.mae_hu", ".1f", "low"),
    ("Dice, bone above 150 HU", "dice.bone_above_150", ".3f", "high"),
    ("Dice, bone above 200 HU", "dice.bone_above_200", ".3f", "high"),
    ("Dice, bone above 300 HU", "dice.bone_above_300", ".3f", "high"),
    ("Dice, lung below -400 HU", "dice.lung_below_-400", ".3f", "high"),
    ("BIC-MAC mu-map MAE (Carney at 120 kVp) [1/cm]", "bicmac.ct_mu_map_mae", ".5f", "low"),
    ("Attenuation factor along lines, mean error [%]", "lines.mean_percent", "+.2f", "near 0"),
    ("Attenuation factor along lines, mean absolute error [%]", "lines.mean_abs_percent", ".2f", "low"),
    ("Attenuation factor along lines, 99th percentile [%]", "lines.p99_abs_percent", ".2f", "low"),
    ("Contour, mean distance [mm]", "contour.mean_mm", ".2f", "low"),
    ("Contour, 95th percentile [mm]", "contour.p95_mm", ".2f", "low"),
    ("Contour, synthetic wider by [mm]", "contour.bias_mm", "+.2f", "near 0"),
    ("Jaggedness between slices along z [HU]", "jaggedness.z.synthetic_hu", ".2f", None),
    ("Jaggedness between slices along y [HU]", "jaggedness.y.synthetic_hu", ".2f", None),
    ("Jaggedness between slices along x [HU]", "jaggedness.x.synthetic_hu", ".2f", None),
    ("HU histogram, distance [HU]", "histogram.wasserstein_hu", ".1f", "low"),
    ("Uncertainty, rank correlation with the error", "uncertainty.rank_correlation", ".3f", "high"),
    ("Uncertainty, area under the sparsification curve", "uncertainty.area_sparsification", ".3f", "low"),
    ("Uncertainty, the same if it were ideal", "uncertainty.area_ideal", ".3f", None),
    ("Factor's error to expect, voxels correlated [%]", "expected_lines.correlated.expected_percent", ".2f", None),
    (
        "Its rank correlation with the error, voxels correlated",
        "expected_lines.correlated.rank_correlation",
        ".3f",
        "high",
    ),
    ("Factor's error to expect, voxels independent [%]", "expected_lines.independent.expected_percent", ".2f", None),
    (
        "Its rank correlation with the error, voxels independent",
        "expected_lines.independent.rank_correlation",
        ".3f",
        "high",
    ),
    *((f"SUV error, {t}, mean [%]", f"{PET}.tissues.{t}.mean_percent", "+.1f", "near 0") for t in PET_TISSUES),
    ("SUV error, body, mean absolute [% of the mean]", f"{PET}.tissues.body.absolute_percent", ".1f", "low"),
    ("SUVmax error of lesions, mean [%]", f"{PET}.lesion_means.max_percent", "+.1f", "near 0"),
    ("SUVpeak error of lesions, mean [%]", f"{PET}.lesion_means.peak_percent", "+.1f", "near 0"),
    *((f"BIC-MAC {heading}", f"{PET}.bic_mac.{field}", layout, "low") for field, (heading, layout) in NAMES.items()),
)
BETTER = {name: better for _, name, _, better in ROWS}


def flat(case: BaseModel) -> dict[str, float | None]:
    """Every single number of a record by its dotted name, as body.tissues.bone.mae_hu; None where there is none."""
    return dict(_walk(case.model_dump()))


def csv_text(cases: Mapping[str, Case]) -> str:
    """One line a case, one column a number; a column is empty where a case has none."""
    rows = [{"case": name, **flat(case)} for name, case in cases.items()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def case_rows(cases: Mapping[str, Case]) -> list[list[str]]:
    """Heading and one cell a case, the table for people; numbers that no case has are left out."""
    flats = [flat(case) for case in cases.values()]
    rows = [[heading, *(cell(one.get(name), layout) for one in flats)] for heading, name, layout, _ in ROWS]
    return [row for row in rows if set(row[1:]) != {MISSING}]


def mean_rows(found: Mapping[str, Mean]) -> list[list[str]]:
    """Heading, mean, interval, number of cases, worst case."""
    rows = []
    for heading, name, layout, _ in ROWS:
        if one := found.get(name):
            ends = f"{cell(one.low, layout)} to {cell(one.high, layout)}" if one.low is not None else MISSING
            rows.append([heading, cell(one.mean, layout), ends, str(one.n), one.worst_case or MISSING])
    return rows


MEAN_HEADINGS = ("", "mean", "95 % interval", "cases", "worst case")


def worst_case(name: str, values: Mapping[str, float]) -> str | None:
    """Of a number's values by case, the case with the worst; None where none is better than another."""
    better = BETTER.get(name)
    if better is None:
        return None
    bad = {"low": lambda value: value, "high": lambda value: -value, "near 0": abs}[better]
    return max(values, key=lambda case: bad(values[case]))


def markdown_table(headings: tuple[str, ...] | list[str], rows: list[list[str]]) -> str:
    """A table that ends in a newline; the first column to the left, the others to the right."""
    lines = [list(headings), ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(one.replace('|', '&#124;') for one in line)} |\n" for line in lines)


def cell(value: float | None, layout: str) -> str:
    """A number as text."""
    return MISSING if value is None else format(value, layout)


def _walk(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float | None]]:
    found: list[tuple[str, float | None]] = []
    for name, value in content.items():
        if name in SKIPPED:
            continue
        if isinstance(value, Mapping):
            found.extend(_walk(value, f"{prefix}{name}."))
        elif value is None or isinstance(value, int | float):
            found.append((f"{prefix}{name}", value))
    return found
