"""What gpu_pipeline.py measures, one function a part; each runs in a process of its own."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline_case import Case, make_case

from sctrt import bundle as bundles
from sctrt import engines
from sctrt.bench.flops import needed_flops
from sctrt.bench.limits import matrix_cases
from sctrt.bench.measure import Effort, Machine, measure
from sctrt.bench.meters import DeviceMemory
from sctrt.bundle import Architecture, Bundle

Row = dict[str, Any]
Save = Callable[[Row], None]  # called whenever there is something new, so that a part that is stopped keeps it

SEED = 0
CHECK_SHAPE = (96, 128, 128)  # whole loop and scaled-up loop are compared on a body of at most this size
# Stages of a run that are the device's work; deciding on the body's box and checking the PET are the host's.
DEVICE_STAGES = ("extract", "encoder", "codebook", "decoder", "insert", "fuse", "resample")
RATES = {"full": (16384, 8, 352), "tiny": (64, 1, 16)}  # side of matrices; images and their side
RATES_EFFORT = {"full": Effort(1.0, 5, 50), "tiny": Effort(0.0, 2, 2)}


@dataclass(frozen=True)
class Part:
    """One thing that is measured."""

    kind: str  # key of RUN
    runtime: str = ""
    precision: str = ""

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.kind, self.runtime, self.precision) if word)


def parts(device: str) -> list[Part]:
    """All that can be measured on "cpu" or "cuda", the most telling first."""
    start = [Part("rtx accepts"), Part("rates")]
    if device == "cpu":
        ours = [Part("sctrt", name, "fp32") for name in engines.RUNTIMES["cpu"]]
        return [*start, *ours, Part("loop", precision="fp32"), Part("loop check"), Part("compile", precision="fp32")]
    ahead = ("tensorrt-rtx", "tensorrt")
    return [
        *start,
        *(Part("sctrt", name, "fp16") for name in (*ahead, "torch")),
        *(Part("loop", precision=precision) for precision in ("fp32", "fp16", "tf32")),
        *(Part("loop check"), Part("compile", precision="fp16")),
        *(Part("sctrt", name, "bf16") for name in ("torch", *ahead)),
        *(Part("sctrt", name, "fp32") for name in (*ahead, "torch")),
    ]


def load_model(name: str) -> Bundle:
    """The bundle of this path, or the one that ships."""
    return bundles.load(None if name == "shipped" else name)


def rtx_accepts(part: Part, options: argparse.Namespace, save: Save) -> None:
    from rtx_accepts import rtx_accepts as ask

    save({"ways": ask()})


def rates(part: Part, options: argparse.Namespace, save: Save) -> None:
    """What the matrix units can do, measured here and now."""
    machine = Machine(options.device.split(":")[0], 1)
    machine.torch.manual_seed(SEED)
    machine.torch.backends.cudnn.benchmark = True
    rows: list[Row] = []
    for case in matrix_cases(machine, *RATES[options.rates]):
        rows += measure(case, machine, RATES_EFFORT[options.rates])
        save({"rows": rows, "tflops": {row["case"]: row["rate"] / 1e3 for row in rows if "rate" in row}})


def sctrt(part: Part, options: argparse.Namespace, save: Save) -> None:
    """How far the engines lie from fp32 PyTorch; then the whole way from a PET in the host's memory to the CT there."""
    from sctrt import Synthesizer
    from sctrt.bench.parity import parity

    begun = time.perf_counter()
    bundle, case = load_model(options.model), Case(options.folder)
    where = {"device": options.device, "precision": part.precision, "engine_dir": options.engine_dir}
    save({"parity": parity(bundle, case.channels, part.runtime, slices=options.parity_slices, **where)})
    pet = case.pet
    start = time.perf_counter()
    synthesizer = Synthesizer(bundle.path, runtime=part.runtime, **where)
    load_s = time.perf_counter() - start
    with DeviceMemory(options.device) as memory:
        start = time.perf_counter()
        report = synthesizer(pet).report
        first_s = time.perf_counter() - start
    save({"load_s": load_s, "first_s": first_s, "peak_device_mb": memory.peak_mb, "report": report})
    runs: list[Row] = []
    while len(runs) < options.repeat and time.perf_counter() - begun + first_s < options.part_s:
        start = time.perf_counter()
        report = synthesizer(pet).report
        runs.append({"wall_s": time.perf_counter() - start, "stages_s": report["seconds"]})
        save(_summary(runs, bundle.manifest.architecture, report))
    if not runs:
        raise TimeoutError(f"a run takes {first_s:.0f} s, and no time was left for another")


def _summary(runs: list[Row], architecture: Architecture, report: Row) -> Row:
    """Medians over the runs, and the rates of the two halves."""
    stages = {name: statistics.median(run["stages_s"].get(name, 0.0) for run in runs) for name in runs[-1]["stages_s"]}
    walls = [run["wall_s"] for run in runs]
    total_s = statistics.median(walls)
    engines_s = stages["encoder"] + stages["decoder"]
    row: Row = {
        "total_s": total_s,
        "runs_s": walls,
        "spread_s": [min(walls), max(walls)],
        "stages_s": stages,
        "network_s": engines_s + stages["codebook"],
        "outside_engines_share": 1 - engines_s / total_s,
        "host_share": 1 - sum(stages[name] for name in DEVICE_STAGES) / total_s,
    }
    for half in ("encoder", "decoder"):
        work = needed_flops(architecture, half, report["network_grid"]["shape_zyx"], report["plan"]["planes"])
        row[half] = {"pflop": work / 1e15, "tflops": work / stages[half] / 1e12}
    return row


def loop(part: Part, options: argparse.Namespace, save: Save) -> None:
    from pipeline_peers import plain_loop

    bundle, case = load_model(options.model), Case(options.folder)
    save(plain_loop(bundle, case, options.device, part.precision, options.loop_slices))


def loop_check(part: Part, options: argparse.Namespace, save: Save) -> None:
    """Whether a loop over some slices, scaled up, takes as long as one over all: on a small body."""
    from pipeline_peers import plain_loop

    bundle = load_model(options.model)
    shape = tuple(min(n, most) for n, most in zip(options.shape, CHECK_SHAPE, strict=True))
    folder = options.folder / "check"
    folder.mkdir()
    case = make_case(folder, shape, bundle.manifest, SEED)
    whole, scaled = (plain_loop(bundle, case, options.device, "fp32", n)["network_s"] for n in (0, options.loop_slices))
    save({"shape_zyx": list(shape), "whole_s": whole, "scaled_s": scaled, "scaled_over_whole": scaled / whole})


def compiled(part: Part, options: argparse.Namespace, save: Save) -> None:
    from pipeline_peers import compiled as run

    bundle, case = load_model(options.model), Case(options.folder)
    save(run(bundle, case, options.device, part.precision, options.loop_slices, options.compile_batch, save))


RUN: dict[str, Callable[[Part, argparse.Namespace, Save], None]] = {
    "rtx accepts": rtx_accepts,
    "rates": rates,
    "sctrt": sctrt,
    "loop": loop,
    "loop check": loop_check,
    "compile": compiled,
}
