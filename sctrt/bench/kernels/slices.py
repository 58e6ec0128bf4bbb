"""Slices taken out of a volume and put back, beside other libraries' copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import ops
from ...planes import PLANES, Plane, slice_axis
from ..measure import Accuracy, Array, Case, Machine, Run, Way, compare, traffic
from .volumes import CHECKED, VOLUME

SEED = 7


@dataclass(frozen=True)
class Task:
    """One direction, one plane, one dtype of the slices; the volume is float32."""

    machine: Machine
    insert: bool
    plane: Plane
    dtype: str
    volume: Array  # [z, y, x] on the device
    host: NDArray[np.float32]

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        z, y, x = np.moveaxis(self.host, slice_axis(self.plane), 0).shape
        return z, y, x

    def slices(self) -> Array:
        """[n, height, width] of the volume, on the device."""
        return self.machine.put(np.ascontiguousarray(np.moveaxis(self.host, slice_axis(self.plane), 0), self.dtype))

    def check(self, made: Array) -> Accuracy:
        """Every so many slices of what was made, bit by bit."""
        expected = self.host.astype(self.dtype)
        if not self.insert:
            expected = np.moveaxis(expected, slice_axis(self.plane), 0)
        some = slice(None, None, max(1, len(expected) // CHECKED))
        return compare(self.machine.get(made[some]), expected[some])


def cases(machine: Machine, size: str) -> Iterator[Case]:
    host = np.random.default_rng(SEED).standard_normal(VOLUME[size], np.float32)
    volume = machine.put(host)
    name, library = ("cupy", _cupy) if machine.gpu else ("numpy", _numpy)
    for insert in (False, True):
        for plane in PLANES:
            for dtype in ("float32", "float16"):
                task = Task(machine, insert, plane, dtype, volume, host)
                peers = {"torch copy_ of movedim": _torch, f"{name} copyto of moveaxis": library}
                yield Case("insert" if insert else "extract", f"{plane}, {dtype}", _ways(task, peers))


def _ways(task: Task, peers: dict[str, Callable[[Task], Run]]) -> list[Way]:
    work = traffic(task.host.size * (4 + np.dtype(task.dtype).itemsize))
    ways = [Way("sctrt", lambda: (_insert if task.insert else _extract)(task), work, task.check, ours=True)]
    for name, prepare in peers.items():
        ways.append(Way(name, lambda prepare=prepare: prepare(task), work, task.check))
    return ways


def _extract(task: Task) -> Run:
    n, height, width = task.slices_shape
    out = task.machine.poisoned((n, 1, height, width), task.dtype)
    return lambda: ops.extract_planes(task.volume, task.plane, 0, n, out=out)[:, 0]


def _insert(task: Task) -> Run:
    slices, volume = task.slices()[:, None], task.machine.poisoned(task.host.shape, "float32")
    return lambda: ops.insert_planes(slices, volume, task.plane, 0)


def _numpy(task: Task) -> Run:
    return _copy(task, lambda array: array, np.moveaxis, np.copyto)


def _torch(task: Task) -> Run:
    return _copy(task, task.machine.tensor, task.machine.torch.movedim, lambda to, of: to.copy_(of))


def _cupy(task: Task) -> Run:
    cupy = task.machine.cupy
    return _copy(task, cupy.asarray, cupy.moveaxis, cupy.copyto)


def _copy(task: Task, view: Callable[[Array], Any], move: Callable[..., Any], copy: Callable[[Any, Any], Any]) -> Run:
    """A library's copy between the slices and the volume, whose axes are moved without moving its values."""
    axis, machine = slice_axis(task.plane), task.machine
    if task.insert:
        of, target = view(task.slices()), machine.poisoned(task.host.shape, "float32")
        to = move(view(target), axis, 0)
    else:
        target = machine.poisoned(task.slices_shape, task.dtype)
        to, of = view(target), move(view(task.volume), axis, 0)

    def run() -> Array:
        copy(to, of)
        return target

    return run
