"""Trilinear resampling between a PET's grid and the model's, beside other libraries'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import ops
from ..measure import Accuracy, Array, Case, Machine, Run, Way, compare, traffic
from .volumes import VOLUME

SEED = 11
FINE_MM, COARSE_MM = 1.5, 4.0
TURN_DEG = 10.0  # about each axis, of the oblique grids
FILL = -1.0
REFERENCE, EXPONENT = 0.7, 2.0  # of the normaliser
CHECKED = 200_000  # output voxels that are compared with the reference
ALLOWED = 1e-4  # of the values' range; further off is a mismatch
CORNERS = 8  # input voxels that an output voxel is made of


@dataclass(frozen=True)
class Task:
    """A volume, an output grid, and what some of its voxels must be."""

    machine: Machine
    host: NDArray[np.float32]  # [z, y, x] in 0..1
    matrix: NDArray[np.float64]  # [3, 4] output index (x, y, z, 1) -> input index (x, y, z)
    shape: tuple[int, int, int]  # of the output
    normalise: bool

    @cached_property
    def volume(self) -> Array:
        return self.machine.put(self.host)

    @cached_property
    def sample(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Output indices [3, n] (z, y, x) that fall between input voxels, and their input positions [3, n] (z, y, x).

        At the volume's edge the libraries differ by design.
        """
        rng = np.random.default_rng(SEED)
        index = np.stack([rng.integers(extent, size=CHECKED) for extent in self.shape])
        position = (self.matrix[:, :3] @ index[::-1] + self.matrix[:, 3:])[::-1]
        last = np.array(self.host.shape)[:, None] - 1
        inside = ((position >= 0) & (position <= last)).all(axis=0)
        return index[:, inside], position[:, inside]

    @cached_property
    def expected(self) -> NDArray[np.float64]:
        """[n] values of the sample in float64."""
        position = self.sample[1]
        low = np.minimum(position.astype(int), np.array(self.host.shape)[:, None] - 2)
        part = position - low
        values = np.zeros(position.shape[1])
        for corner in np.ndindex(2, 2, 2):
            at = np.array(corner)[:, None]
            weight = np.where(at == 1, part, 1 - part).prod(axis=0)
            values += weight * self.host[tuple(low + at)]
        return compress(values) if self.normalise else values

    def check(self, made: Array) -> Accuracy:
        index = tuple(self.sample[0])
        if not isinstance(made, np.ndarray):  # a GPU array is indexed by its own kind, or moved whole
            made = self.machine.get(made)
        span = float(np.ptp(self.expected))
        return compare(made[index], self.expected, ALLOWED * span)


def compress(values: Any) -> Any:
    """The PET normaliser, as sctrt/preprocess.py has it, of any library's array without negative values."""
    power = (values * (1 / REFERENCE)) ** EXPONENT
    return 1 - 2 / (1 + power)


def cases(machine: Machine, size: str) -> Iterator[Case]:
    fine = VOLUME[size]
    nz, ny, nx = (max(2, round(extent * FINE_MM / COARSE_MM)) for extent in fine)
    coarse = (nz, ny, nx)
    fine_volume, coarse_volume = (np.random.default_rng(SEED).random(shape, np.float32) for shape in (fine, coarse))
    for turn in (TURN_DEG, 0.0):
        kind = "oblique" if turn else "aligned"
        for normalise in (False, True):
            matrix = grid_matrix(fine, coarse, COARSE_MM / FINE_MM, turn)
            task = Task(machine, fine_volume, matrix, coarse, normalise)
            name = f"{kind}, {FINE_MM:g} -> {COARSE_MM:g} mm{', normalised' if normalise else ''}"
            yield Case("resample", name, _ways(task, bool(turn)))
        matrix = grid_matrix(coarse, fine, FINE_MM / COARSE_MM, turn)
        task = Task(machine, coarse_volume, matrix, fine, False)
        yield Case("resample", f"{kind}, {COARSE_MM:g} -> {FINE_MM:g} mm", _ways(task, bool(turn)))


def grid_matrix(of: tuple[int, ...], to: tuple[int, ...], step: float, turn: float) -> NDArray[np.float64]:
    """[3, 4] from an output index (x, y, z, 1) to the input's, both grids centred on one point.

    Args:
        of: input shape (z, y, x).
        to: output shape.
        step: input voxels an output voxel.
        turn: [degrees] about x, y and z.
    """
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    about_y = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    linear = step * about_z @ about_y @ about_x
    centre_in, centre_out = ((np.array(shape[::-1]) - 1) / 2 for shape in (of, to))
    return np.column_stack([linear, centre_in - linear @ centre_out])


def _ways(task: Task, oblique: bool) -> list[Way]:
    peers: dict[str, Callable[[Task], Run]] = {"torch grid_sample": _grid_sample}
    if task.machine.gpu:
        peers["cupyx affine_transform"] = lambda task: _cupy(task, oblique)
        if task.normalise:
            peers["torch grid_sample, compiled normaliser"] = lambda task: _grid_sample(
                task, task.machine.torch.compile
            )
    else:
        peers["scipy affine_transform"] = lambda task: _scipy(task, oblique)
    read = min(task.host.size, CORNERS * int(np.prod(task.shape)))
    work = traffic(4 * (read + int(np.prod(task.shape))))
    ways = [Way("sctrt", lambda: _ours(task), work, task.check, ours=True)]
    for name, prepare in peers.items():
        ways.append(Way(name, lambda prepare=prepare: prepare(task), work, task.check))
    return ways


def _ours(task: Task) -> Run:
    out = task.machine.poisoned(task.shape, "float32")
    normaliser: dict[str, Any] = {"reference": REFERENCE, "exponent": EXPONENT} if task.normalise else {}
    return lambda: ops.resample(task.volume, task.matrix, task.shape, fill=FILL, out=out, **normaliser)


def _affine(task: Task, oblique: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset in (z, y, x); of aligned grids only the diagonal, which SciPy does faster."""
    linear = task.matrix[::-1, 2::-1]
    return (linear if oblique else np.diag(linear)).copy(), task.matrix[::-1, 3].copy()


def _scipy(task: Task, oblique: bool) -> Run:
    from scipy.ndimage import affine_transform

    matrix, offset = _affine(task, oblique)
    out = task.machine.poisoned(task.shape, "float32")

    def run() -> NDArray[np.float32]:
        affine_transform(task.volume, matrix, offset, output=out, order=1, cval=FILL, prefilter=False)
        return compress(out) if task.normalise else out

    return run


def _cupy(task: Task, oblique: bool) -> Run:
    from cupyx.scipy.ndimage import affine_transform  # pyright: ignore[reportMissingImports]

    cupy = task.machine.cupy
    matrix, offset = map(cupy.asarray, _affine(task, oblique))
    volume, out = cupy.asarray(task.volume), cupy.asarray(task.machine.poisoned(task.shape, "float32"))
    options = {"output_shape": task.shape, "output": out, "order": 1, "cval": FILL, "prefilter": False}
    normalise = cupy.fuse(compress) if task.normalise else lambda values: values

    def run() -> Any:
        affine_transform(volume, matrix, offset, **options)
        return normalise(out)

    return run


def _grid_sample(task: Task, compiled: Callable[[Any], Any] = lambda function: function) -> Run:
    """The positions are made beforehand; PyTorch has no other way to give it the output's grid."""
    torch = task.machine.torch
    volume = task.machine.tensor(task.volume)[None, None]
    grid = torch.nn.functional.affine_grid(_theta(task).to(volume), [1, 1, *task.shape], align_corners=True)
    normalise = compiled(compress)

    def run() -> Any:
        sampled = torch.nn.functional.grid_sample(volume, grid, padding_mode="border", align_corners=True)[0, 0]
        return normalise(sampled) if task.normalise else sampled

    return run


def _theta(task: Task) -> Any:
    """[1, 3, 4] the matrix between positions that run from -1 to 1, as PyTorch counts."""
    half_in, half_out = ((np.array(shape[::-1]) - 1) / 2 for shape in (task.host.shape, task.shape))
    linear = task.matrix[:, :3] * half_out / half_in[:, None]
    offset = (task.matrix[:, :3] @ half_out + task.matrix[:, 3]) / half_in - 1
    return task.machine.torch.from_numpy(np.column_stack([linear, offset])[None])
