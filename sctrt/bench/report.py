"""What a run of the suite found, as one JSON file: its models, its schema, reading and writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ReportError
from ..files import write_json

FORMAT: Literal["sctrt-bench"] = "sctrt-bench"
VERSION = 1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Spread(Strict):
    """Of repeated measurements; with one sample all three are equal, which says nothing of the spread."""

    median: float = Field(ge=0)
    p5: float = Field(ge=0)
    p95: float = Field(ge=0)
    samples: int = Field(ge=1)

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        """ValueError without samples."""
        if not samples:
            raise ValueError("expected at least one sample, got none")
        low, middle, high = (float(value) for value in np.percentile(samples, [5, 50, 95]))
        return cls(median=middle, p5=low, p95=high, samples=len(samples))


class Accuracy(Strict):
    """How far a result lies from another; `within` says whether that is allowed, None where it is another by design."""

    against: str
    mean_hu: float | None = None  # of slices, before the planes are fused
    p999_hu: float | None = None
    max_hu: float | None = None
    flipped_share: float | None = None  # of codes
    codes: int | None = None
    ct_mean_hu: float | None = None  # of the fused CT in the body box
    ct_against: str | None = None  # the row whose CT it was compared with
    mismatches: int | None = None  # of a kernel, beyond float32's rounding
    max_error: float | None = None  # of a kernel, in its unit
    allowed: str | None = None  # in words
    within: bool | None = None


class Trim(Strict):
    """A part that was timed in place of the whole, to which its time was scaled up."""

    timed: int
    of: int
    what: str


class Rate(Strict):
    value: float
    unit: str
    of_limit: float | None = None  # share of what the machine was measured to do


class Row(Strict):
    """One way of doing one thing, timed."""

    suite: str
    case: str
    name: str
    ours: bool
    seconds: Spread  # wall; on a GPU, of kernels and engines, between events
    device_seconds: float | None = None
    shape: list[int] | None = None
    runtime: str | None = None
    precision: str | None = None
    batch: int | None = None
    threads: int | None = None
    warm_up_runs: int = 0
    load_s: float | None = None
    compile_s: float | None = None
    stages_s: dict[str, float] | None = None
    rate: Rate | None = None
    gflop: dict[str, float] | None = None  # of a run: encoder, decoder; attention, of both
    gbyte: dict[str, float] | None = None  # by stage: what must be read and written at least
    times_ours: float | None = None
    peak_memory_mb: float | None = None
    peak_device_mb: float | None = None
    energy_j: float | None = None  # of the GPU, a run
    size_mb: float | None = None  # of what was made
    accuracy: Accuracy | None = None
    trimmed: Trim | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.suite, self.case, self.name

    @property
    def wrong(self) -> bool:
        """Whether the output differs by more than it may."""
        return self.accuracy is not None and self.accuracy.within is False

    @property
    def must_agree(self) -> bool:
        """Whether a wrong output is a mistake of ours, and not the price of a lower precision."""
        return self.ours and self.precision in (None, "fp32")


class LeftOut(Strict):
    """What was not measured, and why."""

    suite: str
    case: str
    name: str
    reason: str


class CaseFacts(Strict):
    name: str
    shape_zyx: tuple[int, int, int]
    voxel_mm: float
    network_grid_zyx: tuple[int, int, int] | None = None
    what: str


class Ratio(Strict):
    """One of the questions that the suite answers: how many times as fast, and with how much of the memory."""

    case: str
    question: str
    ours: str
    other: str
    speedup: float
    memory_share: float | None = None
    mean_hu: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        return None if self.goal is None else self.speedup >= self.goal


class Point(Strict):
    """One point of a scaling curve."""

    x: float
    voxels: int | None = None  # of the body's box on the model's grid
    slice: list[int] | None = None  # (height, width) of its largest
    seconds: Spread
    peak_memory_mb: float | None = None


class Exponent(Strict):
    """y = constant * x^value, with its 95 % interval; None where there are too few points for one."""

    value: float
    low: float | None = None
    high: float | None = None


class Series(Strict):
    """One thing varied, all else alike."""

    name: str
    x: str  # what it is
    points: list[Point]
    time: Exponent | None = None
    attention_share: list[float] | None = None  # of the floating-point operations, a point
    operations: Exponent | None = (
        None  # of the work itself: what a machine that is equally fast at all sizes would show
    )
    memory_fixed_mb: float | None = None
    memory_bytes_per_x: float | None = None
    note: str = ""


class Stage(Strict):
    """A stage of a synthesis beside the least time that this machine needs for it."""

    name: str
    seconds: float
    gflop: float | None = None
    gbyte: float | None = None
    floor_s: float | None = None
    bound: Literal["memory", "arithmetic"] | None = None

    @property
    def gap(self) -> float | None:
        """How many times the floor it takes."""
        return self.seconds / self.floor_s if self.floor_s else None


class Roofline(Strict):
    case: str
    runtime: str
    precision: str
    copy_gb_s: float  # bytes read and written
    matrix_gflop_s: float
    stages: list[Stage]
    note: str = ""


class Machine(Strict):
    device: str
    cores: int
    threads: int
    memory_gb: float | None = None
    python: str
    versions: dict[str, str]
    kernels: dict[str, Any]
    gpu: str | None = None


class Model(Strict):
    name: str
    fingerprint: str


class Report(Strict):
    """One run of `sctrt bench`."""

    format: Literal["sctrt-bench"] = FORMAT
    version: Literal[1] = VERSION
    command: str
    commit: str
    runs_on: str  # cpu or cuda[:i]
    machine: Machine
    model: Model
    suites: list[str]
    seed: int
    minutes: float  # that were given
    took_s: float
    load_average_before: float
    cases: list[CaseFacts] = []
    rows: list[Row] = []
    ratios: list[Ratio] = []
    scaling: list[Series] = []
    rooflines: list[Roofline] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []


class Findings(Strict):
    """What a suite, or a part of one, adds to a report."""

    cases: list[CaseFacts] = []
    rows: list[Row] = []
    ratios: list[Ratio] = []
    scaling: list[Series] = []
    rooflines: list[Roofline] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []

    def add(self, other: Findings) -> None:
        for name in type(self).model_fields:
            getattr(self, name).extend(getattr(other, name))


def schema() -> dict[str, Any]:
    """JSON schema of a report."""
    return Report.model_json_schema()


def save(path: Path, report: Report) -> None:
    """Writes a report, whole or not at all."""
    write_json(path, report.model_dump(mode="json"))


def load(path: Path) -> Report:
    """Reads a report.

    Raises:
        ReportError: not there, no JSON, of something else, of a newer version, or damaged.
    """
    again = "run sctrt bench --json FILE again"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ReportError(f"expected a report of sctrt bench, cannot read {path}: {error.strerror}; {again}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"expected a report of sctrt bench, got {path}, which is no JSON: {error}; {again}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReportError(f"expected a report of sctrt bench, got {path}, which is JSON of something else; {again}")
    if content.get("version") != VERSION:
        raise ReportError(
            f"{path} has version {content.get('version')!r}, and this sctrt reads {VERSION}; {again}, or upgrade sctrt"
        )
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ReportError(f"{path} is damaged: {where}: {problem['msg']}; {again}") from error
