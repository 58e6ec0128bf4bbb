"""NAC PET in, synthetic CT out: the only module that knows volumes, planes, kernels and engines at once."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Pair
from numpy.typing import NDArray

from . import bundle as bundles
from . import engines, nifti, ops
from .bundle import Bundle, Manifest
from .checks import check_pet
from .device import Array, Clock, Device, open_device
from .engines.verify import verify_if_needed
from .errors import DeviceError, EngineError, OutOfMemory
from .mu_map import mu_map
from .ops import FusionMethod
from .plan import GB, Grids, Network, Plan, PlanePlan, any_size, engine_size, make_plan
from .planes import PLANES, Batch, Plane, slice_axis
from .preprocess import Grid, NetworkInput, model_grid, network_input, samples_per_voxel
from .run import Engines, Observer, Progress, Run
from .timeline import Timeline
from .units import BONE_ABOVE, FAT_HU, HU_AIR, LUNG_HU, SOFT_HU
from .volume import Volume

SUMMARY_VOXELS = 2_000_000
NOT_SAID = "the model does not say what PETs it was trained on"
JOINT_FUSIONS = ("median", "mean", "inverse-nearest")
FUSIONS = (*JOINT_FUSIONS, *PLANES)
NOT_RUN = -1  # in place of a code, where a slice held no body

EngineKey = tuple[str, tuple[int, int] | None]  # runtime, and (height, width) where engines are of one size


@dataclass(frozen=True)
class Synthesis:
    """The result for one PET volume, on that volume's own grid."""

    ct: Volume  # HU, air outside the body box
    uncertainty: (
        Volume  # HU, range of the three planes' predictions, or of an ensemble's members; 0 outside the body box
    )
    report: dict[str, Any]
    timeline: Timeline  # `timeline.text()`: seconds by stage; `timeline.save("trace.json")`: a Chrome trace

    def mu_map(self, kvp: int = 120) -> Volume:
        """Attenuation map at 511 keV [1/cm], Carney 2006 for a tube voltage of `kvp` kV."""
        return mu_map(self.ct, kvp=kvp)


@dataclass(frozen=True)
class PlanePredictions:
    """What the network made of one PET volume in each plane, before fusion, on the model's grid of the body box."""

    hu: dict[Plane, NDArray[np.float32]]  # [z, y, x] HU, not limited to `hu_range`; air in slices that were not run
    codes: dict[Plane, NDArray[np.int32]]  # [slice, row, column] of latents, without padding; NOT_RUN as in `hu`
    factor: int  # pixels of a latent's side; the last row and column may hold fewer, and padding beside them
    hu_range: tuple[float, float]  # that a CT is limited to [HU]
    grid: Grid

    def fused(self, fusion: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """CT and spread [z, y, x] HU as a synthesis with this fusion has them; ValueError for one there is not."""
        _check_fusion(fusion)
        planes = [self.hu[plane] for plane in planes_of(fusion)]
        three = planes * 3 if len(planes) == 1 else planes
        return ops.fuse_planes(*three, method=_method(fusion), limits=self.hu_range)

    def on(self, pet: Volume, array: NDArray[np.float32], fill: float = HU_AIR) -> Volume:
        """An array [z, y, x] HU of this grid on the grid of the PET, `fill` outside, as a synthesis puts it there."""
        matrix = ops.grid_matrix(pet.affine, self.grid.affine)
        return Volume(ops.resample(array, matrix, pet.shape, fill=fill), pet.affine, "HU")


class Synthesizer:
    """A loaded model: load once, run many, one volume at a time: another thread's waits for its turn.

    Args:
        model: a bundle folder NAME.sctrt; None means the model that ships with sctrt.
        runtime: "auto"; on a CPU "native", "openvino", "onnxruntime" or "torch", on a GPU "tensorrt", "tensorrt-rtx" or
            "torch".
        device: "cpu" or "cuda[:i]".
        precision: "fp32", "fp16" (on a GPU) or "bf16", where the runtime has it; None means fp32 on a CPU, fp16 on a
            GPU.
        fusion: of the three planes: "median" (the paper's), "mean", "inverse-nearest" (see `ops.fuse_planes`), or one
            plane alone.
        engine_dir: where built engines lie; None means the user's cache.
        vram_gb: memory [GB] of the GPU that may be used; None means what is free.

    Raises:
        BundleError: the bundle is missing, damaged or too new.
        EngineError: the runtime is unknown, not installed or cannot load the network.
        DeviceError: the device cannot be used.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        runtime: str = "auto",
        device: str = "cpu",
        precision: str | None = None,
        fusion: str = "median",
        engine_dir: Path | None = None,
        vram_gb: float | None = None,
    ) -> None:
        _check_fusion(fusion)
        engines.check_device(device)
        self.precision = precision or engines.default_precision(device)
        self.runtime, self.reason = engines.choose(runtime, device, engines.unfit_for(device, self.precision))
        self.bundle: Bundle = bundles.load(model)
        self._device = open_device(device)
        self.device, self.fusion = self._device.name, fusion
        self._asked, self._engine_dir, self._vram_gb = runtime, engine_dir, vram_gb
        self._codebook = ops.Codebook(self.bundle.codebook())
        self._loaded: dict[EngineKey, Engines] = {}
        self._verified: dict[EngineKey, dict[str, Any] | None] = {}
        self._lock, self._running = RLock(), False
        if self.runtime not in engines.BUILT:
            self._engines((0, 0))  # what cannot be loaded is refused now

    def __call__(self, pet: Any, *, progress: Progress | None = None) -> Synthesis:
        """Synthesises a CT.

        Args:
            pet: NAC PET: a path to a NIfTI file, a Volume, a nibabel image, or a pair (array [z, y, x], affine [4, 4]
                voxel (x, y, z) -> LPS mm).
            progress: called with (stage, done, total) as the work goes on.

        Raises:
            VolumeError: the PET is unfit; the message says why and what to do.
            EngineError: no engine is built for slices of this size; the message names the command.
            OutOfMemory: the GPU has too little memory, whatever is done.
        """
        with self._turn():
            return self._synthesise(pet, progress)

    def planes(self, pet: Any, *, progress: Progress | None = None) -> PlanePredictions:
        """What the network makes of a PET in each plane, and with which codes; the fusion is left to the caller.

        Args:
            pet: see `__call__`.
            progress: see `__call__`.

        Raises:
            ValueError: this Synthesizer runs one plane alone.
            DeviceError: there is room for tiles only, which overlap, so that a latent has more than one code.
            VolumeError, EngineError, OutOfMemory: see `__call__`.
        """
        if self.fusion not in JOINT_FUSIONS:
            raise ValueError(f"expected a Synthesizer of all planes, got fusion={self.fusion!r}; leave fusion out")
        with self._turn():
            return self._predict(pet, progress)

    def release(self) -> None:
        """Gives engines and memory back for what runs next; a later run loads the engines again."""
        with self._turn():
            self._loaded.clear()
            self._device.release()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Engines and their memory serve one volume: another thread waits; a run's own `progress` cannot."""
        with self._lock:
            if self._running:
                raise RuntimeError(
                    "expected a Synthesizer to be used when its run has ended, got a call from that run's own "
                    "progress function; make another Synthesizer for it, or call this one afterwards"
                )
            self._running = True
            try:
                yield
            finally:
                self._running = False

    def _synthesise(self, pet: Any, progress: Progress | None) -> Synthesis:
        clock = self._device.clock()
        events: list[str] = []
        with clock.stage("load"):
            volume = as_volume(pet)
            check_pet(volume)
        run, prepared, plan = self._start(volume, clock, events)
        run.predict(plan, progress)
        with clock.stage("fuse"):
            run.fuse(_method(self.fusion))
        with clock.stage("resample"):
            matrix = ops.grid_matrix(volume.affine, prepared.grid.affine)
            ct = Volume(run.result(matrix, volume.shape, HU_AIR), volume.affine, "HU")
            uncertainty = Volume(run.result(matrix, volume.shape, 0.0), volume.affine, "HU")
        timeline = clock.timeline()
        report = self._report(volume, prepared, ct, timeline.seconds(), plan, events)
        return Synthesis(ct, uncertainty, report, timeline)

    def _predict(self, pet: Any, progress: Progress | None) -> PlanePredictions:
        volume = as_volume(pet)
        check_pet(volume)
        run, prepared, plan = self._start(volume, self._device.clock(), [])
        if tiled := [plane.plane for plane in plan.planes if plane.tiled]:
            raise DeviceError(
                f"expected memory for whole slices, got a plan with tiles of {', '.join(tiled)} slices, which overlap; "
                "use --device cpu, or a GPU with more free memory"
            )
        manifest = self.bundle.manifest
        codes, observe = _code_volumes(prepared.grid.shape, manifest.architecture.factor, self._device)
        run.predict(plan, progress, observe)
        low, high = manifest.hu_range
        hu: dict[Plane, NDArray[np.float32]] = {}
        for plane, one in zip(PLANES, run.predictions(), strict=True):
            hu[plane], _ = ops.fuse_planes(one, one, one, scale=(high - low) / 2, offset=(high + low) / 2)
        return PlanePredictions(hu, codes, manifest.architecture.factor, manifest.hu_range, prepared.grid)

    def _start(self, volume: Volume, clock: Clock, events: list[str]) -> tuple[Run, NetworkInput, Plan]:
        """A run that has the network's input, of which the channels are left out here; and its plan."""
        budget = _budget(self._device, self._vram_gb, self._loaded_bytes())
        with clock.stage("preprocess"):
            prepared = self._prepare(volume, budget, events)
        with clock.stage("engines"):
            plan = self._plan(volume, prepared, budget, events)
        manifest = self.bundle.manifest
        run = Run(self._device, prepared, manifest, self._codebook, self._engines, self._forget_engines, clock, events)
        return run, replace(prepared, channels=None), plan  # the channels are the run's, which lets go of them

    def _prepare(self, volume: Volume, budget: int | None, events: list[str]) -> NetworkInput:
        """The network's input, on the host where the GPU has no room to make it."""
        manifest = self.bundle.manifest
        arguments = volume, manifest.spacing_mm, manifest.normaliser
        if not self._fits_beside_engines(volume, budget):  # of the last volume
            self._forget_engines()
            self._device.release()
            if not self._fits_beside_engines(volume, budget):
                return network_input(*arguments)
        try:
            return network_input(*arguments, self._device)
        except OutOfMemory as error:
            events.append(f"{error}: the volumes were prepared on the host and stayed there")
        self._forget_engines()
        self._device.release()
        return network_input(*arguments)

    def _fits_beside_engines(self, volume: Volume, budget: int | None) -> bool:
        left = None if budget is None else budget - self._loaded_bytes()
        return _fits_preprocess(volume, self.bundle.manifest, left)

    def _plan(self, volume: Volume, prepared: NetworkInput, budget: int | None, events: list[str]) -> Plan:
        """The memory plan, for a runtime that fits, with its engines loaded."""
        on_host = budget is not None and isinstance(prepared.channels, np.ndarray)
        grids = _grids(volume, model_grid(volume, self.bundle.manifest.spacing_mm), prepared.grid, on_host)
        size = partial(self._slice_size, prepared.grid.shape, budget)
        unfit = engines.unfit_for(self.device, self.precision)
        self.runtime, self.reason = engines.choose(self._asked, self.device, unfit)
        while True:
            threads = engines.threads_with_slices(self.runtime)
            one_pair = self.runtime not in engines.BUILT
            network = Network(self.bundle.manifest.architecture, self.precision, size, threads, one_pair)
            try:
                plan = make_plan(grids, network, budget, planes_of(self.fusion))
                events += _tiled_for_want_of_engines(plan, grids, network)
                return replace(plan, planes=tuple(self._within_engines(plane) for plane in plan.planes))
            except EngineError as error:
                unfit[self.runtime] = str(error)
            if not self._another_runtime(unfit):
                raise EngineError("; ".join(unfit.values()))

    def _within_engines(self, plane: PlanePlan) -> PlanePlan:
        """With no more slices a call than its engines take; if they cannot be loaded yet, one, which all take."""
        with suppress(OutOfMemory):
            return plane.at_most(min(getattr(e, "max_batch", plane.batch) for e in self._engines(plane.engine)))
        self._forget_engines()
        self._device.release()
        return plane.at_most(1)

    def _another_runtime(self, unfit: dict[str, str]) -> bool:
        """Goes on to the next runtime if that was left open, and there is one."""
        if self._asked != "auto" or self.device == "cpu":
            return False
        try:
            self.runtime, self.reason = engines.choose("auto", self.device, unfit)
        except EngineError:
            return False
        return True

    def _slice_size(self, box: tuple[int, int, int], budget: int | None, height: int, width: int) -> tuple[int, int]:
        where = {"device": self.device, "precision": self.precision, "engine_dir": self._engine_dir}
        return engines.slice_size(self.bundle, self.runtime, height, width, shape=box, budget=budget, **where)

    def _loaded_bytes(self) -> int:
        """Of the engines that are there, as the plan counts them: it counts all that it needs."""
        network = Network(self.bundle.manifest.architecture, self.precision, any_size)
        return len(self._loaded) * network.weights()

    def _engines(self, size: tuple[int, int]) -> Engines:
        """Encoder and decoder for slices of this size, loaded and verified once."""
        key = (self.runtime, size if self.runtime in engines.BUILT else None)
        if key not in self._loaded:
            where = {"device": self.device, "precision": self.precision, "engine_dir": self._engine_dir}
            with self._device:
                encoder = engines.load(self.bundle, "encoder", self.runtime, size=key[1], **where)
                decoder = engines.load(self.bundle, "decoder", self.runtime, size=key[1], **where)
                verified = verify_if_needed(self.bundle, encoder, decoder, self._device)
            self._loaded[key] = encoder, decoder
            self._version = encoder.version
            self._verified[key] = None if verified is None else verified.model_dump()
        return self._loaded[key]

    def _forget_engines(self) -> None:
        """Those that are one of several, to be loaded again when it is their turn."""
        for key in [key for key in self._loaded if key[0] in engines.BUILT]:
            del self._loaded[key]

    def _verifications(self) -> dict[str, dict[str, Any]]:
        """Of this runtime's engines: their size -> how far they lie from a CPU's; none for other runtimes."""
        found = ((key[1], verified) for key, verified in self._verified.items() if key[0] == self.runtime)
        return {f"{size[0]} x {size[1]}": verified for size, verified in found if size and verified}

    def _report(
        self,
        volume: Volume,
        prepared: NetworkInput,
        ct: Volume,
        seconds: dict[str, float],
        plan: Plan,
        events: list[str],
    ) -> dict[str, Any]:
        manifest = self.bundle.manifest
        peak = self._device.peak_bytes()
        domain = manifest.domain
        return {
            "sctrt": package_version(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "model": {
                "name": manifest.name,
                "path": str(self.bundle.path),
                "fingerprint": self.bundle.fingerprint,
                "trained_on": NOT_SAID if domain is None else domain.model_dump(mode="json"),
                "licence": manifest.licence,
                "intended_use": manifest.intended_use,
            },
            "runtime": {
                "name": self.runtime,
                "version": self._version,
                "reason": self.reason,
                "precision": self.precision,
                "verified": self._verifications(),
                **self._device.facts(),
            },
            "outside_training": [] if domain is None else domain.outside(prepared.features),
            "fusion": self.fusion,
            "plan": {**plan.facts(), "events": events},
            "kernels": ops.build_info(),
            "input": {
                "shape_zyx": list(volume.shape),
                "spacing_mm_zyx": list(volume.spacing),
                "reference_value": prepared.reference,
                "features": prepared.features,
                "sha256": hashlib.sha256(np.ascontiguousarray(volume.array).data).hexdigest(),  # of the samples
            },
            "network_grid": {
                "shape_zyx": list(prepared.grid.shape),
                "spacing_mm": prepared.grid.spacing,
                "slices_run_zyx": [int(held.sum()) for held in prepared.occupied],
            },
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
            "peak_device_memory_mb": None if peak is None else peak / 1e6,
            "hu": hu_summary(ct.array),
        }


def memory_plan(
    pet: Any,
    *,
    model: str | Path | None = None,
    device: str = "cpu",
    runtime: str = "auto",
    precision: str | None = None,
    fusion: str = "median",
    vram_gb: float | None = None,
) -> Plan:
    """What a synthesis of this PET would allocate, without running the network; see `Synthesizer`.

    With `vram_gb` no GPU is needed; on a GPU, engines are taken for built, whatever the runtime.
    """
    _check_fusion(fusion)
    engines.check_device(device)
    manifest = bundles.load(model).manifest
    volume = as_volume(pet)
    check_pet(volume)
    on_gpu = device != "cpu"
    budget = int(vram_gb * GB) if on_gpu and vram_gb else _budget(open_device(device), None)
    box = network_input(volume, manifest.spacing_mm, manifest.normaliser).grid
    on_host = not _fits_preprocess(volume, manifest, budget)
    grids = _grids(volume, model_grid(volume, manifest.spacing_mm), box, on_host)
    precision = precision or engines.default_precision(device)
    if on_gpu:
        network = Network(manifest.architecture, precision, engine_size)
    else:
        chosen, _ = engines.choose(runtime, device, engines.unfit_for(device, precision))
        network = Network(manifest.architecture, precision, any_size, engines.threads_with_slices(chosen))
    return make_plan(grids, network, budget, planes_of(fusion))


def _fits_preprocess(volume: Volume, manifest: Manifest, budget: int | None) -> bool:
    """Whether the network's input can be made on the device; its body box is not known yet."""
    grid = model_grid(volume, manifest.spacing_mm)
    channels = manifest.architecture.input_channels
    return budget is None or _grids(volume, grid, grid).fits_preprocess(channels, budget)


def _tiled_for_want_of_engines(plan: Plan, grids: Grids, network: Network) -> Iterator[str]:
    """Says which planes run in tiles although there is memory for whole slices."""
    if network.one_pair or not any(plane.tiled for plane in plan.planes):
        return
    planes: tuple[Plane, ...] = tuple(plane.plane for plane in plan.planes)
    ideal = make_plan(grids, replace(network, size=engine_size), plan.budget, planes)
    for plane, wanted in zip(plan.planes, ideal.planes, strict=True):
        if plane.tiled and not wanted.tiled:
            yield f"{plane.plane} slices run in tiles: there is memory for whole ones, and no engine is built for them"


def _code_volumes(
    shape: tuple[int, int, int], factor: int, device: Device
) -> tuple[dict[Plane, NDArray[np.int32]], Observer]:
    """A volume of codes a plane, on the host, and what fills them as batches are run; padding is cut off."""
    codes: dict[Plane, NDArray[np.int32]] = {}
    for plane in PLANES:
        slices = shape[slice_axis(plane)]
        height, width = (-(-n // factor) for axis, n in enumerate(shape) if axis != slice_axis(plane))
        codes[plane] = np.full((slices, height, width), NOT_RUN, np.int32)

    def observe(batch: Batch, index: Array) -> None:
        volume = codes[batch.plane]
        height, width = volume.shape[1:]
        volume[batch.start : batch.start + batch.count] = device.get(index)[:, :height, :width]

    return codes, observe


def planes_of(fusion: str) -> tuple[Plane, ...]:
    """The planes that a fusion needs."""
    return tuple(plane for plane in PLANES if fusion in (plane, *JOINT_FUSIONS))


def as_volume(source: Any) -> Volume:
    """A PET volume from a path, a Volume, a nibabel image, or (array [z, y, x], affine to LPS mm).

    Raises:
        VolumeError: unreadable or unfit.
        ValueError: none of these.
    """
    if isinstance(source, Volume):
        return source
    if isinstance(source, str | os.PathLike):
        return nifti.load(source)
    if isinstance(source, tuple) and len(source) == 2:
        return Volume(np.asarray(source[0]), np.asarray(source[1]))
    if hasattr(source, "dataobj"):
        return nifti.from_nibabel(cast(Nifti1Pair, source))
    raise ValueError(f"expected a path, a Volume, a nibabel image or (array, affine), got {type(source).__name__}")


def hu_summary(hu: NDArray[np.float32]) -> dict[str, float]:
    """Percentiles of the HU above air, and the volume shares by class, to see at a glance that a CT is one.

    Of a large volume every n-th voxel is counted.
    """
    some = hu.ravel()[:: 1 + hu.size // SUMMARY_VOXELS]
    inside = some[some > HU_AIR + 50]
    if inside.size == 0:
        return {}
    percentiles = {f"p{p}": float(np.percentile(inside, p)) for p in (1, 5, 25, 50, 75, 95, 99)}
    classes = {"lung": LUNG_HU, "fat": FAT_HU, "soft": SOFT_HU, "bone": (BONE_ABOVE, np.inf)}
    shares = {
        f"share_{name}": float(np.mean((inside > low) & (inside < high))) for name, (low, high) in classes.items()
    }
    return {"mean": float(inside.mean()), **percentiles, **shares}


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process since its program was started [MB]; None where Linux does not tell.

    Not getrusage: on Linux its maximum is handed on from the process that started this one.
    """
    status = Path("/proc/self/status")
    match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(match[1]) / 1024 if match else None


def package_version() -> str:
    """Version of the installed sctrt."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sctrt")
    except PackageNotFoundError:
        return "checkout"


def _method(fusion: str) -> FusionMethod:
    """How `ops.fuse_planes` does it; one plane alone is the median of itself."""
    return cast(FusionMethod, fusion) if fusion in JOINT_FUSIONS else "median"


def _check_fusion(fusion: str) -> None:
    if fusion not in FUSIONS:
        raise ValueError(f"expected fusion {', '.join(FUSIONS)}, got {fusion!r}")


def _budget(device: Device, vram_gb: float | None, loaded: int = 0) -> int | None:
    """Bytes of device memory that may be used, those of what is `loaded` already included; None on a CPU."""
    free = device.free_bytes()
    if free is None:
        return None
    return free + loaded if vram_gb is None else min(free + loaded, int(vram_gb * GB))


def _grids(volume: Volume, grid: Grid, box: Grid, on_host: bool = False) -> Grids:
    samples = int(np.prod(samples_per_voxel(volume.affine, grid)))
    return Grids(volume.shape, grid.shape, box.shape, samples, on_host)
