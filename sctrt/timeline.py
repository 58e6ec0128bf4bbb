"""What a synthesis spent its time on, and when: sums by stage, a table, a Chrome trace. It measures nothing itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from .files import write_json

LEVELS = ("fold", "plane", "first")  # of what spans worked on: each encloses the next in a trace


@dataclass(frozen=True)
class Span:
    """One stretch of work of one stage."""

    stage: str
    begin: float  # s, from the timeline's begin
    seconds: float
    of: Mapping[str, str | int] = field(default_factory=dict)  # fold, plane, first slice, number of slices

    @property
    def end(self) -> float:
        return self.begin + self.seconds


@dataclass(frozen=True)
class Timeline:
    """The spans of one synthesis, one after another: none lies within another one."""

    spans: tuple[Span, ...]
    total: float  # s of wall time; what no span covers is "other"
    begun: float  # time.perf_counter() at its begin

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, "other" for the time of no stage, and "total"."""
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.stage] = sums.get(span.stage, 0.0) + span.seconds
        sums["other"] = max(0.0, self.total - sum(sums.values()))
        return {**sums, "total": sum(sums.values())}

    def within(self, longer: Timeline, fold: str) -> tuple[Span, ...]:
        """The spans as part of a longer timeline, of a fold."""
        later = self.begun - longer.begun
        return tuple(replace(span, begin=later + span.begin, of={"fold": fold, **span.of}) for span in self.spans)

    def text(self) -> str:
        """As a table: calls, seconds by plane, seconds and their share."""
        planes = list(dict.fromkeys(str(span.of["plane"]) for span in self.spans if "plane" in span.of))
        sums = self.seconds()
        total = sums["total"]
        headings = "".join(f"{name:>10}" for name in (*planes, "seconds", "share"))
        lines = [f"{'stage':<12}{'calls':>7}{headings}"]
        for stage, seconds in sums.items():
            of_stage = [span for span in self.spans if stage in (span.stage, "total")]
            calls = len(of_stage) if of_stage and stage != "total" else ""
            cells = [_seconds_in(of_stage, plane) for plane in planes]
            share = f"{seconds / total:.1%}" if total else "-"
            lines.append(f"{stage:<12}{calls:>7}{''.join(cells)}{seconds:>10.3f}{share:>10}")
        return "\n".join(lines)

    def chrome_trace(self) -> dict[str, Any]:
        """For chrome://tracing and Perfetto: folds, planes and batches, and in them the stages.

        Times are whole microseconds, rounded down at both ends, so that what lies within something stays there.

        Source: the "Trace Event Format", complete events ("ph": "X").
        """
        last = max((span.end for span in self.spans), default=0.0)
        whole = _event("synthesize", 0.0, max(self.total, last), {})
        return {"displayTimeUnit": "ms", "traceEvents": [whole, *_events(self.spans, LEVELS)]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the Chrome trace, whole or not at all."""
        write_json(Path(path), self.chrome_trace())


def _seconds_in(spans: Sequence[Span], plane: str) -> str:
    """A cell of the table; empty where there is nothing of this plane."""
    inside = [span.seconds for span in spans if span.of.get("plane") == plane]
    return f"{sum(inside):>10.3f}" if inside else " " * 10


def _events(spans: Sequence[Span], levels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What encloses spans that follow each other and work on the same, before them."""
    if not levels:
        yield from (_event(span.stage, span.begin, span.end, span.of) for span in spans)
        return
    level, *inner = levels
    for same, group in groupby(spans, lambda span: span.of.get(level)):
        inside = list(group)
        if same is not None:
            of = inside[0].of
            shared = of if not inner else {key: of[key] for key in LEVELS if key in of and key not in inner}
            yield _event(_name(level, of), inside[0].begin, inside[-1].end, shared)
        yield from _events(inside, inner)


def _name(level: str, of: Mapping[str, str | int]) -> str:
    """Of what encloses spans: the fold, the plane, or a batch by its slices."""
    if level != "first":
        return str(of[level])
    first, slices = int(of["first"]), int(of["slices"])
    return f"slice {first}" if slices == 1 else f"slices {first} to {first + slices - 1}"


def _event(name: str, begin: float, end: float, of: Mapping[str, str | int]) -> dict[str, Any]:
    """A complete event [us]."""
    start = int(begin * 1e6)
    return {"name": name, "ph": "X", "ts": start, "dur": int(end * 1e6) - start, "pid": 1, "tid": 1, "args": dict(of)}
