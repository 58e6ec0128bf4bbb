"""One run of `sctrt bench`: suite after suite, each with its share of the time, into one report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .. import bundle as bundles
from .. import engines, ops
from ..device import open_device
from ..errors import SctrtError
from .cases import SIZES
from .environment import available_gb, command, commit, environment, gpu_name
from .report import Findings, LeftOut, Machine, Model, Report
from .suites.common import Context
from .work import Plan, Say

# Suite -> its share of the time. Those of DEFAULT run where none is named.
SUITES = {"kernels": 1.5, "engines": 1.5, "build": 0.5, "pipeline": 7.0, "scaling": 7.0, "roofline": 1.0}
DEFAULT = ("kernels", "engines", "build", "pipeline")
DEFAULT_MINUTES = 9.0
DEFAULT_SIZES = {"cpu": ("body",), "cuda": ("body", "S", "M", "L", "XL")}
BYTES_A_VOXEL = 60  # of a PET's grid, that the hungriest way holds: volumes in float32 and NumPy's copies of them
LEAST_GB = 1.5  # for libraries and networks


def run(
    suites: Sequence[str],
    *,
    device: str,
    threads: int,
    seed: int,
    minutes: float,
    sizes: Sequence[str] | None,
    model: Path | None,
    say: Say,
) -> Report:
    """Runs suites (keys of SUITES; none means DEFAULT).

    Raises:
        DeviceError: the device cannot be used.
        BundleError: the model cannot.
    """
    start = time.monotonic()
    busy = os.getloadavg()[0]
    engines.check_device(device)
    open_device(device)
    bundle = bundles.load(model)
    chosen = tuple(suites) or DEFAULT
    kind = device.split(":")[0]
    fits, found = _fitting(sizes or DEFAULT_SIZES[kind])
    plan = Plan(minutes * 60)
    with tempfile.TemporaryDirectory(prefix="sctrt-bench-") as scratch:
        context = Context(device, threads, seed, model, fits, Path(scratch), say)
        ordered = [name for name in SUITES if name in chosen]
        for i, name in enumerate(ordered if fits else ()):
            share = SUITES[name] / sum(SUITES[other] for other in ordered[i:])
            suite = import_module(f".suites.{name}", __package__)
            try:
                found.add(suite.suite(context, Plan(plan.left() * share)))
            except SctrtError as error:  # what the other suites found is kept
                found.left_out.append(LeftOut(suite=name, case="all", name="all", reason=str(error)))
    facts = environment(threads)
    memory = available_gb()
    return Report(
        command=command(),
        commit=commit(),
        runs_on=device,
        machine=Machine(
            device=facts["device"],
            cores=facts["cores"],
            threads=threads,
            memory_gb=memory if memory < float("inf") else None,
            python=facts["python"],
            versions=facts["versions"],
            kernels=ops.build_info(),
            gpu=gpu_name(device) if kind == "cuda" else None,
        ),
        model=Model(name=bundle.manifest.name, fingerprint=bundle.fingerprint),
        suites=ordered,
        seed=seed,
        minutes=minutes,
        took_s=time.monotonic() - start,
        load_average_before=busy,
        **{name: getattr(found, name) for name in Findings.model_fields},
    )


def _fitting(sizes: Sequence[str]) -> tuple[tuple[str, ...], Findings]:
    """The sizes that this machine's memory holds; the others are left out."""
    available, found = available_gb(), Findings()
    fits = []
    for size in sizes:
        z, y, x = SIZES[size].shape
        needed = LEAST_GB + BYTES_A_VOXEL * z * y * x / 1e9
        if needed <= available:
            fits.append(size)
            continue
        reason = f"needs about {needed:.1f} GB of memory, {available:.1f} GB are free"
        found.left_out.append(LeftOut(suite="all", case=size, name="all", reason=reason))
    return tuple(fits), found
