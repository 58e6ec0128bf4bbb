"""The kernels' cases: each beside other libraries' ways of doing the same, and against what the machine can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..limits import limit_cases
from ..measure import Case, Effort, Machine, measure
from . import fusion, lookup, resample, slices
from .volumes import VOLUME

SECTIONS = {
    "lookup": lookup.cases,
    "fusion": fusion.cases,
    "slices": slices.cases,
    "resample": resample.cases,
}
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the limit of arithmetic
TINY_SIDE = 128


def rows(
    machine: Machine,
    size: str,
    only: Sequence[str],
    effort: Effort,
    say: Callable[[str], None],
    wanted: Callable[[Case], bool] = lambda case: True,
    save: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """All rows. Those of the limits are measured at both ends of the run, and the better counts.

    Args:
        machine: to measure.
        size: of the volumes, a key of `VOLUME`.
        only: keys of SECTIONS.
        effort: that each way is timed with.
        say: told what comes next.
        wanted: which cases are run.
        save: called after each case with all rows until then.

    Returns:
        As `measure` makes them, with "of_limit": the share of what the machine can do.
    """
    limits, found = _limits(machine, size, effort, "at the start"), []
    for section in only:
        for case in SECTIONS[section](machine, size):
            if not wanted(case):
                continue
            say(f"{case.section}: {case.name}")
            found += measure(case, machine, effort)
            save(limits + _beside(limits, found))
    limits += _limits(machine, size, effort, "at the end")
    return limits + _beside(limits, found)


def _beside(limits: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the share that each reaches of what the machine can do."""
    made = []
    for row in rows:
        one = dict(row)
        if "limit" in one:
            fastest = max(r["rate"] for r in limits if r["case"].startswith(one["limit"]) and "rate" in r)
            one["of_limit"] = one.pop("limited_rate") / fastest
        made.append(one)
    return made


def _limits(machine: Machine, size: str, effort: Effort, when: str) -> list[dict[str, Any]]:
    z, y, x = VOLUME[size]
    side = TINY_SIDE if size == "tiny" else SIDE[machine.device]
    measured = [measure(case, machine, effort) for case in limit_cases(machine, z * y * x, side)]
    return [{**row, "case": f"{row['case']}, {when}"} for rows in measured for row in rows]
