"""How time and memory grow: with the body's voxels in two ways, with threads, with the slices of a call.

Note [Ways to grow]
A longer body has more axial slices, and longer coronal and sagittal ones; a larger body has more slices of each plane,
and all of them are larger. Convolutions cost by the voxel in both. Attention between the latents of a slice costs by
the square of the slice's area: with a longer body its cost grows as the square of the length in two planes and linearly
in the third, with a larger one as the power 5/3 of the voxels. Its share of the operations stands beside each curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import engines
from ...errors import VolumeError
from ...planes import PLANES, padded_size
from ...volume import Volume
from ..cases import Case, magnified, middle_part, stacked
from ..fit import exponent, straight_line
from ..report import Findings, LeftOut, Point, Row, Series, Spread
from ..work import Plan
from .common import Context, facts_of
from .pipeline import default_way

BASE_MM = 480.0  # of a case; four times as much is the length of a total-body scanner
TIMES = (0.25, 1.0, 4.0, 0.5, 2.0)  # the ends first, for want of time
BATCHES = (1, 2, 4, 8, 16)
LEAST_POINTS = 2
PROBE = 0.25  # of the base, which tells how long all of it takes
LEAST_SHARE = 0.25  # that the base is cut to at most
RUNS = 30  # of the base, that all points together cost about, with what starting them takes
MB = 1e6

Grow = Callable[[Volume, float], Volume]


def suite(context: Context, plan: Plan) -> Findings:
    """Series after series, each with its share of the time."""
    case = context.case(context.sizes[0])
    pet = case.pet
    base = middle_part(pet, min(1.0, BASE_MM / (pet.shape[0] * pet.spacing[0])))
    base = _in_time(context, plan, base)
    what = f"the middle {pet.spacing[0] * base.shape[0]:.0f} mm of {case.facts['name']}, {case.facts['what']}"
    found = Findings(cases=[facts_of(context.save("scaling", base, what=what))])
    way = default_way(context)
    others = _other_precisions(context, way)
    jobs: list[tuple[float, Callable[[Plan], tuple[Series, Findings]]]] = [
        (
            3.0,
            lambda share: _voxels(context, share, base, stacked, "longer body", way),
        ),
        (3.0, lambda share: _voxels(context, share, base, magnified, "larger body", way)),
        *((2.0, lambda share, one=one: _voxels(context, share, base, stacked, "longer body", one)) for one in others),
        (1.0, lambda share: _threads(context, share, base, way)),
        (0.5, lambda share: _batches(context, share, base, way)),
    ]
    for i, (weight, job) in enumerate(jobs):
        share = Plan(plan.left() * weight / sum(other for other, _ in jobs[i:]))
        series, added = job(share)
        found.add(added)
        if len(series.points) >= LEAST_POINTS:
            found.scaling.append(series)
    return found


def _in_time(context: Context, plan: Plan, base: Volume) -> Volume:
    """The base, or less of it where the machine is too slow to run all points in this time."""
    part = context.save("probe", middle_part(base, PROBE), what="to see how long all takes")
    row, _ = _once(context, plan, part, "how long", 0.0, default_way(context))
    if row is None:
        return base
    share = plan.left() / (RUNS * row.seconds.median / PROBE)
    return base if share >= 1 else middle_part(base, max(share, LEAST_SHARE))


def _other_precisions(context: Context, way: dict[str, Any]) -> list[dict[str, Any]]:
    kind = context.device.split(":")[0]
    return [{**way, "precision": other} for other in engines.PRECISIONS[kind] if other != way["precision"]]


def _voxels(
    context: Context, plan: Plan, base: Volume, grow: Grow, name: str, way: dict[str, Any]
) -> tuple[Series, Findings]:
    """A synthesis of a body of 0.25 to 4 times the voxels."""
    title = f"{name}, {way['runtime']} {way['precision']}"
    found, points = Findings(), []
    for i, times in enumerate(TIMES):
        try:
            case = context.save(f"x{times:g}", grow(base, times), what="scaled")
        except VolumeError as error:  # too little of a body
            found.left_out.append(LeftOut(suite="scaling", case=title, name=f"x {times:g}", reason=str(error)))
            continue
        seconds = plan.left() * times / sum(TIMES[i:])
        row, added = _once(context, plan, case, f"{title}, x {times:g}", seconds, way)
        found.left_out += added.left_out
        if row:
            points.append((times, case, row))
    return fitted(
        title,
        "times the voxels",
        [_point(times, case, row) for times, case, row in points],
        [row for _, _, row in points],
    ), found


def _once(
    context: Context, plan: Plan, case: Case, name: str, seconds: float, way: dict[str, Any], **more: Any
) -> tuple[Row | None, Findings]:
    where = {"suite": "scaling", "folder": str(case.folder), "time_alone": True, "seconds": seconds}
    added = context.run(plan, name=name, **{**where, **way, **more})
    return (added.rows[0] if added.rows else None), added


def _point(x: float, case: Case, row: Row) -> Point:
    grid = case.facts["network_grid_zyx"]
    z, y, x_ = grid
    largest = max((padded_size((z, y, x_), plane, 1) for plane in PLANES), key=lambda size: size[0] * size[1])
    return Point(
        x=x,
        voxels=z * y * x_,
        slice=list(largest),
        seconds=row.seconds,
        peak_memory_mb=row.peak_memory_mb,
    )


def fitted(name: str, x: str, points: Sequence[Point], rows: Sequence[Row]) -> Series:
    """A series with its exponents, against the voxels of the body's box: of the time and of the operations; memory."""
    order = sorted(range(len(points)), key=lambda i: points[i].x)
    points, rows = [points[i] for i in order], [rows[i] for i in order]
    series = Series(name=name, x=x, points=list(points))
    if len(points) < LEAST_POINTS:
        return series
    voxels = [float(point.voxels or 0) for point in points]
    series.time = exponent(voxels, [point.seconds.median for point in points])
    memory = [point.peak_memory_mb for point in points]
    if None not in memory:
        fixed, slope = straight_line(voxels, [one or 0.0 for one in memory])
        series.memory_fixed_mb, series.memory_bytes_per_x = fixed, slope * MB
    work = [row.gflop for row in rows if row.gflop]
    if len(work) == len(points):
        totals = [one["encoder"] + one["decoder"] for one in work]
        series.operations = exponent(voxels, totals)
        series.attention_share = [one["attention"] / total for one, total in zip(work, totals, strict=True)]
    return series


def _threads(context: Context, plan: Plan, base: Volume, way: dict[str, Any]) -> tuple[Series, Findings]:
    """The same body on 1, 2, 4, ... threads."""
    found, points = Findings(), []
    case = context.save("threads", base, what="scaled")
    counts = sorted({context.threads, *(2**i for i in range(8) if 2**i < context.threads)})
    for i, threads in enumerate(counts):
        name = f"{threads} threads"
        row, added = _once(context, plan, case, name, plan.left() / (len(counts) - i), way, threads=threads)
        found.left_out += added.left_out
        if row:
            points.append(_point(threads, case, row))
    series = Series(name=f"threads, {way['runtime']} {way['precision']}", x="threads", points=points)
    if len(points) >= LEAST_POINTS:
        series.time = exponent([point.x for point in points], [point.seconds.median for point in points])
    return series, found


def _batches(context: Context, plan: Plan, base: Volume, way: dict[str, Any]) -> tuple[Series, Findings]:
    """The encoder on 1, 2, 4, ... axial slices a call: seconds a call."""
    case = context.save("batches", base, what="scaled")
    where = {"suite": "scaling", "folder": str(case.folder), "seconds": plan.left(), "batches": list(BATCHES)}
    added = context.run(plan, name="slices a call", **{**way, "task": "engines"}, **where)
    rows = [row for row in added.rows if row.case.startswith("encoder, axial") and row.batch]
    points = []
    for row in rows:
        seconds = Spread(
            **{
                name: value * (row.batch or 1) if name != "samples" else value
                for name, value in row.seconds.model_dump().items()
            }
        )
        points.append(Point(x=row.batch or 1, slice=(row.shape or [])[2:], seconds=seconds))
    name = f"slices a call, encoder, {way['runtime']} {way['precision']}"
    series = Series(name=name, x="slices", points=points)
    if len(points) >= LEAST_POINTS:
        series.time = exponent([point.x for point in points], [point.seconds.median for point in points])
    return series, Findings(left_out=added.left_out)
