"""The table of benchmarks/another_site.py, from its JSON."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from sctrt.evaluation.summary import cell, markdown_table

COLUMNS = {  # name in the JSON -> heading, format
    "mae_body": ("MAE body [HU]", ".0f"),
    "mae_dilated_12mm": ("body + 12 mm", ".0f"),
    "mae_lung": ("lung", ".0f"),
    "mae_soft": ("soft", ".0f"),
    "mae_bone": ("bone", ".0f"),
    "bone_dice_200": ("bone Dice", ".2f"),
    "contour_bias_mm": ("wider by [mm]", "+.1f"),
    "lines_mean_percent": ("lines [%]", "+.1f"),
}


def tables(rows: list[dict[str, Any]]) -> str:
    """One table a group."""
    headings = ("", *(heading for heading, _ in COLUMNS.values()), "warnings")
    parts = []
    for group, lines in groupby(rows, key=lambda row: row["group"]):
        cells = [
            [
                row["changed"],
                *(cell(row["errors"][name], layout) for name, (_, layout) in COLUMNS.items()),
                ", ".join(row["outside"]) or "none",
            ]
            for row in lines
        ]
        parts.append(f"**{group}**\n\n{markdown_table(headings, cells)}")
    return "\n".join(parts)


def markdown(content: dict[str, Any]) -> str:
    """The tables, and what was run."""
    return f"{tables(content['rows'])}\n`{content['command']}` at commit {content['commit']}. {content['note']}\n"
