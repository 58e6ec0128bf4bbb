"""Writes the README's tables from benchmarks/results/*.json, so that no number is typed.

python benchmarks/readme.py            # --check: fail if a table is not up to date
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

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


SECTIONS = {"held-out": ("held_out.json", held_out), "speed": ("whole_body.json", speed)}


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on a stale table.")] = False,
) -> None:
    path = ROOT / "README.md"
    old = text = path.read_text()
    for name, (file, render) in SECTIONS.items():
        table = render(json.loads((RESULTS / file).read_text()))
        pattern = rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        text = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}{m[2]}", text, flags=re.DOTALL)
    if check and text != old:
        raise SystemExit("the README's tables are not those of benchmarks/results; run python benchmarks/readme.py")
    if not check:
        path.write_text(text)


if __name__ == "__main__":
    typer.run(main)
