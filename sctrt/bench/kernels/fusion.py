"""The fusion of three planes' predictions beside other libraries' ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import ops
from ..measure import Accuracy, Array, Case, Machine, Run, Way, compare, traffic
from .volumes import CHECKED, VOLUME

SEED = 5
SCALE, OFFSET = 2000.0, 976.0  # [-1, 1] -> [-1024, 2976] HU
ROUNDING = 4 * np.finfo(np.float32).eps  # relative, of a mean, and of a median that is scaled in other steps than ours
BOTH, MEDIAN = 5, 4  # float32 arrays that are read and written: three planes, fused and spread, or one median


@dataclass(frozen=True)
class Task:
    """Three predictions on the device, and some slices of them on the host."""

    machine: Machine
    stack: Array  # [3, z, y, x] float32
    some: slice  # of z
    slices: NDArray[np.float32]  # [3, some, y, x]
    made: dict[str, list[Array]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stack.shape[1:])

    @property
    def array_bytes(self) -> int:
        return 4 * int(np.prod(self.shape))

    @property
    def rounding(self) -> float:
        """[HU]"""
        return float(ROUNDING) * SCALE * float(np.abs(self.slices).max())

    def outputs(self, count: int, dtype: str = "float32") -> list[Array]:
        """Poisoned volumes; all ways share them, one way after the other, as they would not fit the memory."""
        arrays = self.made.setdefault(dtype, [])
        while len(arrays) < count:
            arrays.append(self.machine.poisoned(self.shape, dtype))
        for array in arrays[:count]:
            array[...] = -1 if "int" in dtype else np.nan
        return arrays[:count]


def cases(machine: Machine, size: str) -> Iterator[Case]:
    shape = VOLUME[size]
    stack = np.random.default_rng(SEED).standard_normal((3, *shape), np.float32)
    some = slice(None, None, max(1, shape[0] // CHECKED))
    task = Task(machine, machine.put(stack), some, stack[:, some].copy())
    ways = [
        _ours("sctrt", task),
        _ours("sctrt, int16 out", task, out="int16"),
        _ours("sctrt, float16 in", task, dtype="float16"),
        _ours("sctrt, mean", task, method="mean"),
        _peer("torch min and max", task, lambda task: _min_max(task, machine.torch, machine.tensor), BOTH),
        _peer("torch.median, no spread", task, _torch_median, MEDIAN),
    ]
    if machine.gpu:
        ways.append(_peer("torch.compile, min and max", task, _torch_compiled, BOTH))
        ways.append(_peer("cupy, own elementwise kernel", task, _cupy_kernel, BOTH))
        ways.append(_peer("cupy.median, no spread", task, _cupy_median, MEDIAN))
    else:
        ways.append(_peer("numpy min and max", task, lambda task: _min_max(task, np, lambda array: array), BOTH))
        ways.append(_peer("np.median, no spread", task, _np_median, MEDIAN))
    yield Case("fusion", " x ".join(map(str, shape)), ways, "HU")


def _ours(name: str, task: Task, *, method: str = "median", dtype: str = "float32", out: str = "float32") -> Way:
    def prepare() -> Run:
        planes = [_as(plane, dtype) for plane in task.stack]
        fused, spread = task.outputs(2, out)
        options = {"method": method, "scale": SCALE, "offset": OFFSET, "dtype": out}
        return lambda: ops.fuse_planes(*planes, fused=fused, spread=spread, **options)

    expected = _reference(task.slices.astype(dtype).astype(np.float32), method, out)
    allowed = task.rounding if method == "mean" else 0.0
    bytes_ = (3 * np.dtype(dtype).itemsize + 2 * np.dtype(out).itemsize) * task.array_bytes / 4
    return Way(name, prepare, traffic(bytes_), lambda made: _check(task, made, expected, allowed), ours=True)


def _as(plane: Array, dtype: str) -> Array:
    if dtype == "float32":
        return plane
    return plane.astype(dtype) if isinstance(plane, np.ndarray) else plane.half()


def _peer(name: str, task: Task, prepare: Callable[[Task], Run], arrays: int) -> Way:
    """Another library's, which gives (fused, spread) in HU or (median,) in network units."""
    expected = _reference(task.slices) if arrays == BOTH else (np.median(task.slices, axis=0),)
    work = traffic(arrays * task.array_bytes)
    return Way(name, lambda: prepare(task), work, lambda made: _check(task, made, expected, task.rounding))


def _reference(planes: NDArray[np.float32], method: str = "median", out: str = "float32") -> tuple[NDArray[Any], ...]:
    """fused and spread [HU] as the kernel rounds them; the mean not rounded."""
    scale, offset = (np.float32(SCALE), np.float32(OFFSET)) if method == "median" else (SCALE, OFFSET)
    middle = np.median(planes, axis=0) if method == "median" else planes.mean(axis=0, dtype=np.float64)
    both = middle * scale + offset, np.ptp(planes, axis=0) * np.float32(SCALE)
    return both if out == "float32" else tuple(np.clip(np.rint(values), -32768, 32767) for values in both)


def _check(task: Task, made: tuple[Array, ...], expected: tuple[NDArray[Any], ...], allowed: float = 0.0) -> Accuracy:
    found = [task.machine.get(array[task.some]) for array in made]
    return sum((compare(f, e, allowed) for f, e in zip(found, expected, strict=True)), Accuracy(0, 0.0))


def _min_max(task: Task, library: Any, view: Callable[[Array], Any]) -> Run:
    """NumPy's or PyTorch's own functions, whose names are equal, in place wherever they can be."""
    axial, coronal, sagittal = view(task.stack)
    fused, spread, most = map(view, task.outputs(3))

    def run() -> tuple[Any, Any]:
        least = spread
        library.minimum(axial, coronal, out=least)
        library.maximum(axial, coronal, out=most)
        library.minimum(most, sagittal, out=fused)
        library.maximum(least, fused, out=fused)
        library.maximum(most, sagittal, out=most)
        library.minimum(least, sagittal, out=least)
        library.subtract(most, least, out=spread)
        library.multiply(fused, SCALE, out=fused)
        library.add(fused, OFFSET, out=fused)
        library.multiply(spread, SCALE, out=spread)
        return fused, spread

    return run


def _np_median(task: Task) -> Run:
    (out,) = task.outputs(1)
    return lambda: (np.median(task.stack, axis=0, out=out),)


def _torch_median(task: Task) -> Run:
    torch = task.machine.torch
    stack, values = map(task.machine.tensor, (task.stack, *task.outputs(1)))
    indices = torch.empty(task.shape, dtype=torch.int64, device=stack.device)
    return lambda: torch.median(stack, dim=0, out=(values, indices))[:1]


def _torch_compiled(task: Task) -> Run:
    torch = task.machine.torch

    @torch.compile
    def fuse(axial: Any, coronal: Any, sagittal: Any) -> tuple[Any, Any]:
        least, most = torch.minimum(axial, coronal), torch.maximum(axial, coronal)
        median = torch.maximum(least, torch.minimum(most, sagittal))
        spread = torch.maximum(most, sagittal) - torch.minimum(least, sagittal)
        return median * SCALE + OFFSET, spread * SCALE

    planes = task.machine.tensor(task.stack)
    return lambda: fuse(*planes)


def _cupy_kernel(task: Task) -> Run:
    cupy = task.machine.cupy
    body = """
        const float least = min(a, b), most = max(a, b);
        fused = max(least, min(most, c)) * scale + offset;
        spread = (max(most, c) - min(least, c)) * scale;
    """
    inputs = "float32 a, float32 b, float32 c, float32 scale, float32 offset"
    kernel = cupy.ElementwiseKernel(inputs, "float32 fused, float32 spread", body, "fuse", options=("-fmad=false",))
    planes = [cupy.asarray(plane) for plane in task.stack]
    fused, spread = map(cupy.asarray, task.outputs(2))
    return lambda: kernel(*planes, np.float32(SCALE), np.float32(OFFSET), fused, spread)


def _cupy_median(task: Task) -> Run:
    cupy = task.machine.cupy
    stack, out = map(cupy.asarray, (task.stack, *task.outputs(1)))
    return lambda: (cupy.median(stack, axis=0, out=out),)
