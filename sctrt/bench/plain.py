"""What one would write instead of sctrt: a network's slices one after the other, by PyTorch, ONNX Runtime or MONAI.

The same weights, preprocessing and resampling as sctrt; slicing, lookup and fusion as one writes them at first. Torch,
ONNX Runtime and MONAI are imported by the way that needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import ops
from ..bundle import Bundle
from ..planes import PLANES, padded_size
from ..preprocess import Grid, network_input
from ..units import HU_AIR
from ..volume import Volume
from .cases import whole_view

Image = NDArray[np.float32]
Made = tuple[Image, NDArray[np.int64]]  # predictions [n, height, width] in network units, codes [n, h, w]
Slice = Callable[[Image], Made]  # PET [n, C, height, width], on the host
Planes = Callable[[Image, int], Made]  # PET [C, z, y, x] of which there are only some slices along an axis; that axis
View = Literal["box", "field"]


def torch_slice(network: Any, dtype: Any, device: str, factor: int, padding: float, memory_format: Any = None) -> Slice:
    """The network in PyTorch on slices of any size, padded to multiples of its factor; cdist and argmin look up."""
    import torch

    codebook = network.quantize.embedding.weight.detach().float()
    memory_format = memory_format or torch.contiguous_format

    def run(images: Image) -> Made:
        height, width = images.shape[2:]
        pad = (0, -width % factor, 0, -height % factor)
        with torch.inference_mode():
            inputs = torch.from_numpy(np.ascontiguousarray(images)).to(device)
            inputs = torch.nn.functional.pad(inputs, pad, value=padding).to(dtype, memory_format=memory_format)
            latent = network.encode(inputs).float().movedim(1, 3)  # [N, h, w, D]
            index = torch.cdist(latent.flatten(0, 2), codebook).argmin(1)
            codes = codebook[index].view(latent.shape).movedim(3, 1).to(dtype, memory_format=memory_format)
            made = network.decode(codes)[:, 0, :height, :width].float().cpu().numpy()
            return made, index.view(latent.shape[:3]).cpu().numpy()

    return run


def torch_network(bundle: Bundle, device: str, precision: str) -> tuple[Any, Any]:
    """The network and its dtype.

    Args:
        precision: "fp32"; "tf32": fp32 as PyTorch has it, whose convolutions are TF32; "fp16" or "bf16".
    """
    import torch

    from ..model.checkpoint import load_bundle_weights

    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in dtypes:
        raise ValueError(f"expected precision {', '.join(dtypes)}, got {precision!r}")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # which is how PyTorch comes
    return load_bundle_weights(bundle).eval().to(device, dtypes[precision]), dtypes[precision]


def slice_by_slice(run: Slice) -> Planes:
    """A loop over the slices of one plane."""

    def planes(channels: Image, axis: int) -> Made:
        made = [run(image[None]) for image in np.moveaxis(channels, axis + 1, 0)]
        return np.concatenate([ct for ct, _ in made]), np.concatenate([codes for _, codes in made])

    return planes


def eager(bundle: Bundle, device: str, precision: str, threads: int) -> Planes:
    """PyTorch as it comes."""
    _torch_threads(threads)
    network, dtype = torch_network(bundle, device, precision)
    manifest = bundle.manifest
    return slice_by_slice(torch_slice(network, dtype, device, manifest.architecture.factor, manifest.padding))


def compiled(bundle: Bundle, device: str, precision: str, threads: int) -> Planes:
    """torch.compile of both halves, channels last, for each size of slices anew."""
    import torch

    _torch_threads(threads)
    network, dtype = torch_network(bundle, device, precision)
    network = network.to(memory_format=torch.channels_last)
    network.encode, network.decode = (torch.compile(half, dynamic=False) for half in (network.encode, network.decode))
    manifest, last = bundle.manifest, torch.channels_last
    return slice_by_slice(torch_slice(network, dtype, device, manifest.architecture.factor, manifest.padding, last))


def onnxruntime(bundle: Bundle, device: str, precision: str, threads: int) -> Planes:
    """ONNX Runtime's sessions; NumPy slices, pads and looks up, with one matrix product."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider}; pip install onnxruntime-gpu")
    encoder, decoder = (ort.InferenceSession(str(bundle.onnx(half)), options, [provider]) for half in HALVES)
    codebook, factor, padding = bundle.codebook(), bundle.manifest.architecture.factor, bundle.manifest.padding
    norms, products = (codebook**2).sum(1), -2 * codebook.T

    def run(images: Image) -> Made:
        height, width = images.shape[2:]
        padded = np.pad(images, ((0, 0), (0, 0), (0, -height % factor), (0, -width % factor)), constant_values=padding)
        (latent,) = encoder.run(None, {encoder.get_inputs()[0].name: padded})
        pixels = np.moveaxis(latent, 1, 3)
        index = (pixels.reshape(-1, codebook.shape[1]) @ products + norms).argmin(1)
        codes = np.ascontiguousarray(np.moveaxis(codebook[index].reshape(pixels.shape), 3, 1))
        (made,) = decoder.run(None, {decoder.get_inputs()[0].name: codes})
        return made[:, 0, :height, :width], index.reshape(pixels.shape[:3])

    return slice_by_slice(run)


def monai(bundle: Bundle, device: str, precision: str, threads: int) -> Planes:
    """MONAI's sliding-window inferer over whole slices of the volume; its vector quantiser looks up."""
    import torch
    from monai.inferers.inferer import SliceInferer
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    _torch_threads(threads)
    network, dtype = torch_network(bundle, device, precision)
    a, padding = bundle.manifest.architecture, bundle.manifest.padding
    quantiser = EMAQuantizer(2, a.codes, a.code_dim)
    quantiser.embedding.weight.data = network.quantize.embedding.weight.detach().float().clone()
    quantiser = quantiser.to(device).eval()
    found: list[NDArray[np.int64]] = []

    def predict(images: Any) -> Any:
        latent = network.encode(images)
        _, _, index = quantiser.quantize(latent.float())
        found.append(index.cpu().numpy())
        return network.decode(quantiser.embed(index).to(dtype))[:, :1]

    def planes(channels: Image, axis: int) -> Made:
        found.clear()
        shape = channels.shape[1:]
        pad = [(0, 0)] + [(0, 0 if i == axis else -n % a.factor) for i, n in enumerate(shape)]
        padded = torch.from_numpy(np.pad(channels, pad, constant_values=padding))[None].to(dtype)
        size = tuple(n for i, n in enumerate(padded.shape[2:]) if i != axis)
        inferer = SliceInferer(spatial_dim=axis, roi_size=size, sw_batch_size=1, overlap=0, sw_device=device)
        with torch.inference_mode():
            made = inferer(padded, predict)
        cut = made[0, 0, : shape[0], : shape[1], : shape[2]].float().numpy()  # pyright: ignore[reportIndexIssue,reportArgumentType,reportCallIssue]
        return np.moveaxis(cut, axis, 0), np.concatenate(found)

    return planes


HALVES: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
WAYS: dict[str, Callable[[Bundle, str, str, int], Planes]] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": onnxruntime,
    "monai": monai,
}


def _torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


@dataclass
class Pass:
    """One pass over a PET: seconds by stage, those of the network scaled up from the slices that were run."""

    stages_s: dict[str, float]
    ct: Volume
    grid: Grid  # of the predictions
    planes: list[Made] = field(default_factory=list)  # of the slices that were run

    @property
    def seconds(self) -> float:
        return sum(self.stages_s.values())


def run_pass(
    planes: Planes,
    bundle: Bundle,
    pet: Volume,
    view: View,
    chosen: Callable[[int, int], Sequence[int]],
    clock: Callable[[], float] = time.perf_counter,
) -> Pass:
    """From the PET to its CT.

    Args:
        view: "box": what sctrt gives the network; "field": all of the PET.
        chosen: (axis, number of slices) -> those to be run.
    """
    stages: dict[str, float] = {}
    start = clock()
    channels, grid = view_of(pet, bundle, view)
    stages["preprocess"] = clock() - start
    predictions, kept, stages["network"] = [], [], 0.0
    for axis in range(len(PLANES)):
        total = channels.shape[axis + 1]
        some = list(chosen(axis, total))
        part = channels if len(some) == total else channels.take(some, axis + 1)
        start = clock()
        made, codes = planes(part, axis)
        stages["network"] += (clock() - start) * total / len(some)
        prediction = np.zeros(channels.shape[1:], np.float32)
        np.moveaxis(prediction, axis, 0)[some] = made
        predictions.append(prediction)
        kept.append((made, codes))
    low, high = bundle.manifest.hu_range
    start = clock()
    hu = np.median(predictions, axis=0) * ((high - low) / 2) + (high + low) / 2
    hu = np.clip(hu, low, high).astype(np.float32)
    stages["fuse"] = clock() - start
    start = clock()
    matrix = ops.grid_matrix(pet.affine, grid.affine)
    ct = Volume(ops.resample(hu, matrix, pet.shape, fill=HU_AIR), pet.affine, "HU")
    stages["resample"] = clock() - start
    return Pass(stages, ct, grid, kept)


def view_of(pet: Volume, bundle: Bundle, view: View) -> tuple[Image, Grid]:
    """The network's input [C, z, y, x] and its grid."""
    manifest = bundle.manifest
    if view == "field":
        return whole_view(pet, manifest.spacing_mm, manifest.normaliser)
    prepared = network_input(pet, manifest.spacing_mm, manifest.normaliser)
    return prepared.channels, prepared.grid


def slice_of(shape: tuple[int, int, int], axis: int, factor: int) -> tuple[int, int]:
    """(height, width) that the network sees of the slices along an axis."""
    return padded_size(shape, PLANES[axis], factor)
