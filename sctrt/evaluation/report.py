"""Metrics as a table, for the terminal and for Markdown files."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from .metrics import Metrics

# Wherever numbers measured on phantoms are printed, this is printed with them.
PHANTOM_NOTE = "Simulated phantom: not comparable with clinical results."
MISSING = "-"

# Heading, short heading for 80 columns (errors are MAE [HU] but for the last two), field of Metrics, format.
COLUMNS = (
    ("MAE body [HU]", "body", "mae_body", ".1f"),
    ("MAE body + 12 mm [HU]", "+12 mm", "mae_dilated_12mm", ".1f"),
    ("MAE lung [HU]", "lung", "mae_lung", ".1f"),
    ("MAE soft [HU]", "soft", "mae_soft", ".1f"),
    ("MAE bone [HU]", "bone", "mae_bone", ".1f"),
    ("Bone Dice", "bone Dice", "bone_dice_200", ".3f"),
    ("mu MAE [1/cm]", "mu [1/cm]", "mu_mae_body", ".5f"),
)


def table(rows: Mapping[str, Metrics], *, note: str | None = None) -> Table:
    """One line a name, for printing with rich; `note` stands below."""
    made = Table(box=box.SIMPLE_HEAD, caption=note, caption_justify="left")
    made.add_column("MAE [HU]", no_wrap=True)
    for _, heading, _, _ in COLUMNS:
        made.add_column(heading, justify="right")
    for name, metrics in rows.items():
        made.add_row(Text(name), *_cells(metrics))
    return made


def markdown(rows: Mapping[str, Metrics], *, note: str | None = None) -> str:
    """The same as a Markdown table that ends in a newline; `note` is a paragraph below."""
    lines = [
        ["", *(heading for heading, _, _, _ in COLUMNS)],
        ["---"] + ["---:"] * len(COLUMNS),
        *([name, *_cells(metrics)] for name, metrics in rows.items()),
    ]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{text}\n{note}\n" if note else text


def _cells(metrics: Metrics) -> list[str]:
    values = ((getattr(metrics, field), layout) for _, _, field, layout in COLUMNS)
    return [MISSING if value is None else format(value, layout) for value, layout in values]
