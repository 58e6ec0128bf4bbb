"""A part of the suite: one of the ways that one would write instead, timed on a whole PET or scaled up to it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import bundle as bundles
from ..bundle import Bundle
from ..pipeline import peak_memory_mb
from ..planes import PLANES
from ..volume import Volume
from .accuracy import ct_file, save_slices
from .cases import Case, Shape, spread_out
from .meters import DeviceMemory, Energy
from .plain import WAYS, Pass, Planes, View, run_pass, view_of
from .report import Findings, Row, Spread, Trim
from .synthesis import SAMPLES
from .work import Plan, Request, Save

LEAST_TIMED = 2  # slices of each plane that a time is scaled up from


@dataclass(frozen=True)
class Choice:
    """Which slices are run: all, or some evenly spread, and always those that are compared."""

    share: float
    start: Shape  # of the body's box in the view
    box: Shape

    def compared(self, axis: int) -> list[int]:
        return [self.start[axis] + i for i in spread_out(SAMPLES, self.box[axis])]

    def __call__(self, axis: int, total: int) -> list[int]:
        if self.share >= 1:
            return list(range(total))
        some = spread_out(max(LEAST_TIMED, int(self.share * total)), total)
        return sorted({*some, *self.compared(axis)})


def measure(request: Request, save: Save) -> None:
    """All slices where there is time for them, as often as there is; else some."""
    plan = Plan(request.seconds)
    bundle, case = bundles.load(request.model), Case(Path(request.folder))
    facts, pet = case.facts, case.pet
    view: View = "field" if request.size == "field" else "box"
    start = time.perf_counter()
    planes = WAYS[request.way](bundle, request.device, request.precision, request.threads)
    load_s = time.perf_counter() - start
    once_s, whole_s = _try_out(planes, bundle, pet, view)
    z, y, x = facts["network_grid_zyx"]
    down, back, left = facts["box_start_zyx"] if view == "field" else (0, 0, 0)
    choice = Choice(plan.left() / whole_s, (down, back, left), (z, y, x))
    passes: list[Pass] = []
    with DeviceMemory(request.device) as memory, Energy(request.device) as energy:
        last = 0.0
        while not passes or (plan.left() > last and len(passes) < request.most_runs):
            if passes:
                passes[-1] = _without_arrays(passes[-1])
            turn = time.perf_counter()
            passes.append(run_pass(planes, bundle, pet, view, choice))
            last = time.perf_counter() - turn
    shape = passes[-1].grid.shape
    timed, total = sum(len(choice(axis, n)) for axis, n in enumerate(shape)), sum(shape)
    whole = timed == total
    row = Row(
        suite=request.suite,
        case=request.case,
        name=request.name,
        ours=False,
        seconds=Spread.of([one.seconds for one in passes]),
        shape=list(pet.shape),
        runtime=request.way,
        precision=request.precision,
        threads=request.threads,
        warm_up_runs=1,
        load_s=load_s,
        compile_s=once_s if request.way == "compiled" else None,
        stages_s=passes[-1].stages_s,
        peak_memory_mb=peak_memory_mb(),
        peak_device_mb=memory.peak_mb,
        energy_j=energy.joules / len(passes) if energy.joules is not None and whole else None,
        trimmed=None if whole else Trim(timed=timed, of=total, what="slices, evenly spread; scaled up"),
    )
    save(Findings(rows=[row]))
    _keep(case, request.name, passes[-1], choice, bundle, codes=view == "box")
    if whole:
        np.save(ct_file(case.folder, request.name), passes[-1].ct.array)


def _without_arrays(done: Pass) -> Pass:
    """So that the next one has the memory to itself."""
    return Pass(done.stages_s, Volume(np.zeros((1, 1, 1), np.float32), done.ct.affine, "HU"), done.grid)


def _try_out(planes: Planes, bundle: Bundle, pet: Volume, view: View) -> tuple[float, float]:
    """Warms up: seconds that first calls took over second ones (compiling, most of all), and those of a whole pass."""
    start = time.perf_counter()
    channels, _ = view_of(pet, bundle, view)
    whole_s = time.perf_counter() - start
    once_s = 0.0
    for axis in range(len(PLANES)):
        total = channels.shape[axis + 1]
        part = channels.take([total // 2], axis + 1)
        first, second = (_seconds(planes, part, axis) for _ in range(2))
        once_s += max(0.0, first - second)
        whole_s += second * total
    return once_s, whole_s


def _seconds(planes: Planes, part: NDArray[np.float32], axis: int) -> float:
    start = time.perf_counter()
    planes(part, axis)
    return time.perf_counter() - start


def _keep(case: Case, name: str, done: Pass, choice: Choice, bundle: Bundle, codes: bool) -> None:
    """Leaves the compared slices behind, in HU and cut to the body's box."""
    low, high = bundle.manifest.hu_range
    hu, found = [], []
    for axis, (made, index) in enumerate(done.planes):
        run = choice(axis, done.grid.shape[axis])
        rows = [run.index(i) for i in choice.compared(axis)]
        others = [i for i in range(len(PLANES)) if i != axis]
        window = tuple(slice(choice.start[i], choice.start[i] + choice.box[i]) for i in others)
        hu.append((made[rows][:, *window] * ((high - low) / 2) + (high + low) / 2).astype(np.float32))
        found.append(index[rows])
    save_slices(case.folder, name, hu, found if codes else None)
