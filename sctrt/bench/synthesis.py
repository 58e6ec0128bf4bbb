"""A part of the suite: sctrt on one PET by one runtime and precision, and how far that lies from fp32 PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import bundle as bundles
from .. import engines
from ..errors import EngineError
from ..pipeline import Synthesizer, peak_memory_mb
from ..preprocess import network_input
from .accuracy import ORACLE, ct_file, judged
from .cases import Case
from .meters import DeviceMemory, Energy
from .parity import parity
from .report import Accuracy, Findings, LeftOut, Row, Spread
from .work import Plan, Request, Save

SAMPLES = 6  # slices of each plane that are compared
DEVICE_STAGES = ("extract", "encoder", "codebook", "decoder", "insert", "fuse", "resample")


def measure(request: Request, save: Save) -> None:
    """As often as there is time, once at least; a first run that is not the only one warms up."""
    plan = Plan(request.seconds)
    case = Case(Path(request.folder))
    pet = case.pet
    start = time.perf_counter()
    where: Any = {"device": request.device, "precision": request.precision}
    try:
        synthesizer = Synthesizer(request.model, runtime=request.runtime, **where)
    except EngineError as error:  # of a precision that this runtime does not have, most often
        return save(Findings(left_out=[_left_out(request, str(error))]))
    load_s = time.perf_counter() - start
    seconds: list[float] = []
    stages: list[dict[str, float]] = []
    with DeviceMemory(request.device) as memory, Energy(request.device) as energy:
        while not seconds or (plan.left() > seconds[-1] and len(seconds) < request.most_runs):
            start = time.perf_counter()
            result = synthesizer(pet)
            seconds.append(time.perf_counter() - start)
            stages.append(result.report["seconds"])
    warm_up = 1 if len(seconds) > 1 else 0
    counted = stages[warm_up:]
    middle = {name: statistics.median(run.get(name, 0.0) for run in counted) for name in counted[-1]}
    on_gpu = request.device != "cpu"
    row = Row(
        suite=request.suite,
        case=request.case,
        name=request.name,
        ours=True,
        seconds=Spread.of(seconds[warm_up:]),
        device_seconds=sum(middle.get(name, 0.0) for name in DEVICE_STAGES) if on_gpu else None,
        shape=list(pet.shape),
        runtime=f"{request.runtime} {result.report['runtime']['version']}",
        precision=request.precision,
        threads=request.threads,
        warm_up_runs=warm_up,
        load_s=load_s,
        stages_s=middle,
        peak_memory_mb=peak_memory_mb(),
        peak_device_mb=memory.peak_mb,
        energy_j=None if energy.joules is None else energy.joules / len(seconds),
    )
    row = row.model_copy(update=_work(request, result.report, pet.shape))
    save(Findings(rows=[row]))
    if request.time_alone:
        return
    np.save(ct_file(case.folder, request.name), result.ct.array)
    del synthesizer, result
    save(Findings(rows=[_with_accuracy(row, request, case)]))


def _work(request: Request, report: dict[str, Any], pet: Sequence[int]) -> dict[str, Any]:
    """Operations, where PyTorch is there to count them, and bytes."""
    if not engines.installed("torch", "cpu"):
        return {}
    from .flops import traffic_of, work_of

    architecture, grid = bundles.load(request.model).manifest.architecture, report["network_grid"]
    gflop = work_of(architecture, grid["shape_zyx"], grid["slices_run_zyx"])
    return {"gflop": gflop, "gbyte": traffic_of(architecture, grid["shape_zyx"], pet)}


def _left_out(request: Request, reason: str) -> LeftOut:
    return LeftOut(suite=request.suite, case=request.case, name=request.name, reason=reason)


def _with_accuracy(row: Row, request: Request, case: Case) -> Row:
    """Compared slice by slice, before fusion, each half of the network on what the other made."""
    bundle = bundles.load(request.model)
    manifest = bundle.manifest
    channels = network_input(case.pet, manifest.spacing_mm, manifest.normaliser).channels
    where = {"device": request.device, "precision": request.precision, "engine_dir": None}
    try:
        far = parity(bundle, channels, request.runtime, slices=SAMPLES, **where)
    except ImportError as error:
        return row.model_copy(update={"note": f"not compared with PyTorch: {error}"})
    accuracy = Accuracy(
        against=ORACLE,
        mean_hu=far["mean_hu"],
        p999_hu=far["p99.9_hu"],
        max_hu=far["max_hu"],
        flipped_share=far["flipped_share"],
        codes=far["codes"],
    )
    return row.model_copy(update={"accuracy": judged(accuracy, request.precision)})
