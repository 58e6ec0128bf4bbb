"""Collects what a training run measured on its validation cases, stage by stage.

    python benchmarks/training_curve.py --run build/phantom-small/run --json benchmarks/results/training.json

Single slices of single planes are measured, before any fusion, so the numbers are worse than those of the median.
"""

from __future__ import annotations

import csv
import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sctrt.files import write_json

COLUMNS = ("val/mae_body", "val/mae_lung", "val/mae_bone", "val/dice_bone", "val/codes", "val/perplexity")


def main(
    run: Annotated[Path, typer.Option(help="Output folder of a training run.")],
    json: Annotated[Path, typer.Option(help="Where the numbers go.")],
) -> None:
    stages = {folder.name: _rows(folder) for folder in sorted(run.glob("*-*")) if folder.is_dir()}
    config = json_module.loads((run / "config.json").read_text())
    write_json(json, {"command": shlex.join(["python", *sys.argv]), "config": config, "stages": stages})


def _rows(stage: Path) -> list[dict[str, float]]:
    """Validation rows by step; of a resumed run, the last measurement of each step."""
    rows = {}
    for log in sorted(stage.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with log.open() as file:
            for row in csv.DictReader(file):
                if row.get(COLUMNS[0]):
                    step = int(row["step"]) + int(row["step"]) % 2  # Lightning names step 1500 so at the end, else 1499
                    rows[step] = {"step": step, **{name.split("/")[1]: float(row[name]) for name in COLUMNS}}
    return [rows[step] for step in sorted(rows)]


if __name__ == "__main__":
    typer.run(main)
