"""How long it takes, and how large it is, what is made before a synthesis: export, bundle, engines."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

from ... import bundle as bundles
from ... import engines
from ...bundle import Bundle
from ...errors import EngineError, SctrtError
from ..report import Findings, LeftOut, Row, Spread
from ..work import Plan, Request, Save
from .common import Context

MOST = 10  # runs
SIDE = 64  # pixels, of the slices that a TensorRT engine is built for: enough to see the time of the builder
BUILD_TARGETS = ("8.9",)  # compute capability of TensorRT-RTX's engine where no GPU is
Job = Callable[[], int | None]  # does it, and returns the bytes of what was made
HALVES: tuple[engines.Part, ...] = ("encoder", "decoder")


def suite(context: Context, plan: Plan) -> Findings:
    folder = context.scratch / "build"
    folder.mkdir(exist_ok=True)
    return context.run(plan, task="build", suite="build", name="build", folder=str(folder), seconds=plan.left())


def measure(request: Request, save: Save) -> None:
    """Worker."""
    plan = Plan(request.seconds)
    bundle, folder = bundles.load(request.model), Path(request.folder)
    kind = request.device.split(":")[0]
    found = Findings()
    jobs: list[tuple[str, Job]] = [
        ("bundle: load and check every hash", lambda: _size(bundles.load(request.model).path)),
    ]
    for runtime in engines.RUNTIMES[kind]:
        for precision in engines.PRECISIONS[kind]:
            if runtime not in engines.BUILT:
                name = f"engines: load both halves, {runtime} {precision}"
                jobs.append((name, _loader(bundle, runtime, precision, request.device)))
    jobs.append(("export: random weights of this architecture", _exporter(bundle, folder)))
    for runtime in engines.BUILT:
        name = f"engines: build both halves, {runtime} fp16, {SIDE} x {SIDE}"
        jobs.append((name, _builder(bundle, folder, runtime)))
    for i, (name, job) in enumerate(jobs):
        share = Plan(plan.left() / (len(jobs) - i))
        try:
            seconds: list[float] = []
            made: int | None = None
            while not seconds or (len(seconds) < min(MOST, request.most_runs) and share.left() > seconds[-1]):
                start = time.perf_counter()
                made = job()
                seconds.append(time.perf_counter() - start)
        except (SctrtError, ImportError) as error:
            found.left_out.append(LeftOut(suite="build", case="build", name=name, reason=str(error)))
        else:
            found.rows.append(
                Row(
                    suite="build",
                    case="build",
                    name=name,
                    ours=True,
                    seconds=Spread.of(seconds),
                    threads=request.threads,
                    size_mb=None if made is None else made / 1e6,
                )
            )
        save(found)


def _size(path: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _loader(bundle: Bundle, runtime: str, precision: str, device: str) -> Job:
    kind = device.split(":")[0]

    def load() -> None:
        if not engines.installed(runtime, kind):
            raise EngineError(f"not installed; {engines.RUNTIMES[kind][runtime][1]}")
        for half in HALVES:
            engines.load(bundle, half, runtime, device=device, precision=precision)

    return load


def _exporter(bundle: Bundle, folder: Path) -> Job:
    def export() -> int:
        if importlib.util.find_spec("onnxscript") is None:
            raise EngineError("onnxscript is not installed; pip install 'sctrt[train]'")
        from ...model.export import export_bundle
        from ...model.untrained import untrained

        manifest = bundle.manifest
        of = {"spacing_mm": manifest.spacing_mm, "normaliser": manifest.normaliser}
        model = untrained(manifest.architecture)
        return _size(export_bundle(model, folder / "made.sctrt", training={"random_weights": True}, **of).path)

    return export


def _builder(bundle: Bundle, folder: Path, runtime: engines.BuiltRuntime) -> Job:
    def build() -> int:
        if not engines.installed(runtime, "cuda"):
            raise EngineError(f"not installed; {engines.RUNTIMES['cuda'][runtime][1]}")
        if importlib.util.find_spec("onnx") is None:
            raise EngineError(f"onnx is not installed; pip install 'sctrt[{runtime}]'")
        from ...engines.build import build_engines
        from ...gpus import present

        engine_dir = folder / "engines" / f"{time.monotonic_ns()}"  # else it finds those of the run before
        engine_dir.mkdir(parents=True)
        targets = () if present() or runtime == "tensorrt" else BUILD_TARGETS
        build_engines(bundle, runtime, "fp16", {(SIDE, SIDE): 1}, targets=targets, engine_dir=engine_dir)
        return _size(engine_dir)

    return build
