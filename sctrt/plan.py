"""The memory plan of a synthesis: whole slices or tiles, in what batches, and where volumes stay; pure arithmetic.

Sizes are bytes unless a name says otherwise. What is planned is what the run allocates (run.py); engines are estimated
from above. Whole slices are preferred, since normalisation and attention see all of a slice; then tiles; only then do
volumes leave the GPU.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal

from .bundle import Architecture, Bundle
from .engines.memory import weight_bytes, workspace_bytes
from .errors import EngineError, OutOfMemory
from .planes import PLANES, SIZE_STEP, Plane, padded_size, slice_axis
from .tiles import tile_starts

Shape = tuple[int, int, int]  # (z, y, x)
Size = tuple[int, int]  # (height, width) [pixels]

CPU_BATCH_PIXELS = 60_000  # of one engine call: larger batches are no faster on a CPU and cost memory
# Of runtimes whose threads have slices of their own: the kernels between two calls leave threads behind that wait for
# more work for some milliseconds, and compete with them.
CPU_BATCH_PIXELS_A_THREAD = 160_000
GPU_BATCH_PIXELS = 2_000_000  # a guess of what keeps a GPU busy, to be measured on one
TILE = 256  # pixels, the size that vq-f4 was trained on
TILE_OVERLAP = 32
RUNTIME_BYTES = 500_000_000  # for the CUDA context, the libraries' code and fragments
CODEBOOK_TREE = 200  # bytes of a codebook with its tree of cells, a byte of its codes, at most
ADULT_BOX_MM = (1900.0, 320.0, 560.0)  # (z, y, x) head to toes, arms at the sides, and the margin of a body box
FLOAT = 4
GB = 1e9
AMPLE = 1 << 60


@dataclass(frozen=True)
class PlanePlan:
    """How the slices of one plane are run."""

    plane: Plane
    slices: int
    height: int  # of a slice as it is taken out of the volume, padded
    width: int
    batch: int  # slices a call
    engine: Size  # that the engines see: (height, width), or a tile

    @property
    def tiled(self) -> bool:
        return self.engine != (self.height, self.width)

    def at_most(self, batch: int) -> PlanePlan:
        """The same with no more slices a call."""
        return replace(self, batch=min(self.batch, batch))


@dataclass(frozen=True)
class Plan:
    """What will be allocated on the device, and when.

    On a CPU nothing is limited, and `budget` is None.
    """

    planes: tuple[PlanePlan, ...]
    volumes: Literal["device", "host"]
    preprocess: int
    network: int
    output: int
    budget: int | None

    @property
    def peak(self) -> int:
        return max(self.preprocess, self.network, self.output)

    def engines(self) -> dict[Size, int]:
        """What is to be built: (height, width) of slices or tiles -> slices of one call at most."""
        batches: dict[Size, int] = {}
        for plane in self.planes:
            batches[plane.engine] = max(plane.batch, batches.get(plane.engine, 1))
        return dict(sorted(batches.items()))

    def facts(self) -> dict:
        """For a report, sizes in GB."""
        planes = {
            p.plane: {
                "slices": p.slices,
                "slice": [p.height, p.width],
                "engine": list(p.engine),
                "batch": p.batch,
                "tiled": p.tiled,
            }
            for p in self.planes
        }
        if self.budget is None:
            return {"planes": planes}
        return {
            "planes": planes,
            "volumes": self.volumes,
            "preprocess_gb": self.preprocess / GB,
            "network_gb": self.network / GB,
            "output_gb": self.output / GB,
            "peak_gb": self.peak / GB,
            "budget_gb": self.budget / GB,
        }

    def text(self) -> str:
        """As a table."""
        lines = [f"{'plane':<10}{'slices':>8}{'of pixels':>14}{'at a time':>11}{'engine':>20}"]
        for p in self.planes:
            engine = f"{p.engine[0]} x {p.engine[1]}" + (" tiles" if p.tiled else "")
            lines.append(f"{p.plane:<10}{p.slices:>8}{f'{p.height} x {p.width}':>14}{p.batch:>11}{engine:>20}")
        if self.budget is not None:
            phases = {"preprocess": self.preprocess, "network": self.network, "output": self.output}
            lines += [f"{name:<10}{size / GB:>8.2f} GB" for name, size in phases.items()]
            where = "on the GPU" if self.volumes == "device" else "on the host"
            lines.append(f"{'peak':<10}{self.peak / GB:>8.2f} GB of {self.budget / GB:.2f} GB; volumes stay {where}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Network:
    """What a plan has to know of the network and its runtime.

    Args:
        architecture: of the bundle.
        precision: that it runs in.
        size: (height, width) of slices -> those that the engines take, at least as large; EngineError where there are
            none.
        threads: on a CPU, those that have slices of their own; 1: slices run one after the other.
        one_pair: of engines takes slices of all sizes; else each size has its own.
    """

    architecture: Architecture
    precision: str
    size: Callable[[int, int], Size]
    threads: int = 1
    one_pair: bool = False

    def workspace(self, size: Size, batch: int) -> int:
        """Of both halves, which take turns."""
        return workspace_bytes(self.architecture, *size, batch, self.precision)

    def weights(self) -> int:
        return sum(weight_bytes(self.architecture, part, self.precision) for part in ("encoder", "decoder"))

    def buffers(self, plane: PlanePlan) -> int:
        """Of a batch: slices and, if they are other ones, tiles, in and out; latents, codes and their index."""
        a, latents = self.architecture, prod(plane.engine) // self.architecture.factor**2
        images = prod((plane.height, plane.width)) + plane.tiled * prod(plane.engine)
        each = images * (a.input_channels + a.output_channels) + latents * (2 * a.code_dim + 1)
        blending = 0
        if plane.tiled:
            lengths = zip((plane.height, plane.width), plane.engine, strict=True)
            blending = sum(len(tile_starts(length, tile, TILE_OVERLAP)) * tile for length, tile in lengths)
        return (plane.batch * each + blending) * FLOAT


@dataclass(frozen=True)
class Grids:
    """The volumes of one synthesis.

    Args:
        pet: shape of the PET.
        model: of the model's grid over all of the PET.
        box: of the body box on it.
        samples: samples of the PET a voxel of the model's grid, where they are averaged.
        on_host: that the network's input was made there, for want of memory on the GPU; it stays there.
    """

    pet: Shape
    model: Shape
    box: Shape
    samples: int = 1
    on_host: bool = False

    def preprocess(self, channels: int) -> int:
        """PET and its samples on the model's grid; or the pyramid and the channels."""
        pet, model, box = prod(self.pet), prod(self.model), prod(self.box)
        averaged = model * (self.samples + 1) if self.samples > 1 else model
        return max(pet + averaged, model + _pyramid(model) + channels * box) * FLOAT

    def fits_preprocess(self, channels: int, budget: int) -> bool:
        """Whether a GPU has room for it."""
        return self.preprocess(channels) + RUNTIME_BYTES <= budget

    def network(self, channels: int, planes: int) -> int:
        """The channels, and a prediction a plane."""
        return (channels + planes) * prod(self.box) * FLOAT

    def output(self, planes: int) -> int:
        """All predictions, in place of two of which come CT and spread; then one of these on the PET's grid."""
        return (max(planes, 2) * prod(self.box) + prod(self.pet)) * FLOAT


def make_plan(grids: Grids, network: Network, budget: int | None, planes: tuple[Plane, ...] = PLANES) -> Plan:
    """The plan for a GPU with `budget` bytes of free memory, or, where that is None, for a CPU."""
    return cpu_plan(grids, network, planes) if budget is None else gpu_plan(grids, network, budget, planes)


def cpu_plan(grids: Grids, network: Network, planes: tuple[Plane, ...] = PLANES) -> Plan:
    """Batches that suit a CPU's caches."""
    threads = network.threads
    if threads == 1:
        whole = [_whole(plane, grids.box, network, CPU_BATCH_PIXELS) for plane in planes]
    else:
        most = [_whole(plane, grids.box, network, CPU_BATCH_PIXELS_A_THREAD * threads) for plane in planes]
        whole = [plan.at_most(plan.batch // threads * threads or plan.batch) for plan in most]
    return Plan(tuple(whole), "device", 0, 0, 0, None)


def gpu_plan(grids: Grids, network: Network, budget: int, planes: tuple[Plane, ...] = PLANES) -> Plan:
    """The plan that keeps most on the GPU and fits `budget` bytes of free memory.

    Raises:
        OutOfMemory: not even one tile at a time fits.
        EngineError: what would fit is not built; see `Network.size`.
    """
    channels, count = network.architecture.input_channels, len(planes)
    preprocess, output = grids.preprocess(channels), grids.output(count)
    places: list[Literal["device", "host"]] = ["device", "host"]
    if grids.on_host or max(preprocess, output) + RUNTIME_BYTES > budget:
        places.remove("device")
    not_built: EngineError | None = None
    for volumes in places:
        held = RUNTIME_BYTES + (grids.network(channels, count) if volumes == "device" else 0)
        try:
            fitted = _fit(grids.box, network, planes, budget - held)
        except EngineError as error:
            not_built = not_built or error
            continue
        if fitted is not None:
            used = held + max(_need(plan, plan.batch, fitted, network) for plan in fitted)
            if volumes == "device":
                return Plan(fitted, volumes, preprocess + RUNTIME_BYTES, used, output + RUNTIME_BYTES, budget)
            return Plan(fitted, volumes, 0, used, 0, budget)
    if not_built:
        raise not_built
    ways = ([*_ways(plane, grids.box, network)] for plane in planes)
    chosen = [min(way, key=lambda plan: _need(plan, 1, [plan], network)) for way in ways]
    least = RUNTIME_BYTES + max(_need(plan, 1, chosen, network) for plan in chosen)
    raise OutOfMemory(
        f"expected at least {least / GB:.3g} GB of free GPU memory for this network at {network.precision}, "
        f"got {budget / GB:.3g} GB; use a lower precision, a smaller model, or --device cpu"
    )


def adult_shape(spacing_mm: float) -> Shape:
    """(z, y, x) of an adult's body box on a grid of this spacing."""
    z, y, x = (ceil(extent / spacing_mm) for extent in ADULT_BOX_MM)
    return z, y, x


def plan_for(bundle: Bundle, shape: Shape, precision: str, budget: int | None = None) -> Plan:
    """The plan for a body box of `shape` (z, y, x) on the model's grid, of a PET on that grid, for any GPU runtime.

    Args:
        budget: free memory of the GPU; None means ample.

    Raises:
        OutOfMemory: not even one tile at a time fits.
    """
    network = Network(bundle.manifest.architecture, precision, engine_size)
    return gpu_plan(Grids(shape, shape, shape), network, AMPLE if budget is None else budget)


def any_size(height: int, width: int) -> Size:
    """For runtimes that take slices of any size."""
    return height, width


def engine_size(height: int, width: int) -> Size:
    """The size of the engine that is built for slices of height x width."""
    return -(-height // SIZE_STEP) * SIZE_STEP, -(-width // SIZE_STEP) * SIZE_STEP


def _fit(box: Shape, network: Network, planes: tuple[Plane, ...], room: int) -> tuple[PlanePlan, ...] | None:
    """Planes with the largest batches of use; whole where one slice fits, else in tiles; None if these do not fit.

    In tiles, too, where engines are built for these alone.

    Raises:
        EngineError: those that would fit are not built.
    """
    chosen = [next(_ways(plane, box, network)) for plane in planes]
    while misfits := [p for p in chosen if _need(p, 1, chosen, network) > room]:
        whole = [p for p in misfits if not p.tiled]
        if not whole:
            return None
        largest = max(whole, key=lambda p: prod(p.engine))
        tiles = _tiles(largest.plane, box, network)
        if not tiles.tiled:
            return None
        chosen[chosen.index(largest)] = tiles

    def batch(plan: PlanePlan) -> int:
        return bisect_right(range(1, plan.batch + 1), room, key=lambda n: _need(plan, n, chosen, network))

    return tuple(replace(plan, batch=batch(plan)) for plan in chosen)


def _need(plan: PlanePlan, batch: int, planes: Sequence[PlanePlan], network: Network) -> int:
    """Of one plane's batches, beside the engines of all."""
    return (
        _weights(planes, network) + network.buffers(replace(plan, batch=batch)) + network.workspace(plan.engine, batch)
    )


def _ways(plane: Plane, box: Shape, network: Network) -> Iterator[PlanePlan]:
    """Whole slices, then tiles, as far as engines are built for them; EngineError where they are for neither."""
    not_built: EngineError | None = None
    try:
        yield _whole(plane, box, network, GPU_BATCH_PIXELS)
    except EngineError as error:
        not_built = error
    try:
        yield _tiles(plane, box, network)
    except EngineError:
        if not_built:
            raise not_built from None


def _whole(plane: Plane, box: Shape, network: Network, useful_pixels: int) -> PlanePlan:
    """Whole slices, as many at a time as are of use."""
    size = network.size(*padded_size(box, plane, network.architecture.factor))
    slices = box[slice_axis(plane)]
    batch = min(slices, max(1, useful_pixels // prod(size)))
    return PlanePlan(plane, slices, *size, batch, size)


def _tiles(plane: Plane, box: Shape, network: Network) -> PlanePlan:
    """Tiles of the size trained on, of as many slices at a time as are of use; one tile may hold all of a slice."""
    tile = network.size(TILE, TILE)
    height, width = padded_size(box, plane, network.architecture.factor)
    slices = box[slice_axis(plane)]
    batch = min(slices, max(1, GPU_BATCH_PIXELS // prod(tile)))
    return PlanePlan(plane, slices, max(height, tile[0]), max(width, tile[1]), batch, tile)


def _weights(planes: Sequence[PlanePlan], network: Network) -> int:
    """Of the engines, one pair a size or one for all, and of the codebook with its tree."""
    codebook = network.architecture.codes * network.architecture.code_dim * FLOAT
    pairs = 1 if network.one_pair else len({p.engine for p in planes})
    return pairs * network.weights() + CODEBOOK_TREE * codebook


def _pyramid(voxels: int) -> int:
    """Of all levels above the first, from above: edges are rounded up."""
    return voxels // 6 + 1
