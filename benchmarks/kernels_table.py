"""The report of kernels.py as tables, for the terminal and for the documents."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]

HEADINGS = ("median [ms]", "5 to 95 %", "rate", "of limit", "times ours", "mismatches", "max error")
HEADLINES = {  # section -> the case that the short table shows; None: the first
    "lookup": None,
    "fusion": None,
    "extract": "sagittal, float32",
    "insert": "sagittal, float32",
    "resample": None,
}


def cells(row: Row) -> list[str]:
    """A row's numbers under HEADINGS."""
    checked = "mismatches" in row
    return [
        f"{row['median_ms']:.3g}",
        f"{row['p5_ms']:.3g} to {row['p95_ms']:.3g}",
        f"{row['rate']:.3g} {row['unit']}" if "rate" in row else "",
        f"{row['of_limit']:.0%}" if "of_limit" in row else "",
        _times(row["times_ours"]) if "times_ours" in row else "",
        f"{row['mismatches']}" if checked else "",
        f"{row['max_error']:.1g} {row['error_unit']}".strip() if checked else "",
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def show(report: dict[str, Any]) -> None:
    """Prints a table a section."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for section, rows in _sections(report):
        console.print(_table(section, rows))
    console.print(_where(report))


def _table(section: str, rows: list[Row]) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(title=section, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("", no_wrap=True)
    for heading in HEADINGS:
        made.add_column(heading, justify="right")
    for case, ways in _cases(rows):
        made.add_section()
        made.add_row(f"[bold]{case}")
        for row in ways:
            made.add_row(f"  {row['name']}", *([row["skipped"]] if "skipped" in row else cells(row)))
    return made


def markdown(report: dict[str, Any]) -> str:
    """A table a section, and what could not run."""
    lines = []
    for section, rows in _sections(report):
        lines += [f"**{section}**", "", f"| | {' | '.join(HEADINGS)} |", f"| --- |{' ---: |' * len(HEADINGS)}"]
        for case, ways in _cases(rows):
            lines.append(f"| **{case}** |{' |' * len(HEADINGS)}")
            lines += [f"| {row['name']} | {' | '.join(cells(row))} |" for row in ways if "skipped" not in row]
        skipped = dict.fromkeys(f"{row['name']} ({row['skipped']})" for row in rows if "skipped" in row)
        lines += ["", *([f"Left out: {'; '.join(skipped)}.", ""] if skipped else [])]
    return "\n".join([*lines, f"{_where(report)}\n"])


def short(report: dict[str, Any]) -> str:
    """One line a kernel: ours, and how many times as long the others take."""
    lines = ["| | sctrt [ms] | of limit | times as long |", "| --- | ---: | ---: | --- |"]
    for section, rows in _sections(report):
        cases = dict(_cases(rows))
        if section not in HEADLINES:
            continue
        case = HEADLINES[section] or next(iter(cases))
        ours, *others = (row for row in cases[case] if "skipped" not in row)
        times = [
            f"{row['name']} {_times(row['times_ours'])}" for row in others if not row["ours"] and "mismatches" in row
        ]
        median, limit = cells(ours)[0], cells(ours)[3]
        lines.append(f"| {section}, {case} | {median} | {limit} | {', '.join(times)} |")
    return "\n".join([*lines, "", f"{_where(report)}\n"])


def _sections(report: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    return [(name, list(rows)) for name, rows in groupby(report["rows"], lambda row: row["section"])]


def _cases(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return list(found.items())


def _where(report: dict[str, Any]) -> str:
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    where = f"{report['gpu']}, {report['device']}" if "gpu" in report else f"{report['device']}, {threads}"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name in _named(report))
    size = "" if report["size"] == "full" else f" Size {report['size']}: {report['size_means']}."
    load = f"load average {report['load_average_before']:.1f} before the run"
    return f"`{report['command']}` at commit {report['commit']}, {where}, {versions}, {load}.{size}"


def _named(report: dict[str, Any]) -> set[str]:
    """Libraries of which a way ran."""
    names = " ".join(row["name"].lower() for row in report["rows"] if "skipped" not in row)
    return {name for name in report["versions"] if name.split("-")[0] in names.replace("np.", "numpy ")}
