"""Markdown of what `sctrt bench` found, for the documents."""

from __future__ import annotations

from typing import Any

from sctrt.bench import tables
from sctrt.bench.report import Report
from sctrt.bench.show import markdown
from sctrt.bench.tables import Table


def headline(content: dict[str, Any]) -> str:
    """The questions that the suite answers, one line each."""
    report = Report.model_validate(content)
    made = [_of(tables.ratios(report, case.name)) for case in report.cases if _has_ratios(report, case.name)]
    return "\n\n".join([*made, f"{tables.where(report)}\n"])


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
