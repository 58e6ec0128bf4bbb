"""Compares a built encoder and decoder with a CPU runtime in fp32, on one sample slice."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .. import engines, gpus, ops
from ..bundle import Bundle, Manifest
from ..device import Device, Host
from ..errors import EngineError
from ..preprocess import Grid, compress, position
from . import Engine, cache

HU_MEAN_LIMIT = 2.0
# Of the codes, in the long run; the few of one slice may lie SIGMAS above it by chance. In fp16 2 % flip, at 0.4 HU,
# most to a neighbour that means the same (benchmarks/results/precision.json): the HU are the finer sieve.
FLIPPED_LIMIT = 0.05
SIGMAS = 3
SEED = 511
# Where the body and its organs lie, in shares of the slice: centre (y, x), radii (y, x), uptake beside the body's.
BODY = (0.5, 0.5), (0.42, 0.44), 1.0
ORGANS = (
    ((0.40, 0.35), (0.22, 0.12), -0.6),  # lungs
    ((0.40, 0.65), (0.22, 0.12), -0.6),
    ((0.68, 0.38), (0.14, 0.18), 1.0),  # liver
    ((0.62, 0.62), (0.05, 0.04), 3.0),  # a lesion
    ((0.80, 0.50), (0.08, 0.05), -0.3),  # spine
)
TEXTURE = 0.15  # standard deviation of the noise, beside the body's uptake
OTHER_PRECISION = {
    "fp16": "use --precision fp32",
    "bf16": "use --precision fp16 or fp32",
    "fp32": "use --runtime torch, and report it",
}


@dataclass(frozen=True)
class _Outcome:
    index: NDArray[np.int32]  # of the codes
    hu: NDArray[np.float32]


def verify_if_needed(bundle: Bundle, encoder: Engine, decoder: Engine, device: Device) -> cache.Verification | None:
    """Verifies engines that were built for this GPU but not verified on it, and notes the outcome beside them.

    The device is CUDA's current one. Engines that are not built beforehand need none.

    Returns:
        The verification that holds, new or old; None for engines that need none.

    Raises:
        EngineError: they lie too far from the CPU's; the message says how far, and what to use.
    """
    pair: list[Any] = [engine for engine in (encoder, decoder) if hasattr(engine, "entry")]
    if len(pair) < 2:
        return None
    card = gpus.card(device.name)
    known = [engine.entry.fingerprint.verified for engine in pair]
    if card and known[0] and known[0] == known[1] and known[0].device == card.name:
        return known[0]
    found = verify(bundle, encoder, decoder, device)
    for engine in pair:
        fingerprint = engine.entry.fingerprint.model_copy(update={"verified": found})
        engine.entry = cache.Entry(engine.entry.path, fingerprint)
        with contextlib.suppress(OSError):  # a folder that cannot be written: the next run verifies again
            cache.write_fingerprint(engine.entry)
    return found


def verify_built(
    bundle: Bundle, runtime: str, precision: str, size: tuple[int, int], engine_dir: Path | None, device: Device
) -> cache.Verification | None:
    """Loads the engines of one slice size, and verifies them; see `verify_if_needed`."""
    encoder, decoder = (
        engines.load(bundle, part, runtime, device=device.name, precision=precision, size=size, engine_dir=engine_dir)
        for part in ("encoder", "decoder")
    )
    return verify_if_needed(bundle, encoder, decoder, device)


def verify(bundle: Bundle, encoder: Any, decoder: Any, device: Device, oracle: str = "auto") -> cache.Verification:
    """Runs both halves on a sample slice of the engines' size, and the oracle, a runtime of the CPU, on the same.

    Raises:
        EngineError: they differ by more than the limits.
    """
    has = encoder.entry.fingerprint
    images = sample_slice(bundle.manifest, has.height, has.width)
    ours = _run(bundle, encoder, decoder, device, images)
    runtime, _ = engines.choose(oracle, "cpu")
    oracle_encoder, oracle_decoder = engines.load(bundle, "encoder", runtime), engines.load(bundle, "decoder", runtime)
    theirs = _run(bundle, oracle_encoder, oracle_decoder, Host(), images)
    difference = np.abs(ours.hu - theirs.hu)
    card = gpus.card(device.name)
    if not np.isfinite(difference).all():
        raise EngineError(
            f"{has.runtime} {has.version} in {has.precision} gives numbers that are not finite; "
            f"{OTHER_PRECISION[has.precision]}"
        )
    found = cache.Verification(
        oracle=f"{runtime} {oracle_encoder.version} fp32",
        device=card.name if card else device.name,
        hu_mean=float(difference.mean()),
        hu_p99_9=float(np.percentile(difference, 99.9)),
        flipped_share=float(np.mean(ours.index != theirs.index)),
    )
    by_chance = SIGMAS * (FLIPPED_LIMIT / ours.index.size) ** 0.5
    if found.hu_mean >= HU_MEAN_LIMIT or found.flipped_share >= FLIPPED_LIMIT + by_chance:
        raise EngineError(
            f"{has.runtime} {has.version} in {has.precision} differs from {found.oracle} by {describe(found)}; "
            f"expected less than {HU_MEAN_LIMIT:g} HU and {FLIPPED_LIMIT:.0%}; {OTHER_PRECISION[has.precision]}"
        )
    return found


def describe(found: cache.Verification) -> str:
    """The numbers of a verification in words."""
    return (
        f"{found.hu_mean:.3f} HU on average, {found.hu_p99_9:.2f} HU at the 99.9th percentile, "
        f"{found.flipped_share:.2%} of the codes flipped"
    )


def sample_slice(manifest: Manifest, height: int, width: int) -> NDArray[np.float32]:
    """A slice with a body, lungs, a liver, a lesion and noise, the same in every call: [1, C, height, width]."""
    uptake = np.zeros((height, width), np.float32)
    for centre, radii, level in (BODY, *ORGANS):
        uptake += level * _ellipse(height, width, centre, radii)
    noise = np.random.default_rng(SEED).normal(1, TEXTURE, uptake.shape)
    uptake = np.maximum(uptake * noise, 0).astype(np.float32)
    normaliser = manifest.normaliser
    scales = [ndimage.uniform_filter(uptake, 2**level, mode="constant") for level in normaliser.scales]
    channels = [compress(scale, normaliser.exponent) for scale in scales]
    if normaliser.position:
        grid = Grid(np.diag([*(3 * [manifest.spacing_mm]), 1.0]), (1, height, width))
        channels += [np.broadcast_to(along, (height, width)) for along in position(grid)]
    return np.stack(channels)[None]


def _ellipse(height: int, width: int, centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.float32]:
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    inside = ((y - centre[0]) / radii[0])[:, None] ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
    return inside.astype(np.float32)


def _run(bundle: Bundle, encoder: Engine, decoder: Engine, device: Device, images: NDArray[np.float32]) -> _Outcome:
    """Encoder, lookup, decoder of a batch of slices."""
    manifest, stream = bundle.manifest, device.stream
    a, (count, _, height, width) = manifest.architecture, images.shape
    shape = (count, a.code_dim, height // a.factor, width // a.factor)
    source, latent, codes = device.put(images), device.empty(shape), device.empty(shape)
    index = device.empty((count, *shape[2:]), "int32")
    slices = device.empty((count, a.output_channels, height, width))
    needed = max(1, encoder.workspace(count), decoder.workspace(count))
    workspace = device.empty((needed,), "uint8")
    encoder(source, latent, stream=stream, workspace=workspace)
    ops.nearest_code(latent, device.put(bundle.codebook()), index=index, quantised=codes, stream=stream)
    decoder(codes, slices, stream=stream, workspace=workspace)
    low, high = manifest.hu_range
    scale, offset = np.float32((high - low) / 2), np.float32((high + low) / 2)
    return _Outcome(device.get(index), device.get(slices) * scale + offset)
