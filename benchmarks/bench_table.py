"""Markdown of what `sctrt bench` found, for the documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sctrt.bench import tables
from sctrt.bench.report import CaseFacts, Report, Row
from sctrt.bench.show import markdown
from sctrt.bench.tables import Table


def headline(content: dict[str, Any]) -> str:
    """The questions that the suite answers, one line each."""
    report = Report.model_validate(content)
    made = [_of(tables.ratios(report, case.name)) for case in report.cases if _has_ratios(report, case.name)]
    return "\n\n".join([*made, f"{tables.where(report)}\n"])


def short(content: dict[str, Any]) -> str:
    """sctrt by its fastest runtime at each precision, and the other ways, all on a case a table."""
    report = Report.model_validate(content)
    made = [_short(report, case) for case in report.cases if any(row.case == case.name for row in report.rows)]
    return "\n\n".join([*(markdown(table, title=False) for table in made), f"{tables.where(report)}\n"])


def _short(report: Report, case: CaseFacts) -> Table:
    rows = [row for row in report.rows if row.suite == "pipeline" and row.case == case.name]
    ours = _fastest(rows)
    shape = " x ".join(map(str, case.shape_zyx))
    headings = [f"{shape} voxels of {case.voxel_mm:g} mm", "run [s]", "of sctrt fp32's", tables.PEAK, "mean [HU]"]
    lines = []
    for row in [*ours.values(), *(row for row in rows if not row.ours)]:
        far = row.accuracy.ct_mean_hu if row.accuracy else None
        lines.append(
            [
                row.name + (" *" if row.trimmed else ""),
                tables.number(row.seconds.median),
                f"{row.seconds.median / ours['fp32'].seconds.median:.2f}",
                "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}",
                "-" if far is None else f"{far:.2g}",
            ]
        )
    scaled = (
        "*: not all slices were run; the time is scaled up, memory is not. " if any(row.trimmed for row in rows) else ""
    )
    hu = "HU: mean difference of the CT from the PyTorch loop's in fp32."
    return Table("", headings, lines, f"{scaled}{hu}")


def _fastest(rows: Sequence[Row]) -> dict[str, Row]:
    """Of our rows whose output is right, the fastest at each precision."""
    found: dict[str, Row] = {}
    for row in rows:
        if not row.ours or row.wrong or row.precision is None:
            continue
        best = found.get(row.precision)
        if best is None or row.seconds.median < best.seconds.median:
            found[row.precision] = row
    return found


def stages(content: dict[str, Any]) -> str:
    """What the time of sctrt's fastest runs went on."""
    report = Report.model_validate(content)
    case = report.cases[0].name
    rows = _fastest([row for row in report.rows if row.suite == "pipeline" and row.case == case]).values()
    totals = [row.stages_s or {} for row in rows]
    made = Table("", ["", *(f"{row.name}, {what}" for row in rows for what in ("[s]", "share"))])
    for stage in totals[0]:
        cells = [(one.get(stage, 0.0), one["total"]) for one in totals]
        made.rows.append([stage, *(text for s, total in cells for text in (f"{s:.3f}", f"{s / total:.1%}"))])
    return f"{markdown(made, title=False)}\n\n{tables.where(report)}\n"


def pipeline(content: dict[str, Any]) -> str:
    """All ways from PET to CT."""
    report = Report.model_validate(content)
    rows = {row.case for row in report.rows if row.suite == "pipeline"}
    made = [_of(tables.pipeline(report, case.name)) for case in report.cases if case.name in rows]
    return "\n\n".join([*made, f"{tables.where(report)}\n"])


def others(content: dict[str, Any]) -> str:
    """The other suites, and what was left out."""
    report = Report.model_validate(content)
    asked = report.model_copy(update={"suites": [suite for suite in report.suites if suite != "pipeline"]})
    return "\n\n".join([*(_of(table) for table in tables.tables(asked)), f"{tables.where(report)}\n"])


def scaling(content: dict[str, Any]) -> str:
    """Exponents, and the points that they were fitted to."""
    report = Report.model_validate(content)
    made = [_of(tables.scaling(report)), _of(tables.points(report))]
    return "\n\n".join([*made, f"{tables.where(report)}\n"])


def roofline(content: dict[str, Any]) -> str:
    """Stages beside their floors."""
    report = Report.model_validate(content)
    return "\n\n".join([*(_of(table) for table in tables.rooflines(report)), f"{tables.where(report)}\n"])


def _has_ratios(report: Report, case: str) -> bool:
    return any(one.case == case for one in report.ratios)


def _of(table: Table) -> str:
    return markdown(table)
