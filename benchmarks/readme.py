"""Writes the documents' tables from benchmarks/results/*.json, so that no number is typed.

python benchmarks/readme.py            # --check: fail if a table is not up to date
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import kernels_table
import pipeline_table
import typer

from sctrt.evaluation import report
from sctrt.evaluation.metrics import Metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def held_out(content: dict[str, Any]) -> str:
    """One table a case."""
    parts = []
    for case, rows in content["cases"].items():
        parts.append(f"**{case}**\n\n{report.markdown({name: Metrics(**row) for name, row in rows.items()})}")
    return "\n".join([*parts, f"`{content['command']}` at commit {content['commit']}. {content['note']}\n"])


def speed(content: dict[str, Any]) -> str:
    """One whole body, sctrt beside a plain PyTorch loop."""
    lines = ["| | load [s] | run [s] | peak memory [MB] |", "| --- | ---: | ---: | ---: |"]
    for name, row in content["rows"].items():
        lines.append(f"| {name} | {row['load_s']:.1f} | {row['seconds']:.1f} | {row['peak_memory_mb']:.0f} |")
    return "\n".join([*lines, "", f"{content['summary']}\n"])


def runtimes(content: dict[str, Any]) -> str:
    """HU differences between runtimes."""
    lines = ["| fp32, against PyTorch | mean [HU] | 99.9th percentile [HU] | max [HU] | flipped codes |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, row in content["rows"].items():
        if name == content["oracle"]:
            continue
        numbers = f"{row['mean_hu']:.4f} | {row['p99.9_hu']:.3f} | {row['max_hu']:.1f}"
        lines.append(f"| {name} | {numbers} | {row['flipped_codes']} of {row['codes']} |")
    return "\n".join([*lines, "", f"`{content['command']}` at commit {content['commit']}, {content['device']}.\n"])


def training(content: dict[str, Any]) -> str:
    """What each stage reached on the validation cases."""
    names = ("step", "mae_body", "mae_lung", "mae_bone", "dice_bone", "codes", "perplexity")
    headings = ("step", "MAE body [HU]", "MAE lung [HU]", "MAE bone [HU]", "bone Dice", "codes used", "perplexity")
    lines = [f"| stage | {' | '.join(headings)} |", f"| --- |{' ---: |' * len(headings)}"]
    for stage, rows in content["stages"].items():
        for row in rows:
            cells = [f"{row[name]:.2f}" if name == "dice_bone" else f"{row[name]:.0f}" for name in names]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{content['command']}`\n"])


SECTIONS = (  # document, section, results, renderer
    ("README.md", "held-out", "held_out.json", held_out),
    ("README.md", "speed", "whole_body.json", speed),
    ("README.md", "runtimes", "runtimes.json", runtimes),
    ("README.md", "kernels", "kernels.json", kernels_table.short),
    ("README.md", "gpu", "gpu_pipeline.json", pipeline_table.markdown),
    ("docs/model.md", "training", "training.json", training),
    ("docs/kernels.md", "kernels", "kernels.json", kernels_table.markdown),
    ("docs/kernels.md", "kernels-cuda", "kernels_cuda.json", kernels_table.markdown),
)
# Where no GPU was at hand there is no file, and the document keeps its words.
NEED_A_GPU = {"kernels_cuda.json", "gpu_pipeline.json"}


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on a stale table.")] = False,
) -> None:
    for document, name, file, render in SECTIONS:
        if file in NEED_A_GPU and not (RESULTS / file).exists():
            continue
        path = ROOT / document
        table = render(json.loads((RESULTS / file).read_text()))
        pattern = rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        old = path.read_text()
        new = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}{m[2]}", old, flags=re.DOTALL)
        if new == old:
            continue
        if check:
            raise SystemExit(f"{document}: {name} is not what benchmarks/results says; run python benchmarks/readme.py")
        path.write_text(new)


if __name__ == "__main__":
    typer.run(main)
