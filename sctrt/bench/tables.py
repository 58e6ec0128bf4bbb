"""A report as tables: for a terminal, as plain lines, and as Markdown for documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .accuracy import ALLOWED_REDUCED_HU
from .report import Report, Row, Spread

PEAK = "peak memory [MB]"
MOST_NAMES = 3  # of what was left out for one reason


@dataclass(frozen=True)
class Table:
    """A title, headings and rows of text; the first column is a name."""

    title: str
    headings: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    caption: str = ""


def tables(report: Report) -> Iterator[Table]:
    """All that was measured, suite by suite."""
    for suite in report.suites:
        rows = [row for row in report.rows if row.suite == suite]
        if suite == "kernels":
            yield _kernels(rows)
        if suite == "engines":
            yield _engines(rows)
        if suite == "build":
            yield _build(rows)
        if suite == "pipeline":
            yield from _pipelines(report, rows)
    if report.scaling:
        yield scaling(report)
        yield points(report)
    yield from rooflines(report)
    if report.left_out:
        yield left_out(report)


def milliseconds(seconds: Spread) -> str:
    return number(seconds.median * 1e3)


def number(value: float) -> str:
    """With three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(seconds: Spread, unit: float = 1.0) -> str:
    """5th to 95th percentile; a dash for a single sample."""
    return "-" if seconds.samples == 1 else f"{number(seconds.p5 * unit)} to {number(seconds.p95 * unit)}"


def _kernels(rows: list[Row]) -> Table:
    headings = ["median [ms]", "5 to 95 %", "rate", "of limit", "times ours", "mismatches"]
    made = Table("kernels", ["", *headings])
    case = None
    for row in rows:
        if row.case != case:
            case = row.case
            made.rows.append([f"**{case}**", *[""] * len(headings)])
        made.rows.append([row.name + _mark(row), *_kernel_cells(row)])
    return made


def _mark(row: Row) -> str:
    """What a reader must not miss: a wrong output, a time that was scaled up."""
    wrong = ""
    if row.wrong:
        reduced = row.precision not in (None, "fp32")
        wrong = f" BEYOND {ALLOWED_REDUCED_HU:g} HU" if reduced else " WRONG" if row.ours else " INEXACT"
    return wrong + (" *" if row.trimmed else "")


def _kernel_cells(row: Row) -> list[str]:
    accuracy = row.accuracy
    return [
        milliseconds(row.seconds),
        spread(row.seconds, 1e3),
        f"{number(row.rate.value)} {row.rate.unit}" if row.rate else "",
        f"{row.rate.of_limit:.0%}" if row.rate and row.rate.of_limit is not None else "",
        number(row.times_ours) if row.times_ours is not None else "",
        str(accuracy.mismatches) if accuracy else "",
    ]


def _engines(rows: list[Row]) -> Table:
    """One line a runtime, precision, size and batch; both halves in it."""
    headings = ["", "slices", "encoder [ms]", "GFLOP/s", "decoder [ms]", "GFLOP/s", "flipped codes", "mean [HU]"]
    made = Table("engines, a slice", headings)
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        half, _, slices = row.case.partition(", ")
        lines.setdefault((row.name, slices), {})[half] = row
    for (name, slices), halves in lines.items():
        encoder, decoder = halves.get("encoder"), halves.get("decoder")
        flipped = encoder.accuracy.flipped_share if encoder and encoder.accuracy else None
        hu = decoder.accuracy.mean_hu if decoder and decoder.accuracy else None
        mark = _mark(decoder) if decoder else ""
        cells = [*_engine_cells(encoder), *_engine_cells(decoder)]
        made.rows.append([name + mark, slices, *cells, "-" if flipped is None else f"{flipped:.2%}", _small(hu)])
    return made


def _engine_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-", "-"]
    return [milliseconds(row.seconds), f"{row.rate.value:,.0f}" if row.rate else "-"]


def _build(rows: list[Row]) -> Table:
    made = Table("build", ["", "median [s]", "5 to 95 %", "size [MB]"])
    for row in rows:
        size = f"{row.size_mb:.1f}" if row.size_mb is not None else ""
        made.rows.append([row.name, number(row.seconds.median), spread(row.seconds), size])
    return made


def _pipelines(report: Report, rows: list[Row]) -> Iterator[Table]:
    for case in report.cases:
        mine = [row for row in rows if row.case == case.name]
        if mine:
            yield pipeline(report, case.name)
            yield ratios(report, case.name)


def pipeline(report: Report, case: str) -> Table:
    """All ways on one case."""
    facts = next(one for one in report.cases if one.name == case)
    on_gpu = report.runs_on != "cpu"
    headings = ["", "run [s]", "5 to 95 %", "load [s]", PEAK]
    headings += ["GPU memory [MB]", "energy [J]"] if on_gpu else []
    headings += ["mean [HU]", "slices [HU]", "flipped codes"]
    z, y, x = facts.shape_zyx
    made = Table(f"pipeline: {case}, {z} x {y} x {x} voxels of {facts.voxel_mm:g} mm, {facts.what}", headings)
    rows = [row for row in report.rows if row.suite == "pipeline" and row.case == case]
    for row in rows:
        accuracy = row.accuracy
        cells = [number(row.seconds.median), spread(row.seconds), number(row.load_s or 0.0), _whole(row.peak_memory_mb)]
        cells += [_whole(row.peak_device_mb), _whole(row.energy_j)] if on_gpu else []
        cells += [
            _small(accuracy.ct_mean_hu if accuracy else None),
            _small(accuracy.mean_hu if accuracy else None),
            f"{accuracy.flipped_share:.2%}" if accuracy and accuracy.flipped_share is not None else "-",
        ]
        made.rows.append([row.name + _mark(row), *cells])
    notes = []
    if trimmed := next((row.trimmed for row in rows if row.trimmed), None):
        notes.append(
            f"*: not all slices were run (of one way {trimmed.timed} of {trimmed.of}); scaled up, but for memory."
        )
    notes.append("HU: mean difference from the PyTorch loop in fp32, of the fused CT and of slices before fusion.")
    return Table(made.title, made.headings, made.rows, " ".join(notes))


def ratios(report: Report, case: str) -> Table:
    """How many times as fast, with what share of the memory."""
    made = Table(f"{case}: speed-up", ["", "sctrt", "speed-up", "asked for", "memory", "mean [HU]"])
    for one in report.ratios:
        if one.case != case:
            continue
        goal = "" if one.goal is None else f"{one.goal:g}: {'reached' if one.reached else 'not reached'}"
        made.rows.append(
            [
                f"{one.question}: {one.other}{' *' if one.note else ''}",
                one.ours,
                f"{one.speedup:.2f}",
                goal,
                f"{one.memory_share:.0%}" if one.memory_share is not None else "-",
                _small(one.mean_hu),
            ]
        )
    return made


def scaling(report: Report) -> Table:
    """How cost grows."""
    made = Table(
        "scaling: cost ~ x^exponent",
        ["", "x", "exponent of time", "95 %", "of the operations", "fixed memory [MB]", "memory a x"],
    )
    for one in report.scaling:
        time, work = one.time, one.operations
        made.rows.append(
            [
                one.name,
                f"{one.x}: {', '.join(f'{point.x:g}' for point in one.points)}",
                f"{time.value:.2f}" if time else "-",
                f"{time.low:.2f} to {time.high:.2f}"
                if time and time.low is not None and time.high is not None
                else "-",
                f"{work.value:.2f}" if work else "-",
                _whole(one.memory_fixed_mb),
                f"{one.memory_bytes_per_x:,.0f} B" if one.memory_bytes_per_x is not None else "-",
            ]
        )
    return made


def points(report: Report) -> Table:
    """What the exponents were fitted to."""
    made = Table("scaling: points", ["", "x", "voxels of the body's box", "largest slice", "run [s]", PEAK])
    for series in report.scaling:
        for point in series.points:
            made.rows.append(
                [
                    series.name,
                    f"{point.x:g}",
                    f"{point.voxels:,}" if point.voxels else "-",
                    " x ".join(map(str, point.slice)) if point.slice else "-",
                    number(point.seconds.median),
                    _whole(point.peak_memory_mb),
                ]
            )
    return made


def rooflines(report: Report) -> Iterator[Table]:
    """Stages beside their floors."""
    for one in report.rooflines:
        made = Table(
            f"roofline: {one.case}, {one.runtime} {one.precision}",
            ["stage", "time [s]", "GFLOP", "GB", "floor [s]", "limit", "times the floor"],
            caption=f"Floors: {one.copy_gb_s:.1f} GB/s read and written, {one.matrix_gflop_s:,.0f} GFLOP/s. {one.note}",
        )
        for stage in one.stages:
            made.rows.append(
                [
                    stage.name,
                    number(stage.seconds),
                    number(stage.gflop) if stage.gflop else "-",
                    number(stage.gbyte) if stage.gbyte else "-",
                    number(stage.floor_s) if stage.floor_s else "-",
                    stage.bound or "-",
                    number(stage.gap) if stage.gap else "-",
                ]
            )
        yield made


def left_out(report: Report) -> Table:
    """What was not measured, and why; what was for one reason together."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in report.left_out:
        reasons.setdefault((one.suite, one.case, one.reason), []).append(one.name)
    made = Table("left out", ["", "what", "reason"])
    for (suite, case, reason), names in reasons.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        made.rows.append([f"{suite}: {case}" if case else suite, ", ".join(names[:MOST_NAMES]) + more, reason])
    return made


def where(report: Report) -> str:
    """What the numbers are of, in one paragraph."""
    machine = report.machine
    threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
    gpu = f"{machine.gpu}, " if machine.gpu else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"`{report.command}` at commit {report.commit}, {gpu}{machine.device}, {threads}, {report.took_s:.0f} s, "
        f"model {report.model.name}, seed {report.seed}, load average {report.load_average_before:.1f} before the run, "
        f"{versions}."
    )


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
