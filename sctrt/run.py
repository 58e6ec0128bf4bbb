"""One synthesis on one device, from PET to CT: what lies where, and what gives way when memory runs out.

Note [Out of memory]
Any allocation may fail: others use the GPU too, and engines are only estimated. Then what libraries keep for reuse is
given back and the work goes on from where it was, with less: half as many slices at a time; at one slice, or outside
the networks, with the volumes on the host, from where slices go to the GPU and back; one slice is tried twice. Kernels
give the same bits on the host, so the CT is the same as far as the engines' results do not depend on the batch.
Handlers keep no reference to the error: its frames hold arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from . import ops
from .bundle import Manifest
from .device import Array, Clock, Device, Host
from .engines import Engine
from .errors import OutOfMemory
from .plan import TILE_OVERLAP, Plan, PlanePlan
from .planes import Batch, Plane, batches, slice_axis
from .preprocess import NetworkInput
from .tiles import Tiles
from .units import HU_AIR

Engines = tuple[Engine, Engine]  # encoder, decoder
Progress = Callable[[str, int, int], None]  # stage, done, total
Observer = Callable[[Batch, Array], None]  # a batch, and the codes of its latents [n, h, w] int32 on the device
T = TypeVar("T")


class SliceNetwork:
    """Encoder, codebook lookup and decoder on up to `plan.batch` slices; allocates all that it needs at once."""

    def __init__(
        self,
        device: Device,
        plan: PlanePlan,
        engines: Engines,
        codebook: ops.Codebook,
        manifest: Manifest,
        clock: Clock,
    ) -> None:
        self._device, self._codebook, self._clock = device, codebook, clock
        self._encoder, self._decoder = engines
        a, n = manifest.architecture, plan.batch
        height, width = plan.engine
        latent = (n, a.code_dim, height // a.factor, width // a.factor)
        self._latent, self._codes = device.empty(latent), device.empty(latent)
        self.index = device.empty((n, *latent[2:]), "int32")  # the codes; of the last tile, where there are tiles
        self.images = device.empty((n, a.input_channels, plan.height, plan.width))
        self.slices = device.empty((n, a.output_channels, plan.height, plan.width))
        self._tiles: Tiles | None = None
        if plan.tiled:
            tiles = device.empty((n, a.input_channels, height, width))
            made = device.empty((n, a.output_channels, height, width))
            size = (plan.height, plan.width)
            self._tiles = Tiles(size, TILE_OVERLAP, tiles, made, device.put)
        lent = max(engine.workspace(n) for engine in engines)
        self._workspace = device.empty((lent,), "uint8") if lent else None

    def __call__(self, count: int) -> None:
        """Fills the first `count` of `slices` from as many of `images`."""
        images, slices = self.images[:count], self.slices[:count]
        if self._tiles:
            self._tiles(self._run_engines, images, slices)
        else:
            self._run_engines(images, slices)

    def _run_engines(self, images: Array, slices: Array) -> None:
        n, stream = images.shape[0], self._device.stream
        latent, codes, index = self._latent[:n], self._codes[:n], self.index[:n]
        with self._clock.stage("encoder"):
            self._encoder(images, latent, stream=stream, workspace=self._workspace)
        with self._clock.stage("codebook"):
            ops.nearest_code(latent, self._codebook, index=index, quantised=codes, stream=stream)
        with self._clock.stage("decoder"):
            self._decoder(codes, slices, stream=stream, workspace=self._workspace)


class Run:
    """The volumes of one synthesis, and where they lie.

    Args:
        device: that the engines run on.
        prepared: the network's input, on `device` or on the host.
        manifest: of the bundle.
        codebook: on the host.
        load: (height, width) -> the engines for it.
        release: forgets engines that can be loaded again.
        clock: of the device.
        events: what happened, in words; added to.
    """

    def __init__(
        self,
        device: Device,
        prepared: NetworkInput,
        manifest: Manifest,
        codebook: ops.Codebook,
        load: Callable[[tuple[int, int]], Engines],
        release: Callable[[], None],
        clock: Clock,
        events: list[str],
    ) -> None:
        self._device, self._manifest, self._clock, self._events = device, manifest, clock, events
        self._host_codebook, self._load, self._release = codebook, load, release
        self._occupied, self._shape = prepared.occupied, prepared.grid.shape
        on_host = isinstance(prepared.channels, np.ndarray) and not isinstance(device, Host)
        self._volumes: Device = Host() if on_host else device
        self._channels: Array = prepared.channels
        self._predictions: list[Array] = []
        self._most: int | None = None  # slices at a time, once memory has run out
        self._stuck = False  # whether the last failure was with the least that there is
        self._observe: Observer | None = None

    def move_to_host(self, why: str = "") -> None:
        """Volumes leave the GPU."""
        self._predictions = [self._volumes.get(prediction) for prediction in self._predictions]
        self._channels = None if self._channels is None else self._volumes.get(self._channels)
        self._volumes = Host()
        if why:
            self._events.append(f"{why}: the volumes went to the host")

    def predict(self, plan: Plan, progress: Progress | None = None, observe: Observer | None = None) -> None:
        """Predicts the CT plane by plane, in network units.

        Args:
            plan: what runs together.
            progress: called before each batch and after the last.
            observe: called after each batch; the next one overwrites what it is shown.

        Raises:
            OutOfMemory: the GPU cannot hold one slice's buffers.
        """
        self._observe = observe
        if plan.volumes == "host":
            self.move_to_host()
        low, high = self._manifest.hu_range
        air = (HU_AIR - (high + low) / 2) / ((high - low) / 2)
        for plane in plan.planes:
            prediction = self._outside_networks(lambda: self._volumes.full(self._shape, air))
            self._predictions.append(prediction)
            del prediction
            self._predict_plane(plane, progress)
        self._channels = None

    def predictions(self) -> list[NDArray[np.float32]]:
        """Of each plane, before they are fused: [z, y, x] in network units, on the host."""
        return self._outside_networks(lambda: [self._volumes.get(prediction) for prediction in self._predictions])

    def fuse(self, method: ops.FusionMethod) -> None:
        """The planes become CT and spread [HU], in place of two of the predictions."""
        low, high = self._manifest.hu_range
        scale, offset = (high - low) / 2, (high + low) / 2

        def fuse() -> list[Array]:
            one = self._predictions * 3 if len(self._predictions) == 1 else self._predictions
            spread = self._volumes.empty(self._shape) if one[1] is one[0] else one[1]
            stream, limits = self._volumes.stream, (low, high)
            how = {"method": method, "scale": scale, "offset": offset, "limits": limits, "stream": stream}
            return list(ops.fuse_planes(*one, fused=one[0], spread=spread, **how))

        self._predictions = self._outside_networks(fuse)

    def result(self, matrix: NDArray[np.float64], shape: Sequence[int], fill: float) -> NDArray[np.float32]:
        """The CT first, then the spread, on the PET's grid on the host; what is downloaded is let go.

        Args:
            matrix: from the PET's voxels to those of the body box.
            shape: (z, y, x) of the PET.
            fill: outside the box [HU].
        """

        def resample() -> NDArray[np.float32]:
            array = ops.resample(self._predictions[0], matrix, shape, fill=fill, stream=self._volumes.stream)
            return self._volumes.get(array)

        result = self._outside_networks(resample)
        del self._predictions[0]
        return result

    def _outside_networks(self, work: Callable[[], T]) -> T:
        """Does it where the volumes lie; if memory runs out there, on the host."""
        try:
            with self._volumes:
                return work()
        except OutOfMemory as error:
            reason = str(error)
        self._release()
        self._device.release()
        self.move_to_host(reason)
        return work()

    def _predict_plane(self, plan: PlanePlan, progress: Progress | None) -> None:
        plan = self._within_most(plan)
        occupied = self._occupied[slice_axis(plan.plane)].tolist()
        first, done = 0, 0
        while True:
            todo = list(batches(plan.plane, occupied, plan.batch, first))
            ended, reason = self._run_batches(plan, todo, done, progress)
            if not reason:
                return
            done += ended
            first = todo[ended].start
            self._stuck = self._stuck and ended == 0
            plan = self._less(plan, reason)

    def _run_batches(self, plan: PlanePlan, todo: list[Batch], done: int, progress: Progress | None) -> tuple[int, str]:
        """How many batches were run, and what stopped it, in words."""
        ended = 0
        try:
            with self._device:
                codebook = self._codebook()
                network = SliceNetwork(
                    self._device, plan, self._load(plan.engine), codebook, self._manifest, self._clock
                )
                for batch in todo:
                    _tell(progress, plan.plane, done + ended, done + len(todo))
                    self._run_batch(network, batch)
                    ended += 1
        except OutOfMemory as error:
            return ended, str(error)
        _tell(progress, plan.plane, done + ended, done + ended)
        return ended, ""

    def _run_batch(self, network: SliceNetwork, batch: Batch) -> None:
        images, slices = network.images[: batch.count], network.slices[: batch.count]
        with self._clock.working_on(plane=batch.plane, first=batch.start, slices=batch.count):
            with self._clock.stage("extract"):
                self._extract(batch, images)
            network(batch.count)
            if self._observe:
                self._observe(batch, network.index[: batch.count])
            with self._clock.stage("insert"):
                made = slices if self._volumes is self._device else self._device.get(slices)
                ops.insert_planes(made, self._predictions[-1], batch.plane, batch.start, stream=self._volumes.stream)

    def _extract(self, batch: Batch, images: Array) -> None:
        here = self._volumes is self._device
        extracted = ops.extract_planes(
            self._channels,
            batch.plane,
            batch.start,
            batch.count,
            height=images.shape[2],
            width=images.shape[3],
            fill=self._manifest.padding,
            out=images if here else None,
            stream=self._volumes.stream,
        )
        if not here:
            self._device.fill(images, extracted)

    def _less(self, plan: PlanePlan, reason: str) -> PlanePlan:
        """What to go on with: see Note [Out of memory]."""
        self._release()
        self._device.release()
        if plan.batch > 1:
            self._most = plan.batch // 2
            self._events.append(f"{reason}: {plan.plane} slices went on {self._most} at a time")
        elif not isinstance(self._volumes, Host):
            self.move_to_host(reason)
        elif not self._stuck:
            self._stuck = True
            self._events.append(f"{reason}: {plan.plane} slices were tried again")
        else:
            raise OutOfMemory(
                f"{self._device.name} has too little memory for one slice of {plan.engine[0]} x {plan.engine[1]} "
                f"pixels, with all volumes on the host ({reason}); end other programs on this GPU, use a lower "
                "--precision, give a smaller --vram-gb so that tiles are used, or --device cpu"
            )
        return self._within_most(plan)

    def _within_most(self, plan: PlanePlan) -> PlanePlan:
        return plan.at_most(self._most) if self._most else plan

    def _codebook(self) -> ops.Codebook:
        if isinstance(self._device, Host):
            return self._host_codebook
        return self._host_codebook.to(self._device.empty((1,)))


def _tell(progress: Progress | None, plane: Plane, done: int, total: int) -> None:
    if progress:
        progress(plane, done, total)
