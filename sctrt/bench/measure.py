"""Times ways of doing the same work beside each other, in turns; knows nothing of what the work is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = Any  # NumPy on the CPU, PyTorch on the GPU
Run = Callable[[], Any]

ROUNDS = 3  # each way's samples are taken in as many turns, so that a machine that slows down slows all
REST_S = 0.01  # before a turn: the threads of the way before stop spinning for more work
SHORT_S = 0.1  # a shorter call is made once untimed at the start of a turn
SLOW_S = 2.0  # a longer call is timed twice
VERY_SLOW_S = 10.0  # a longer call is timed once
SAMPLE_S = 2e-3  # calls that take less are timed several together, which hides what a launch takes


@dataclass(frozen=True)
class Machine:
    """The device that everything runs on, and the array libraries there."""

    device: str  # "cpu" or "cuda"
    threads: int

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @cached_property
    def torch(self) -> Any:
        """PyTorch with its threads set; ImportError where it is not installed."""
        import torch

        torch.set_num_threads(self.threads)
        return torch

    @cached_property
    def cupy(self) -> Any:
        """CuPy; ImportError where it is not installed."""
        import cupy  # pyright: ignore[reportMissingImports]

        return cupy

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)

    def put(self, array: np.ndarray) -> Array:
        """The array on the device."""
        return self.torch.from_numpy(array).cuda() if self.gpu else array

    def poisoned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An output that no way leaves right by doing nothing: NaN, or -1 for integers; its memory is there already."""
        value = -1 if "int" in dtype else np.nan
        if self.gpu:
            return self.torch.full(shape, value, dtype=getattr(self.torch, dtype), device="cuda")
        return np.full(shape, value, dtype)

    def tensor(self, array: Array) -> Any:
        """An array of put() or poisoned() for PyTorch, in the same memory."""
        return array if self.gpu else self.torch.from_numpy(array)

    def get(self, array: Any) -> np.ndarray:
        """An array of any library as NumPy's."""
        if hasattr(array, "get"):
            return array.get()
        return array.cpu().numpy() if hasattr(array, "cpu") else array

    def seconds(self, run: Run, calls: int = 1) -> float:
        """Time of a call: on the CPU the wall's, on the GPU that between two events on the default stream."""
        if not self.gpu:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls


@dataclass(frozen=True)
class Effort:
    """How long a way is timed."""

    budget_s: float
    least: int  # samples
    most: int

    def samples(self, first_s: float) -> int:
        """How many samples of a way whose first took so long."""
        if first_s > SLOW_S:
            return 1 if first_s > VERY_SLOW_S else 2
        return int(np.clip(np.ceil(self.budget_s / max(first_s, SAMPLE_S)), self.least, self.most))


@dataclass(frozen=True)
class Work:
    """What a call does, for its rate; and how much of what limit it needs at least."""

    amount: float
    unit: str  # of amount / 10^9 a second
    limit: str | None = None  # case of `limit_cases`
    limited: float = 0.0  # in the limit's unit


@dataclass(frozen=True)
class Accuracy:
    """How far a result is from the float64 reference."""

    mismatches: int
    max_error: float

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.mismatches + other.mismatches, max(self.max_error, other.max_error))


@dataclass(frozen=True)
class Way:
    """One way to do a case's work."""

    name: str
    prepare: Callable[[], Run]  # not timed; ImportError where a library is missing
    work: Work | None = None
    check: Callable[[Any], Accuracy] | None = None  # of what a run returns
    ours: bool = False


@dataclass(frozen=True)
class Case:
    """Ways of doing the same work; where the first is ours, all times are divided by its."""

    section: str
    name: str
    ways: list[Way]
    error_unit: str = ""


def compare(found: np.ndarray, expected: np.ndarray, allowed: float = 0.0) -> Accuracy:
    """Values that are further off than allowed, and the largest error; one that is not finite is infinitely off."""
    found = found.astype(np.float64)
    error = np.where(np.isfinite(found), np.abs(found - expected), np.inf)
    return Accuracy(int((error > allowed).sum()), float(error.max()))


def traffic(bytes_: float) -> Work:
    """Work that memory limits: each byte that is needed once."""
    return Work(bytes_, "GB/s", "copy", bytes_)


def measure(case: Case, machine: Machine, effort: Effort) -> list[dict[str, Any]]:
    """Times a case's ways in turns.

    Returns:
        A row a way, as `row` makes it; of a way that cannot run only "section", "case", "name", "ours" and "skipped".
    """
    runs, samples, rows = {}, {}, {}
    for way in case.ways:
        rows[way.name] = {"section": case.section, "case": case.name, "name": way.name, "ours": way.ours}
        try:
            run = way.prepare()
            result = run()
            accuracy = way.check(result) if way.check else None
            samples[way.name] = [machine.seconds(run)]
        except Exception as error:  # a peer's own failure is a result; ours is not
            if way.ours:
                raise
            rows[way.name]["skipped"] = _reason(error)
            continue
        runs[way.name] = run
        if accuracy:
            numbers = {"mismatches": accuracy.mismatches, "max_error": accuracy.max_error}
            rows[way.name] |= numbers | {"error_unit": case.error_unit}
    _take_turns(runs, samples, machine, effort)
    for name in runs:
        rows[name] |= _timed(samples[name], next(way.work for way in case.ways if way.name == name))
        if case.ways[0].ours:
            rows[name]["times_ours"] = rows[name]["median_ms"] / rows[case.ways[0].name]["median_ms"]
    return list(rows.values())


def _take_turns(runs: dict[str, Run], samples: dict[str, list[float]], machine: Machine, effort: Effort) -> None:
    """Adds as many samples as each way needs. The first one said how long it takes; only slow ways keep it."""
    first = {name: samples[name][0] for name in runs}
    wanted = {name: effort.samples(seconds) for name, seconds in first.items()}
    for name, seconds in first.items():
        if seconds <= SLOW_S:
            samples[name].clear()
    for turn in range(ROUNDS):
        for name, run in runs.items():
            due = -(-wanted[name] * (turn + 1) // ROUNDS) - len(samples[name])
            if due <= 0:
                continue
            time.sleep(REST_S)
            if first[name] < SHORT_S:
                run()
            calls = max(1, round(SAMPLE_S / first[name]))
            samples[name] += [machine.seconds(run, calls) for _ in range(due)]


def _timed(samples: list[float], work: Work | None) -> dict[str, Any]:
    low, middle, high = np.percentile(samples, [5, 50, 95])
    row = {"samples": len(samples), "median_ms": middle * 1e3, "p5_ms": low * 1e3, "p95_ms": high * 1e3}
    if work:
        row |= {"rate": work.amount / middle / 1e9, "unit": work.unit}
        if work.limit:
            row |= {"limit": work.limit, "limited_rate": work.limited / middle / 1e9}
    return row


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
