"""NAC PET in, synthetic CT out: the only module that knows volumes, planes, kernels and engines at once."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Pair
from numpy.typing import NDArray

from . import bundle as bundles
from . import engines, nifti, ops
from .attenuation import hu_to_mu
from .bundle import Bundle
from .checks import check_pet
from .planes import PLANES, Batch, Plane, batches
from .preprocess import NetworkInput, network_input
from .units import BONE_ABOVE, FAT_HU, HU_AIR, LUNG_HU, SOFT_HU
from .volume import Volume

MAX_BATCH_PIXELS = 60_000  # of one engine call: larger batches are no faster on a CPU and cost memory
JOINT_FUSIONS = ("median", "mean")
FUSIONS = (*JOINT_FUSIONS, *PLANES)

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class Synthesis:
    """The result for one PET volume, on that volume's own grid."""

    ct: Volume  # HU, air outside the body box
    uncertainty: Volume  # HU, range of the three planes' predictions, 0 outside the body box
    report: dict[str, Any]

    def mu_map(self, kvp: int = 120) -> Volume:
        """Attenuation map at 511 keV [1/cm], Carney 2006 for a tube voltage of `kvp` kV."""
        return mu_map(self.ct, kvp)


def mu_map(ct: Volume, kvp: int = 120) -> Volume:
    """Attenuation map at 511 keV [1/cm] of a CT in HU, Carney 2006 for a tube voltage of `kvp` kV."""
    return Volume(hu_to_mu(ct.array, kvp).astype(np.float32), ct.affine, "1/cm")


@dataclass
class _Clock:
    """Wall-clock seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Synthesizer:
    """A loaded model: load once, run many.

    Args:
        model: a bundle folder NAME.sctrt; None means the model that ships with sctrt.
        runtime: "auto", "openvino", "onnxruntime" or "torch".
        device: "cpu".
        precision: "fp32" or "bf16" (where the runtime has it).
        fusion: of the three planes: "median" (the paper's), "mean", or one plane alone.

    Raises:
        BundleError: the bundle is missing, damaged or too new.
        EngineError: the runtime is unknown, not installed or cannot load the network.
        DeviceError: nothing runs on this device.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        runtime: str = "auto",
        device: str = "cpu",
        precision: str = "fp32",
        fusion: str = "median",
    ) -> None:
        if fusion not in FUSIONS:
            raise ValueError(f"expected fusion {', '.join(FUSIONS)}, got {fusion!r}")
        self.runtime, self.reason = engines.choose(runtime, device)
        self.bundle: Bundle = bundles.load(model)
        self.device, self.precision, self.fusion = device, precision, fusion
        self._codebook = ops.Codebook(self.bundle.codebook())
        self._encoder = engines.load(self.bundle, "encoder", self.runtime, device=device, precision=precision)
        self._decoder = engines.load(self.bundle, "decoder", self.runtime, device=device, precision=precision)

    def __call__(self, pet: Any, *, progress: Progress | None = None) -> Synthesis:
        """Synthesises a CT.

        Args:
            pet: NAC PET: a path to a NIfTI file, a Volume, a nibabel image, or a pair (array [z, y, x], affine [4, 4]
                voxel (x, y, z) -> LPS mm).
            progress: called with (stage, done, total) as the work goes on.

        Raises:
            VolumeError: the PET is unfit; the message says why and what to do.
        """
        clock = _Clock()
        with clock.stage("load"):
            volume = as_volume(pet)
            check_pet(volume)
        manifest = self.bundle.manifest
        with clock.stage("preprocess"):
            prepared = network_input(volume, manifest.spacing_mm, manifest.normaliser)
        predictions = [self._run_plane(prepared.channels, plane, clock, progress) for plane in self._planes()]
        with clock.stage("fuse"):
            hu, spread = self._fuse(predictions)
        with clock.stage("resample"):
            ct, uncertainty = _to_pet_grid(hu, spread, prepared, volume)
        return Synthesis(ct, uncertainty, self._report(volume, prepared, ct, clock))

    def _planes(self) -> tuple[Plane, ...]:
        return tuple(plane for plane in PLANES if self.fusion in (plane, *JOINT_FUSIONS))

    def _run_plane(
        self, pet: NDArray[np.float32], plane: Plane, clock: _Clock, progress: Progress | None
    ) -> NDArray[np.float32]:
        """One plane's prediction [z, y, x] in network units, from PET [C, z, y, x]."""
        predicted = np.empty(pet.shape[1:], np.float32)
        plan = list(batches(pet.shape[1:], plane, self.bundle.manifest.architecture.factor, MAX_BATCH_PIXELS))
        for done, batch in enumerate(plan):
            if progress:
                progress(plane, done, len(plan))
            self._run_batch(pet, batch, predicted, clock)
        if progress:
            progress(plane, len(plan), len(plan))
        return predicted

    def _run_batch(self, pet: NDArray[np.float32], batch: Batch, predicted: NDArray[np.float32], clock: _Clock) -> None:
        a = self.bundle.manifest.architecture
        latent = np.empty((batch.count, a.code_dim, batch.height // a.factor, batch.width // a.factor), np.float32)
        slices = np.empty((batch.count, a.output_channels, batch.height, batch.width), np.float32)
        with clock.stage("extract"):
            images = ops.extract_planes(
                pet,
                batch.plane,
                batch.start,
                batch.count,
                height=batch.height,
                width=batch.width,
                fill=self.bundle.manifest.padding,
            )
        with clock.stage("encoder"):
            self._encoder(images, latent)
        with clock.stage("codebook"):
            _, codes = ops.nearest_code(latent, self._codebook)
        with clock.stage("decoder"):
            self._decoder(codes, slices)
        with clock.stage("insert"):
            ops.insert_planes(slices, predicted, batch.plane, batch.start)

    def _fuse(self, predictions: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        low, high = self.bundle.manifest.hu_range
        scale, offset = (high - low) / 2, (high + low) / 2
        axial, coronal, sagittal = predictions if len(predictions) == 3 else predictions * 3
        method = "mean" if self.fusion == "mean" else "median"
        return ops.fuse_planes(axial, coronal, sagittal, method=method, scale=scale, offset=offset, limits=(low, high))

    def _report(self, volume: Volume, prepared: NetworkInput, ct: Volume, clock: _Clock) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "sctrt": package_version(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "model": {
                "name": manifest.name,
                "path": str(self.bundle.path),
                "fingerprint": self.bundle.fingerprint,
                "licence": manifest.licence,
                "intended_use": manifest.intended_use,
            },
            "runtime": {
                "name": self.runtime,
                "version": self._encoder.version,
                "reason": self.reason,
                "device": self.device,
                "precision": self.precision,
            },
            "fusion": self.fusion,
            "kernels": ops.build_info(),
            "input": {
                "shape_zyx": list(volume.shape),
                "spacing_mm_zyx": list(volume.spacing),
                "reference_value": prepared.reference,
                "sha256": hashlib.sha256(np.ascontiguousarray(volume.array).data).hexdigest(),  # of the samples
            },
            "network_grid": {"shape_zyx": list(prepared.grid.shape), "spacing_mm": prepared.grid.spacing},
            "seconds": {**clock.seconds, "total": sum(clock.seconds.values())},
            "peak_memory_mb": peak_memory_mb(),
            "hu": hu_summary(ct.array),
        }


def synthesize(pet: Any, **options: Any) -> Synthesis:
    """Synthesises a CT from one NAC PET volume; see `Synthesizer` for `options` and the forms that `pet` takes."""
    return Synthesizer(**options)(pet)


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
    """Percentiles of the HU above air, and the volume shares by class, to see at a glance that a CT is one."""
    inside = hu[hu > HU_AIR + 50]
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


def _to_pet_grid(
    hu: NDArray[np.float32], spread: NDArray[np.float32], prepared: NetworkInput, pet: Volume
) -> tuple[Volume, Volume]:
    matrix = ops.grid_matrix(pet.affine, prepared.grid.affine)
    ct = ops.resample(hu, matrix, pet.shape, fill=HU_AIR)
    uncertainty = ops.resample(spread, matrix, pet.shape, fill=0.0)
    return Volume(ct, pet.affine, "HU"), Volume(uncertainty, pet.affine, "HU")
