"""Builds the engines of a bundle: both halves for each size of slices, unless they are there already."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from .. import gpus
from ..bundle import Bundle
from ..errors import DeviceError, EngineError
from ..gpus import Card
from . import BuiltRuntime, Part, cache, tensorrt
from .network import KEEP_FP32, fixed_network

PERCENT = 100
ONLY_FP16 = {"7.5"}  # for which TensorRT-RTX 1.7 has neither products of fp32 matrices nor bf16
DURATION = {"tensorrt": "minutes: it times kernels on the GPU", "tensorrt-rtx": "seconds: the GPU's kernels come later"}

Progress = Callable[[str, int, int], None]  # stage, done, total


class Built(NamedTuple):
    """An engine that is there now."""

    entry: cache.Entry
    fresh: bool  # built by this call


def build_engines(
    bundle: Bundle,
    runtime: BuiltRuntime,
    precision: str,
    sizes: Mapping[tuple[int, int], int],
    *,
    targets: Sequence[str] = (),
    engine_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda stage, done, total: None,
) -> list[Built]:
    """Builds what is not there yet, for this machine's first GPU or ahead of time for others.

    Args:
        sizes: (height, width) of slices in pixels -> slices of one call at most, as `plan.Plan.engines` gives them.
        targets: compute capabilities, "8.6"; TensorRT-RTX only. By default that of the GPU that is there, else all
            that this TensorRT-RTX can build for.
        engine_dir: see `cache.engine_directory`.
        say: called with a line before and after each engine.
        progress: called with (engine, percentage done, 100).

    Raises:
        DeviceError: TensorRT was asked for without a GPU.
        EngineError: the runtime is missing or cannot build this, or the folder cannot be written.
        OutOfMemory: the GPU's memory does not suffice to build.
    """
    trt = tensorrt.import_module(runtime)
    card = next(iter(gpus.present()), None)
    targets = _targets(trt, runtime, precision, targets, card)
    folder = cache.engine_directory(engine_dir)
    _check_folder(folder)
    built = []
    parts: tuple[Part, ...] = get_args(Part)
    for (height, width), max_batch in sizes.items():
        for part in parts:
            wanted = cache.Wanted(
                bundle, part, runtime, trt.__version__, precision, KEEP_FP32[precision], height, width, card
            )
            one = _Order(wanted, max_batch, targets, folder)
            there = one.there()
            if there is None:
                say(f"{one.name}: building for {', '.join(targets)}, expected to take {DURATION[runtime]}")
            built.append(Built(there or one.build(trt, progress), there is None))
            say(f"{one.name}: {describe(built[-1])}")
    return built


def describe(built: Built) -> str:
    """What an engine took and takes."""
    if not built.fresh:
        return f"there already, {built.entry.plan}"
    has, size = built.entry.fingerprint, built.entry.plan.stat().st_size
    workspace = "not reported" if has.workspace_bytes is None else f"{has.workspace_bytes / 1e6:.0f} MB"
    return f"{has.build_seconds:.1f} s, {size / 1e6:.1f} MB, workspace {workspace}, {built.entry.plan}"


class _Order(NamedTuple):
    """One engine that shall be there."""

    wanted: cache.Wanted
    max_batch: int
    targets: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        wanted = self.wanted
        return f"{wanted.part} {wanted.height} x {wanted.width} {wanted.precision}, 1..{self.max_batch} slices"

    @property
    def gpu(self) -> str | None:
        """The only GPU that the engine will run on: TensorRT's kernels are chosen by their times on it."""
        return self.wanted.card.name if self.wanted.runtime == "tensorrt" and self.wanted.card else None

    def there(self) -> cache.Entry | None:
        """The engine, where it is built already and whole; broken ones are removed: a run may prefer such a one."""
        found = None
        anywhere = replace(self.wanted, card=None)
        for entry in cache.entries(self.folder)[0]:
            has = entry.fingerprint
            same = (has.height, has.width, has.gpu) == (self.wanted.height, self.wanted.width, self.gpu)
            enough = has.max_batch >= self.max_batch and set(self.targets) <= set(has.targets)
            if not same or not enough or cache.mismatches(has, anywhere):
                continue
            if not _whole(entry):
                cache.remove(entry)
            elif found is None:
                found = entry
        return found

    def build(self, trt, progress: Progress) -> cache.Entry:
        wanted, manifest = self.wanted, self.wanted.bundle.manifest
        start = time.perf_counter()
        path = wanted.bundle.onnx(wanted.part)
        size = wanted.height, wanted.width
        onnx_bytes = fixed_network(path, wanted.part, manifest.architecture, *size, wanted.precision)
        plan = tensorrt.build(
            trt,
            onnx_bytes,
            max_batch=self.max_batch,
            targets=() if wanted.runtime == "tensorrt" else self.targets,
            here=wanted.card and wanted.card.compute_capability,
            progress=lambda percent: progress(self.name, percent, PERCENT),
        )
        fingerprint = cache.Fingerprint(
            bundle=wanted.bundle.fingerprint,
            model=manifest.name,
            part=wanted.part,
            runtime=wanted.runtime,
            version=wanted.version,
            precision=wanted.precision,
            keep_fp32=wanted.keep_fp32,
            height=wanted.height,
            width=wanted.width,
            max_batch=self.max_batch,
            targets=self.targets,
            gpu=self.gpu,
            workspace_bytes=plan.workspace_bytes,
            plan_sha256=hashlib.sha256(plan.data).hexdigest(),
            build_seconds=round(time.perf_counter() - start, 2),
        )
        try:
            return cache.store(self.folder, fingerprint, plan.data)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _targets(trt, runtime: BuiltRuntime, precision: str, targets: Sequence[str], card: Card | None) -> tuple[str, ...]:
    if runtime == "tensorrt" and card is None:
        raise DeviceError(
            "TensorRT builds an engine on the GPU that will run it, and no GPU is here; build on that machine, or use "
            "--runtime tensorrt-rtx, which builds without one"
        )
    if card and not targets:
        return (card.compute_capability,)
    all_there_are = tensorrt.compute_capabilities(trt)
    return tuple(targets) or tuple(name for name in all_there_are if precision == "fp16" or name not in ONLY_FP16)


def _whole(entry: cache.Entry) -> bool:
    try:
        entry.read_plan()
    except EngineError:
        return False
    return True


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> EngineError:
    return EngineError(f"engines cannot be written to {folder}: {error.strerror}; choose another --engine-dir")
