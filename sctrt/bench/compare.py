"""Two runs beside each other, row by row, with a verdict that knows noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .report import Report, Row, Spread
from .tables import Table, number

Verdict = Literal["faster", "slower", "alike"]

LEAST_CHANGE = 0.05  # smaller changes of a time are alike, however sure
LEAST_MEMORY_CHANGE = 0.05
# Samples -> how far the truth may lie from what they show, as a share: few samples show too small a spread.
DOUBT = ((5, 0.02), (2, 0.10), (1, 0.20))


def verdict(before: Spread, after: Spread) -> Verdict:
    """Whether a time changed beyond the spread of both and by LEAST_CHANGE.

    It is the same for both scaled alike, "alike" for equal spreads, and turned around when they are exchanged.
    """
    (low_before, high_before), (low_after, high_after) = _interval(before), _interval(after)
    if low_after > high_before and after.median > before.median * (1 + LEAST_CHANGE):
        return "slower"
    if low_before > high_after and before.median > after.median * (1 + LEAST_CHANGE):
        return "faster"
    return "alike"


def _interval(spread: Spread) -> tuple[float, float]:
    doubt = next(share for samples, share in DOUBT if spread.samples >= samples)
    return min(spread.p5, spread.median * (1 - doubt)), max(spread.p95, spread.median * (1 + doubt))


def compare(before: Report, after: Report) -> Iterator[Table]:
    """What differs between the runs; what is not compared; the rows that both have; those that one has."""
    if differs := _differences(before, after):
        yield Table("the runs differ: times tell these differences too", ["", "before", "after"], differs)
    if before.runs_on != after.runs_on or _device(before) != _device(after):
        yield Table("not compared: the runs are of different devices", ["", "before", "after"], _devices(before, after))
        return
    if uncompared := _uncompared(before, after):
        caption = "Rows alone are compared; sctrt bench --read FILE shows these."
        yield Table("not compared: series and rooflines", ["", "before", "after"], uncompared, caption)
    old = {row.key: row for row in before.rows}
    new = {row.key: row for row in after.rows}
    both = [(old[key], new[key]) for key in old if key in new]
    rows = [_line(a, b) for a, b in both]
    if rows:
        yield Table("rows", ["", "before [s]", "after [s]", "times as long", "time", "memory", "accuracy"], rows)
    only = [["before", _name(old[key])] for key in old if key not in new]
    only += [["after", _name(new[key])] for key in new if key not in old]
    if only:
        yield Table("in one run alone", ["", "row"], only)
    if rows or not uncompared:
        yield _summary(both)


def _uncompared(before: Report, after: Report) -> list[list[str]]:
    counts = {
        "scaling series": (len(before.scaling), len(after.scaling)),
        "rooflines": (len(before.rooflines), len(after.rooflines)),
    }
    return [[name, str(a), str(b)] for name, (a, b) in counts.items() if a or b]


def comparable(before: Row, after: Row) -> str:
    """Why two rows cannot be compared; nothing if they can."""
    for what in ("shape", "batch", "threads", "precision"):
        if getattr(before, what) != getattr(after, what):
            return f"other {what}: {getattr(before, what)}, {getattr(after, what)}"
    return ""


def _line(before: Row, after: Row) -> list[str]:
    name = _name(before)
    if why := comparable(before, after):
        return [name, "", "", "", f"not compared ({why})", "", ""]
    a, b = before.seconds, after.seconds
    ratio = b.median / a.median if a.median else float("inf")
    times = [number(a.median), number(b.median), f"{ratio:.2f}"]
    return [name, *times, verdict(a, b), _memory(before, after), _accuracy(before, after)]


def _memory(before: Row, after: Row) -> str:
    a, b = before.peak_memory_mb, after.peak_memory_mb
    if a is None or b is None:
        return ""
    if abs(b - a) <= LEAST_MEMORY_CHANGE * max(a, b):
        return "alike"
    return f"{'more' if b > a else 'less'}: {a:,.0f}, {b:,.0f} MB"


def _accuracy(before: Row, after: Row) -> str:
    if after.wrong:
        return "WRONG" if not before.wrong else "wrong as before"
    if _judged(before) and not _judged(after):
        return "not measured"
    return "mended" if before.wrong else ""


def _judged(row: Row) -> bool:
    return row.accuracy is not None and row.accuracy.within is not None


def _summary(both: list[tuple[Row, Row]]) -> Table:
    counts: dict[str, int] = {"faster": 0, "slower": 0, "alike": 0, "not compared": 0}
    for before, after in both:
        counts["not compared" if comparable(before, after) else verdict(before.seconds, after.seconds)] += 1
    caption = (
        f"faster, slower: beyond the 5 to 95 % ranges of both, and by {LEAST_CHANGE:.0%}; "
        f"fewer than {DOUBT[0][0]} samples are trusted less."
    )
    return Table("in short", list(counts), [[str(count) for count in counts.values()]], caption)


def _name(row: Row) -> str:
    return ": ".join(word for word in row.key if word)


def _device(report: Report) -> str | None:
    return report.machine.gpu.split(", driver")[0] if report.machine.gpu else report.machine.device


def _devices(before: Report, after: Report) -> list[list[str]]:
    return [
        ["runs on", before.runs_on, after.runs_on],
        ["device", str(_device(before)), str(_device(after))],
    ]


def _differences(before: Report, after: Report) -> list[list[str]]:
    pairs: dict[str, tuple[object, object]] = {
        "commit": (before.commit, after.commit),
        "model": (before.model.fingerprint[:16], after.model.fingerprint[:16]),
        "threads": (before.machine.threads, after.machine.threads),
        "seed": (before.seed, after.seed),
        "gpu": (before.machine.gpu, after.machine.gpu),
        "load average before": (f"{before.load_average_before:.1f}", f"{after.load_average_before:.1f}"),
    }
    names = sorted(before.machine.versions.keys() | after.machine.versions.keys())
    pairs |= {name: (before.machine.versions.get(name), after.machine.versions.get(name)) for name in names}
    return [
        [name, *("-" if value is None else str(value) for value in (a, b))] for name, (a, b) in pairs.items() if a != b
    ]
