"""The kernels beside other libraries, on volumes of an eighth of a body in 1.5 mm."""

from __future__ import annotations

import sys
from typing import Any

from ..kernels import rows
from ..measure import Case, Effort, Machine
from ..report import Accuracy, Findings, LeftOut, Rate, Row, Spread
from ..work import Plan, Request, Save
from .common import Context

EFFORT = {"much": Effort(0.5, 5, 30), "little": Effort(0.05, 3, 10), "tiny": Effort(0.0, 2, 2)}
ORDER = ("slices", "fusion", "resample", "lookup")  # the quickest first, for want of time
MUCH_S = 180.0  # that all ways take with much effort, on 2 cores
# What the names of cases begin with that tell most; `python benchmarks/kernels.py` has all.
SHOWN = (
    *("normal, 50,000", "normal, 2,100,000", "normal, 200 ", "trained", "350 x 200 x 200", "12 x 10 x 14"),
    *("axial, float32", "coronal, float32", "sagittal, float32", "oblique, 1.5 -> 4 mm", "aligned, 4 -> 1.5 mm"),
)


def suite(context: Context, plan: Plan) -> Findings:
    size = "tiny" if context.sizes == ("tiny",) else "quick"
    return context.run(plan, task="kernels", suite="kernels", name="kernels", size=size, seconds=plan.left())


def measure(request: Request, save: Save) -> None:
    """Worker."""
    plan = Plan(request.seconds)
    machine = Machine(request.device.split(":")[0], request.threads)
    effort = EFFORT["tiny" if request.size == "tiny" else "much" if request.seconds > MUCH_S else "little"]
    late: list[LeftOut] = []

    def wanted(case: Case) -> bool:
        if not case.name.startswith(SHOWN):
            return False
        if plan.ended():
            late.append(
                LeftOut(suite="kernels", case=case.section, name=case.name, reason="the time was up; more --minutes")
            )
        return not plan.ended()

    def keep(found: list[dict[str, Any]]) -> None:
        skipped = [_left_out(row) for row in found if "skipped" in row]
        timed = [_row(row, request) for row in found if "skipped" not in row]
        save(Findings(rows=timed, left_out=[*late, *skipped]))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    keep(rows(machine, request.size, ORDER, effort, say, wanted, keep))


def _left_out(row: dict[str, Any]) -> LeftOut:
    reason = row["skipped"]
    if reason.endswith("is not installed"):
        reason += "; pip install 'sctrt[bench]'"
    return LeftOut(suite="kernels", case=f"{row['section']}: {row['case']}", name=row["name"], reason=reason)


def _row(row: dict[str, Any], request: Request) -> Row:
    seconds = Spread(
        median=row["median_ms"] / 1e3, p5=row["p5_ms"] / 1e3, p95=row["p95_ms"] / 1e3, samples=row["samples"]
    )
    rate = None
    if "rate" in row:
        rate = Rate(value=row["rate"], unit=row["unit"], of_limit=row.get("of_limit"))
    accuracy = None
    if "mismatches" in row:
        accuracy = Accuracy(
            against="float64",
            mismatches=row["mismatches"],
            max_error=_finite(row["max_error"]),
            allowed="no value off by more than float32's rounding",
            within=row["mismatches"] == 0,
        )
    return Row(
        suite="kernels",
        case=f"{row['section']}: {row['case']}",
        name=row["name"],
        ours=row["ours"],
        seconds=seconds,
        threads=request.threads,
        warm_up_runs=1,
        rate=rate,
        times_ours=row.get("times_ours"),
        accuracy=accuracy,
    )


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
