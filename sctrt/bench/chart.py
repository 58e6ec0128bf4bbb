"""The syntheses of a report as bars: how long each way takes, and its memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..errors import ReportError
from ..files import replaced_when_whole
from .report import Report, Row

OURS, OTHERS, WRONG = "#1f6f8b", "#b0b7bd", "#c8553d"
BAR_INCHES, EDGE_INCHES = 0.32, 1.4
WIDTH_INCHES = 11.0
STYLE: dict[Any, str] = {"svg.fonttype": "none", "svg.hashsalt": "sctrt"}  # small, and equal files of equal reports


def draw(report: Report, path: Path) -> None:
    """Writes .png or .svg, one line of panels a case: seconds to the left, memory to the right.

    The file's description names the report (`source`).

    Raises:
        ReportError: the report has no syntheses.
    """
    cases = {
        case.name: [row for row in report.rows if row.suite == "pipeline" and row.case == case.name]
        for case in report.cases
    }
    cases = {name: sorted(rows, key=lambda row: -row.seconds.median) for name, rows in cases.items() if rows}
    if not cases:
        raise ReportError(
            "expected a report with syntheses to draw, got none; run sctrt bench pipeline --json FILE first"
        )
    heights = [EDGE_INCHES + BAR_INCHES * len(rows) for rows in cases.values()]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    panels = figure.subplots(len(cases), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2))
    for (name, rows), (left, right) in zip(cases.items(), panels, strict=True):
        of = next(case for case in report.cases if case.name == name)
        names = [row.name + (" *" if row.trimmed else "") for row in rows]
        colours = [_colour(row) for row in rows]
        low, high = ([abs(getattr(row.seconds, end) - row.seconds.median) for row in rows] for end in ("p5", "p95"))
        left.barh(names, [row.seconds.median for row in rows], xerr=(low, high), color=colours, ecolor="#444444")
        left.set_xlabel("seconds from PET to CT")
        left.set_title(f"{name}: {' x '.join(map(str, of.shape_zyx))} voxels of {of.voxel_mm:g} mm", loc="left")
        right.barh(names, [row.peak_memory_mb or 0.0 for row in rows], color=colours)
        right.set_xlabel("peak memory [MB]")
        right.set_yticklabels([])
    machine = report.machine
    notes = f"{machine.gpu or machine.device}, {machine.threads} threads, commit {report.commit}"
    figure.supxlabel(
        f"{notes}; blue: sctrt; red: further from fp32 than allowed; *: scaled up from some slices", fontsize=8
    )
    kind = path.suffix[1:].lower()
    facts = {"Description": source(report), **({"Date": None} if kind == "svg" else {})}
    with replaced_when_whole(path) as file, matplotlib.rc_context(STYLE):
        figure.savefig(file, format=kind, dpi=150, metadata=facts)


def source(report: Report) -> str:
    """What tells from which report a chart was drawn."""
    return f"sctrt bench, SHA-256 of the report {hashlib.sha256(report.model_dump_json().encode()).hexdigest()}"


def _colour(row: Row) -> str:
    return WRONG if row.wrong else OURS if row.ours else OTHERS
