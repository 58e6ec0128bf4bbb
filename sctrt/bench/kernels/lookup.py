"""The codebook lookup beside other libraries', on codebooks that are easy and hard to search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import bundle, ops
from ..measure import Accuracy, Array, Case, Machine, Run, Way, Work

SEED = 3
LATENTS = {"full": (5, 100, 100), "quick": (5, 100, 100), "tiny": (1, 10, 20)}  # n, h, w
MANY_LATENTS = {"full": (2100, 100, 100), "quick": (210, 100, 100), "tiny": (2, 10, 20)}  # on the GPU: three planes'
CODES = {"full": 8192, "quick": 8192, "tiny": 256}
ROUNDING = 2.0**-24  # of one float32 operation
CHUNK = {"cpu": 4096, "cuda": 65536}  # latents of which another library holds all distances at once
CHUNK_FLOAT64 = {"cpu": 16, "cuda": 8192}  # likewise of the reference; what fits a CPU's cache


@dataclass(frozen=True)
class Task:
    """Latents, a codebook, and the true answer."""

    name: str
    latents: NDArray[Any]  # [N, d] float32 or float16
    codes: NDArray[np.float32]  # [k, d]
    machine: Machine
    shape: tuple[int, int, int]  # n, h, w

    @cached_property
    def latent(self) -> Array:
        """[n, d, h, w], as an encoder puts it out, on the device."""
        n, h, w = self.shape
        return self.machine.put(np.ascontiguousarray(self.latents.reshape(n, h, w, -1).transpose(0, 3, 1, 2)))

    @cached_property
    def nearest(self) -> NDArray[np.int64]:
        """[N] index of the nearest code in float64, of equals the lowest, by brute force."""
        machine = self.machine
        latents, codes = (machine.put(array.astype(np.float64)) for array in (self.latents, self.codes))
        size = CHUNK_FLOAT64[machine.device]
        parts = [latents[first : first + size] for first in range(0, len(latents), size)]
        found = (map if machine.gpu else machine.pool.map)(lambda part: _nearest(part, codes), parts)
        return np.concatenate([machine.get(index) for index in found])

    @property
    def pairs(self) -> int:
        return len(self.latents) * len(self.codes)

    @property
    def searched(self) -> Work:
        """The distances that brute force computes; a way that need not has a rate above what the machine can do."""
        return Work(self.pairs, "Gdist/s")

    @property
    def computed(self) -> Work:
        """All distances: for each dimension a difference, a square and a sum, which take the place of an FMA each."""
        return Work(self.pairs, "Gdist/s", "fma", 3 * self.codes.shape[1] * self.pairs)


def _nearest(latents: Array, codes: Array) -> Array:
    total: Array = None
    for d in range(codes.shape[1]):
        square = latents[:, d, None] - codes[None, :, d]
        square *= square
        total = square if total is None else total.__iadd__(square)
    return total.argmin(1)


def cases(machine: Machine, size: str) -> Iterator[Case]:
    """One case a codebook; the first beside all other ways."""
    shape, k = LATENTS[size], CODES[size]
    for number, (name, latents, codes) in enumerate(_tasks(int(np.prod(shape)), k)):
        task = Task(name, latents, codes, machine, shape)
        yield Case("lookup", f"{name}, {_sizes(task)}", _ways(task, every=number == 0))
    if machine.gpu:
        many = MANY_LATENTS[size]
        rng = np.random.default_rng(SEED)
        latents = rng.standard_normal((int(np.prod(many)), 3), np.float32)
        task = Task("normal", latents, rng.standard_normal((k, 3), np.float32), machine, many)
        yield Case("lookup", f"normal, {_sizes(task)}", _ways(task, every=True))


def _sizes(task: Task) -> str:
    return f"{len(task.latents):,} x {len(task.codes):,}, d {task.codes.shape[1]}"


def _tasks(n: int, k: int) -> Iterator[tuple[str, NDArray[Any], NDArray[np.float32]]]:
    """name, latents [n, d], codes [k, d]."""
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    def near(codes: NDArray[np.float32], width: float | NDArray[np.float32]) -> NDArray[np.float32]:
        noise = np.asarray(width, np.float32) * normal(n, codes.shape[1])
        return (codes[rng.integers(len(codes), size=n)] + noise).astype(np.float32)

    latents, codes = normal(n, 3), normal(k, 3)
    yield "normal", latents, codes
    yield "normal, float16 latents", latents.astype(np.float16), codes
    yield "normal, latents x 10", 10 * latents, codes
    yield "normal, latents x 1000", 1000 * latents, codes
    trained = bundle.load(None).codebook()[:k]
    yield "trained", near(trained, 0.1 * float(trained.std())), trained
    clusters = (normal(20, 3)[rng.integers(20, size=k)] + np.float32(1e-3) * normal(k, 3)).astype(np.float32)
    yield "20 clusters of width 0.001", near(clusters, 1e-3), clusters
    yield "20 clusters, normal latents", latents, clusters
    yield "each code 4 times", latents, np.tile(codes[: k // 4], (4, 1))
    untrained = rng.uniform(-1 / k, 1 / k, (k, 3)).astype(np.float32)
    untrained[k // 2] = 1
    yield "untrained with an outlier", near(untrained, 1 / k), untrained
    yield "untrained, normal latents", latents, untrained
    yield "normal, twice the codes", latents, normal(2 * k, 3)
    yield "normal", normal(n, 4), normal(k, 4)
    yield "normal", normal(n, 8), normal(k, 8)


def _ways(task: Task, every: bool) -> list[Way]:
    """Ours; of the others all, or those that are not hopeless. Float16 latents are ours alone."""
    machine = task.machine
    ways = [
        _ours("sctrt, Codebook", task, lambda: _codebook(task), task.searched),
        _ours("sctrt, array", task, lambda: machine.put(task.codes), task.computed),
        Way("sctrt, Codebook's set-up", lambda: lambda: _codebook(task), ours=True),
    ]
    if task.latents.dtype != np.float32:
        return ways
    every_peer = [
        ("torch matrix form", _torch_matrix, task.computed),
        ("torch.cdist + argmin", _torch_cdist, task.computed),
    ]
    if machine.gpu:
        ways += [_peer(name, task, prepare, work) for name, prepare, work in every_peer]
        if every:
            ways.append(_peer("torch.compile, differences", task, _torch_compiled, task.computed))
            ways.append(_peer("cupy matrix form", task, _cupy_matrix, task.computed))
            ways.append(_peer("MONAI EMAQuantizer", task, _monai, task.computed))
        return ways
    if every:
        ways += [_peer(name, task, prepare, work) for name, prepare, work in every_peer]
        ways.append(_peer("numpy matrix form", task, _numpy_matrix, task.computed))
        ways.append(_peer("MONAI EMAQuantizer", task, _monai, task.computed))
    ways.append(_peer("FAISS IndexFlatL2", task, _faiss, task.computed))
    ways.append(_peer("scipy cKDTree", task, _ckdtree, task.searched))
    ways.append(Way("scipy cKDTree's set-up", lambda: _ckdtree_setup(task)))
    return ways


def _codebook(task: Task) -> ops.Codebook:
    codebook = ops.Codebook(task.codes)
    return codebook.to(task.latent) if task.machine.gpu else codebook


def _ours(name: str, task: Task, make_codebook: Callable[[], Any], work: Work) -> Way:
    def prepare() -> Run:
        latent, codebook = task.latent, make_codebook()
        n, h, w = task.shape
        index = task.machine.poisoned((n, h, w), "int32")
        quantised = task.machine.poisoned(tuple(latent.shape), str(task.latents.dtype))
        return lambda: ops.nearest_code(latent, codebook, index=index, quantised=quantised)

    return Way(name, prepare, work, lambda found: _our_accuracy(task, *found), ours=True)


def _peer(name: str, task: Task, prepare: Callable[[Task], Run], work: Work) -> Way:
    """Another library's; its latents are [N, d], which it likes best, and its codes need not be gathered."""
    return Way(name, lambda: prepare(task), work, lambda index: _accuracy(task, task.machine.get(index)))


def _accuracy(task: Task, index: NDArray[Any]) -> Accuracy:
    """Codes further than the nearest by more than float32 rounding, and by how much the furthest is."""
    index = index.ravel()
    valid = (index >= 0) & (index < len(task.codes))
    index = np.where(valid, index, 0)
    chosen, least = (_squared(task, of) for of in (index, task.nearest))
    rounding = 2 * (task.codes.shape[1] + 2) * ROUNDING  # of both distances: difference, square, d - 1 sums
    wrong = ~valid | (chosen - least > rounding * chosen)
    return Accuracy(int(wrong.sum()), float((np.sqrt(chosen) - np.sqrt(least)).max()))


def _squared(task: Task, index: NDArray[Any]) -> NDArray[np.float64]:
    return ((task.latents.astype(np.float64) - task.codes[index]) ** 2).sum(axis=1)


def _our_accuracy(task: Task, index: Array, quantised: Array) -> Accuracy:
    """Also wrong: another than the first of equal codes, and an output that is not the code itself."""
    found, values = task.machine.get(index).ravel(), task.machine.get(quantised)
    accuracy = _accuracy(task, found)
    codes = task.codes[np.clip(found, 0, len(task.codes) - 1)]
    not_first = (found != task.nearest) & (codes == task.codes[task.nearest]).all(axis=1)
    channels_last = values.transpose(0, 2, 3, 1).reshape(codes.shape)
    not_code = (channels_last != codes.astype(values.dtype)).any(axis=1)
    return Accuracy(accuracy.mismatches + int(not_first.sum()) + int(not_code.sum()), accuracy.max_error)


def _chunked(
    task: Task, nearest: Callable[[Array], Array], latents: Array, join: Callable[[list[Array]], Array]
) -> Run:
    """Runs `nearest` on so many latents at a time that their distances fit the memory."""
    size = CHUNK[task.machine.device]
    return lambda: join([nearest(latents[first : first + size]) for first in range(0, len(latents), size)])


def _matrix_form(latents: Array, codes: Array) -> Callable[[Array], Array]:
    """|c|^2 - 2 l c, whose argmin is the nearest code's, of latents [n, d] with one matrix product."""
    norms, transposed = (codes * codes).sum(1), -2 * codes.T

    def nearest(part: Array) -> Array:
        scores = part @ transposed
        scores += norms
        return scores.argmin(1)

    return nearest


def _numpy_matrix(task: Task) -> Run:
    return _chunked(task, _matrix_form(task.latents, task.codes), task.latents, np.concatenate)


def _torch_arrays(task: Task) -> tuple[Any, Any]:
    return tuple(task.machine.tensor(task.machine.put(array)) for array in (task.latents, task.codes))


def _torch_matrix(task: Task) -> Run:
    latents, codes = _torch_arrays(task)
    return _chunked(task, _matrix_form(latents, codes), latents, task.machine.torch.cat)


def _cupy_matrix(task: Task) -> Run:
    cupy = task.machine.cupy
    latents, codes = cupy.asarray(task.latents), cupy.asarray(task.codes)
    return _chunked(task, _matrix_form(latents, codes), latents, cupy.concatenate)


def _torch_cdist(task: Task) -> Run:
    torch = task.machine.torch
    latents, codes = _torch_arrays(task)
    return _chunked(task, lambda part: torch.cdist(part, codes).argmin(1), latents, torch.cat)


def _torch_compiled(task: Task) -> Run:
    torch = task.machine.torch
    latents, codes = _torch_arrays(task)
    nearest = torch.compile(lambda part: ((part[:, None] - codes) ** 2).sum(2).argmin(1), dynamic=False)
    return _chunked(task, nearest, latents, torch.cat)


def _monai(task: Task) -> Run:
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    torch = task.machine.torch
    latents, codes = _torch_arrays(task)
    quantiser = EMAQuantizer(2, *codes.shape).to(latents.device).eval()
    quantiser.embedding.weight.data = codes.clone()

    def nearest(part: Array) -> Array:
        """It wants [n, d, h, w], and makes a one-hot row a latent on the way."""
        with torch.inference_mode():
            return quantiser.quantize(part.T[None, :, :, None])[2].flatten()

    return _chunked(task, nearest, latents, torch.cat)


def _faiss(task: Task) -> Run:
    import faiss

    faiss.omp_set_num_threads(task.machine.threads)
    index = faiss.IndexFlatL2(task.codes.shape[1])
    index.add(task.codes)
    return lambda: index.search(task.latents, 1)[1]


def _ckdtree(task: Task) -> Run:
    from scipy.spatial import cKDTree

    tree = cKDTree(task.codes)
    return lambda: tree.query(task.latents, workers=task.machine.threads)[1]


def _ckdtree_setup(task: Task) -> Run:
    from scipy.spatial import cKDTree

    return lambda: cKDTree(task.codes)
