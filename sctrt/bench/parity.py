"""How far a runtime lies from PyTorch in fp32, on slices of the body, each half fed by its own runtime's other half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import engines, ops
from ..bundle import Bundle
from ..device import Device, open_device
from ..planes import PLANES
from .cases import spread_out


def parity(
    bundle: Bundle,
    channels: NDArray[np.float32],
    runtime: str,
    *,
    device: str,
    precision: str,
    engine_dir: Path | None,
    slices: int,
) -> dict[str, Any]:
    """|HU difference| and flipped codes on `slices` of each plane of the network's input [C, z, y, x]."""
    low, high = bundle.manifest.hu_range
    codebook = ops.Codebook(bundle.codebook())
    differences, flipped, codes = [], 0, 0
    where = open_device(device)
    for axis in range(len(PLANES)):
        images = _images(bundle, channels, axis, slices)
        options = {"device": device, "precision": precision, "engine_dir": engine_dir}
        size = engines.slice_size(bundle, runtime, *images.shape[2:], **options)
        images = _padded(images, size, bundle.manifest.padding)
        halves = [engines.load(bundle, part, runtime, size=size, **options) for part in ("encoder", "decoder")]
        our_ct, our_codes = _through_engines(bundle, halves, codebook, images, where)
        ct, expected = _through_torch(bundle, codebook, images, device)
        del halves
        where.release()
        differences.append(np.abs(our_ct.astype(np.float64) - ct).ravel() * (high - low) / 2)
        flipped, codes = flipped + int((our_codes != expected).sum()), codes + expected.size
    hu = np.concatenate(differences)
    return {
        "against": "PyTorch fp32, no TF32",
        "slices_of_each_plane": slices,
        "mean_hu": float(hu.mean()),
        "p99.9_hu": float(np.percentile(hu, 99.9)),
        "max_hu": float(hu.max()),
        "flipped_share": flipped / codes,
        "codes": codes,
    }


def _images(bundle: Bundle, channels: NDArray[np.float32], axis: int, slices: int) -> NDArray[np.float32]:
    """Slices of one plane [N, C, H, W], padded as the pipeline does to multiples of the network's factor."""
    planes = np.moveaxis(channels, axis + 1, 0)
    images = np.stack([planes[i] for i in spread_out(slices, len(planes))])
    factor = bundle.manifest.architecture.factor
    height, width = (-(-n // factor) * factor for n in images.shape[2:])
    return _padded(images, (height, width), bundle.manifest.padding)


def _padded(images: NDArray[np.float32], size: tuple[int, int], padding: float) -> NDArray[np.float32]:
    below, right = (wanted - n for wanted, n in zip(size, images.shape[2:], strict=True))
    return np.pad(images, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=padding)


def _through_engines(
    bundle: Bundle, halves: list[engines.Engine], codebook: ops.Codebook, images: NDArray[np.float32], device: Device
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    a = bundle.manifest.architecture
    n, _, height, width = images.shape
    with device:
        latent = device.empty((n, a.code_dim, height // a.factor, width // a.factor))
        _call(halves[0], device.put(images), latent, device)
        index, codes = ops.nearest_code(np.ascontiguousarray(device.get(latent)), codebook)
        ct = device.empty((n, a.output_channels, height, width))
        _call(halves[1], device.put(codes), ct, device)
        return device.get(ct), index


def _call(engine: engines.Engine, inputs: ops.Array, outputs: ops.Array, device: Device) -> None:
    """Slice by slice, so that any engine's largest batch will do."""
    needed = engine.workspace(1)
    workspace = device.empty((needed,), "uint8") if needed else None
    for i in range(inputs.shape[0]):
        engine(inputs[i : i + 1], outputs[i : i + 1], stream=device.stream, workspace=workspace)


def _through_torch(
    bundle: Bundle, codebook: ops.Codebook, images: NDArray[np.float32], device: str
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    import torch

    from ..model.checkpoint import load_bundle_weights

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = device if torch.cuda.is_available() else "cpu"
    model = load_bundle_weights(bundle).eval().to(device)
    latents, slices = [], []
    with torch.inference_mode():
        for image in torch.from_numpy(images).to(device).split(1):
            latents.append(model.encode(image).cpu().numpy())
        index, codes = ops.nearest_code(np.concatenate(latents), codebook)
        for code in torch.from_numpy(codes).to(device).split(1):
            slices.append(model.decode(code).cpu().numpy())
    return np.concatenate(slices), index
