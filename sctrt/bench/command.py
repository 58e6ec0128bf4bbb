"""What `sctrt bench` does: runs suites, shows and writes what they found; shows or compares earlier runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import report as reports
from .cases import SIZES
from .compare import compare as compared
from .environment import BUSY
from .report import Report
from .run import SUITES
from .run import run as measure
from .show import show
from .tables import tables, where
from .work import Say

__all__ = ["SIZES", "SUITES", "compare", "read", "run"]


def run(
    suites: Sequence[str], how: dict[str, Any], json: Path | None, chart: Path | None, out: Console, say: Say
) -> list[str]:
    """Measures, shows and writes; the names of our own rows that are wrong (see `Row.must_agree`).

    Args:
        how: arguments of `run.run`; `threads` None means all cores.
    """
    busy = os.getloadavg()[0]
    if busy > BUSY:
        say(f"warning: other work takes {busy:.1f} cores; the times will be too long, the threaded ones by far")
    threads = how["threads"] or len(os.sched_getaffinity(0))
    found = measure(suites, **{**how, "threads": threads}, say=say)
    _show(found, out)
    if json:
        reports.save(json, found)
    if chart:
        _draw(found, chart)
    return [f"{row.suite}: {row.case}: {row.name}" for row in found.rows if row.wrong and row.must_agree]


def read(path: Path, chart: Path | None, out: Console) -> None:
    """Shows an earlier run; ReportError where it is none."""
    found = reports.load(path)
    _show(found, out)
    if chart:
        _draw(found, chart)


def compare(one: Path, other: Path, out: Console) -> None:
    """Shows what differs between two runs; ReportError where one of them is none."""
    show(compared(reports.load(one), reports.load(other)), out)


def _show(found: Report, out: Console) -> None:
    show(tables(found), out)
    out.print(where(found), markup=False, highlight=False, soft_wrap=not out.is_terminal)
    for note in found.notes:
        out.print(note, markup=False, highlight=False)


def _draw(found: Report, path: Path) -> None:
    from .chart import draw

    draw(found, path)
