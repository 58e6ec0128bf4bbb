"""Each stage of a synthesis beside the least time that this machine needs for it, by rates that are measured here."""

from __future__ import annotations

from typing import Literal

from ... import engines
from ..limits import limit_cases, matrix_cases
from ..measure import Effort, Machine
from ..measure import measure as timed
from ..report import Findings, LeftOut, Rate, Roofline, Row, Spread, Stage
from ..work import Plan, Request, Save
from .common import Context, facts_of
from .pipeline import default_way, in_time

EFFORT = Effort(1.0, 5, 50)
TINY = Effort(0.0, 2, 2)
ELEMENTS = 14_000_000  # of the copies: far more than a cache holds
SIDE = {"cpu": 2048, "cuda": 8192}  # of matrices
CONVOLUTION = {"cpu": (1, 64), "cuda": (8, 352)}  # images, and their side
COPY = "copy"
RATES_S = 60.0


def suite(context: Context, plan: Plan) -> Findings:
    """The default runtime at each precision, the machine's rates measured before and after."""
    case = in_time(context, plan, context.case(context.sizes[0]))
    found = Findings(cases=[facts_of(case)])
    size = "tiny" if context.sizes == ("tiny",) else ""
    seconds = min(RATES_S, plan.left() / 4)
    rates = context.run(plan, task="rates", suite="roofline", name="rates", size=size, seconds=seconds)
    found.add(rates)
    kind, way = context.device.split(":")[0], default_way(context)
    for i, precision in enumerate(engines.PRECISIONS[kind]):
        asked = {**way, "precision": precision, "name": f"{way['runtime']} {precision}"}
        seconds = plan.left() / (len(engines.PRECISIONS[kind]) - i)
        where = {"suite": "roofline", "case": case.facts["name"], "folder": str(case.folder), "time_alone": True}
        added = context.run(plan, seconds=seconds, **where, **asked)
        found.add(added)
        for row in added.rows:
            if made := roofline(row, rates.rows):
                found.rooflines.append(made)
    return found


def roofline(row: Row, rates: list[Row]) -> Roofline | None:
    """A synthesis beside its floors; None without rates, or without a count of its operations."""
    copy = [one.rate.value for one in rates if one.case.startswith(COPY) and one.rate]
    matrix = [one.rate.value for one in rates if one.precision == row.precision and one.rate]
    if not copy or not matrix or row.gflop is None or row.gbyte is None or row.stages_s is None:
        return None
    stages = [
        _stage(name, seconds, row.gflop.get(name), row.gbyte.get(name), max(copy), max(matrix))
        for name, seconds in row.stages_s.items()
    ]
    return Roofline(
        case=row.case,
        runtime=row.runtime or "",
        precision=row.precision or "",
        copy_gb_s=max(copy),
        matrix_gflop_s=max(matrix),
        stages=stages,
        note="A stage's inputs and outputs count once, nothing within it.",
    )


def _stage(name: str, seconds: float, gflop: float | None, gbyte: float | None, copy: float, matrix: float) -> Stage:
    floors: dict[Literal["memory", "arithmetic"], float] = {}
    if gbyte is not None:
        floors["memory"] = gbyte / copy
    if gflop is not None:
        floors["arithmetic"] = gflop / matrix
    bound = max(floors, key=lambda which: floors[which]) if floors else None
    return Stage(
        name=name, seconds=seconds, gflop=gflop, gbyte=gbyte, floor_s=floors[bound] if bound else None, bound=bound
    )


def measure(request: Request, save: Save) -> None:
    """Worker: copies, and matrix products and convolutions at each precision; the fastest way of each counts."""
    kind = request.device.split(":")[0]
    plan, machine = Plan(request.seconds), Machine(kind, request.threads)
    tiny = request.size == "tiny"
    effort, elements, side = (TINY, 10_000, 64) if tiny else (EFFORT, ELEMENTS, SIDE[kind])
    images = (1, 16) if tiny else CONVOLUTION[kind]
    found = Findings()
    cases = [(case, "fp32" if case.name == "fma" else None) for case in limit_cases(machine, elements, side)]
    for precision in engines.PRECISIONS[kind]:
        cases += [(case, precision) for case in matrix_cases(machine, side, *images, precision)]
    for case, precision in cases:
        if plan.ended():
            found.left_out.append(LeftOut(suite="roofline", case="rates", name=case.name, reason="the time was up"))
            continue
        for one in timed(case, machine, effort):
            if "skipped" in one:
                found.left_out.append(
                    LeftOut(suite="roofline", case=case.name, name=one["name"], reason=one["skipped"])
                )
                continue
            spread = Spread(
                median=one["median_ms"] / 1e3, p5=one["p5_ms"] / 1e3, p95=one["p95_ms"] / 1e3, samples=one["samples"]
            )
            rate = Rate(value=one["rate"], unit=one["unit"])
            if rate.unit == "GFMA/s":
                rate = Rate(value=2 * rate.value, unit="GFLOP/s")
            row = Row(suite="roofline", case=case.name, name=one["name"], ours=False, seconds=spread, rate=rate)
            found.rows.append(row.model_copy(update={"precision": precision, "threads": request.threads}))
        save(found)
