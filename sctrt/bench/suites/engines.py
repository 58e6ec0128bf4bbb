"""Every installed runtime at every precision: both halves of the network on slices of real sizes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import bundle as bundles
from ... import engines, ops
from ...bundle import Bundle
from ...device import Device, open_device
from ...errors import EngineError, SctrtError
from ...planes import PLANES
from ...preprocess import network_input
from ..accuracy import ORACLE, judged
from ..cases import Case, spread_out
from ..report import Accuracy, Findings, LeftOut, Rate, Row, Spread
from ..work import Plan, Request, Save
from .common import Context

BATCHES = (1, 4)
SHOWN = ("axial", "coronal")  # small slices and large ones
LEAST = 3  # samples, where so many are allowed
SAMPLE_S = 0.4  # that a row is timed for, where there is time
HALVES: tuple[engines.Part, ...] = ("encoder", "decoder")


def suite(context: Context, plan: Plan) -> Findings:
    case = context.case(context.sizes[0])
    seconds = plan.left()
    where = {"suite": "engines", "case": case.facts["name"], "folder": str(case.folder)}
    return context.run(plan, task="engines", name="engines", seconds=seconds, **where)


@dataclass(frozen=True)
class Slices:
    """A batch of one plane's slices, what plain PyTorch makes of it, and the codes between."""

    plane: str
    images: NDArray[np.float32]  # [n, C, height, width]
    index: NDArray[np.int32] | None  # [n, h, w]; None without PyTorch
    codes: NDArray[np.float32]  # [n, d, h, w]
    ct: NDArray[np.float32] | None  # [n, 1, height, width] network units


def measure(request: Request, save: Save) -> None:
    """Worker."""
    plan = Plan(request.seconds)
    bundle = bundles.load(request.model)
    codebook = ops.Codebook(bundle.codebook())
    counts = tuple(request.batches) or BATCHES
    batches = _slices(bundle, Case(Path(request.folder)), codebook, max(counts))
    device = open_device(request.device)
    kind = request.device.split(":")[0]
    found = Findings()
    pairs = [(runtime, precision) for precision in engines.PRECISIONS[kind] for runtime in engines.RUNTIMES[kind]]
    pairs = [pair for pair in pairs if request.runtime in ("", pair[0]) and request.precision in ("", pair[1])]
    for i, (runtime, precision) in enumerate(pairs):
        name = f"{runtime} {precision}"
        try:
            if not engines.installed(runtime, kind):
                raise EngineError(f"not installed; {engines.RUNTIMES[kind][runtime][1]}")
            if plan.ended():
                raise EngineError("the time was up; give more --minutes")
            share = Plan(plan.left() / (len(pairs) - i))
            for row in _rows(request, bundle, codebook, batches, device, runtime, precision, share, counts):
                found.rows.append(row)
                save(found)
                if plan.ended():
                    raise EngineError("not all sizes and batches: the time was up; give more --minutes")
        except SctrtError as error:
            found.left_out.append(LeftOut(suite="engines", case=request.case, name=name, reason=str(error)))
        device.release()
        save(found)


def _slices(bundle: Bundle, case: Case, codebook: ops.Codebook, count: int) -> list[Slices]:
    """From the middle of the body, padded to the network's factor."""
    manifest = bundle.manifest
    a = manifest.architecture
    channels = network_input(case.pet, manifest.spacing_mm, manifest.normaliser).channels
    oracle = _oracle(bundle)
    made = []
    for axis, plane in enumerate(PLANES):
        if plane not in SHOWN:
            continue
        slices = np.moveaxis(channels, axis + 1, 0)
        some = spread_out(count, len(slices))
        images = np.stack([slices[some[i % len(some)]] for i in range(count)])
        below, right = (-n % a.factor for n in images.shape[2:])
        images = np.pad(images, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=manifest.padding)
        n, _, height, width = images.shape
        if oracle is None:
            latent = np.zeros((n, a.code_dim, height // a.factor, width // a.factor), np.float32)
            _, codes = ops.nearest_code(latent, codebook)
            made.append(Slices(plane, images, None, codes, None))
            continue
        index, codes = ops.nearest_code(oracle("encoder", images), codebook)
        made.append(Slices(plane, images, index, codes, oracle("decoder", codes)))
    return made


def _oracle(bundle: Bundle) -> Any:
    """(half, inputs) -> outputs by PyTorch in fp32 on the CPU; None where it is not installed."""
    if not engines.installed("torch", "cpu"):
        return None
    a = bundle.manifest.architecture
    halves = {half: engines.load(bundle, half, "torch") for half in HALVES}

    def run(half: engines.Part, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs = np.empty(_output_shape(half, a, inputs.shape), np.float32)
        halves[half](inputs, outputs)
        return outputs

    return run


def _output_shape(half: str, architecture: Any, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    n, _, height, width = shape
    f = architecture.factor
    if half == "encoder":
        return n, architecture.code_dim, height // f, width // f
    return n, architecture.output_channels, height * f, width * f


def _rows(
    request: Request,
    bundle: Bundle,
    codebook: ops.Codebook,
    batches: list[Slices],
    device: Device,
    runtime: str,
    precision: str,
    plan: Plan,
    counts: tuple[int, ...],
) -> Iterator[Row]:
    where: Any = {"device": request.device, "precision": precision}
    count = len(batches) * len(HALVES) * len(counts)
    for slices in batches:
        height, width = slices.images.shape[2:]
        size = engines.slice_size(bundle, runtime, height, width, **where)
        for half in HALVES:
            start = time.perf_counter()
            with device:
                engine = engines.load(bundle, half, runtime, size=size, **where)
            load_s = time.perf_counter() - start
            inputs = slices.images if half == "encoder" else slices.codes
            step = 1 if half == "encoder" else bundle.manifest.architecture.factor
            fits = size == (height, width)
            padded = inputs if fits else _padded(inputs, (size[0] // step, size[1] // step), bundle.manifest.padding)
            accuracy = None
            for batch in counts:
                share = Plan(plan.left() / count)
                count -= 1
                outputs, seconds = _timed(engine, padded[:batch], half, bundle, device, share, request.most_runs)
                if fits and batch == max(counts):
                    accuracy = _accuracy(half, slices, outputs, codebook, bundle, precision)
                yield Row(
                    suite="engines",
                    case=f"{half}, {slices.plane} {size[0]} x {size[1]}, {batch} at a time",
                    name=f"{runtime} {precision}",
                    ours=True,
                    seconds=Spread.of([value / batch for value in seconds]),
                    shape=list(padded[:batch].shape),
                    runtime=f"{runtime} {engine.version}",
                    precision=precision,
                    batch=batch,
                    threads=request.threads,
                    warm_up_runs=1,
                    load_s=load_s,
                    rate=_rate(bundle, half, size, float(np.median(seconds)) / batch),
                    accuracy=accuracy,
                    note="" if fits else "padded to the engine's size, so not compared",
                )


def _padded(array: NDArray[np.float32], size: tuple[int, int], value: float) -> NDArray[np.float32]:
    below, right = (wanted - n for wanted, n in zip(size, array.shape[2:], strict=True))
    return np.pad(array, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=value)


def _timed(
    engine: engines.Engine,
    inputs: NDArray[np.float32],
    half: engines.Part,
    bundle: Bundle,
    device: Device,
    plan: Plan,
    most: int,
) -> tuple[NDArray[np.float32], list[float]]:
    """What it makes, and seconds a call: on a GPU between two events on its stream."""
    with device:
        given = device.put(np.ascontiguousarray(inputs))
        outputs = device.empty(_output_shape(half, bundle.manifest.architecture, inputs.shape))
        needed = engine.workspace(len(inputs))
        workspace = device.empty((needed,), "uint8") if needed else None

        def once() -> float:
            clock = device.clock()
            with clock.stage("call"):
                engine(given, outputs, stream=device.stream, workspace=workspace)
            return clock.seconds()["call"]

        once()
        made = device.get(outputs).copy()
        seconds: list[float] = []
        until = time.perf_counter() + min(SAMPLE_S, plan.left())
        while len(seconds) < min(LEAST, most) or (time.perf_counter() < until and len(seconds) < most):
            seconds.append(once())
        return made, seconds


def _accuracy(
    half: str,
    slices: Slices,
    outputs: NDArray[np.float32],
    codebook: ops.Codebook,
    bundle: Bundle,
    precision: str,
) -> Accuracy | None:
    """Of an encoder the codes that flip; of a decoder HU, fed with PyTorch's codes."""
    if slices.index is None or slices.ct is None:
        return None
    if half == "encoder":
        index, _ = ops.nearest_code(np.ascontiguousarray(outputs), codebook)
        return Accuracy(against=ORACLE, flipped_share=float((index != slices.index).mean()), codes=index.size)
    low, high = bundle.manifest.hu_range
    hu = np.abs(outputs.astype(np.float64) - slices.ct) * (high - low) / 2
    found = Accuracy(
        against=ORACLE, mean_hu=float(hu.mean()), p999_hu=float(np.percentile(hu, 99.9)), max_hu=float(hu.max())
    )
    return judged(found, precision)


def _rate(bundle: Bundle, half: engines.Part, size: tuple[int, int], seconds: float) -> Rate | None:
    try:
        flops = importlib.import_module("..flops", __package__)
    except ImportError:
        return None
    if not engines.installed("torch", "cpu"):
        return None
    work = flops.flops(bundle.manifest.architecture, half, *size).total
    return Rate(value=work / seconds / 1e9, unit="GFLOP/s")
