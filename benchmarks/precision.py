"""Which layers need float32? Each choice's HU and flipped codes against a network that is float32 throughout.

The very ONNX that an engine is built from is computed layer by layer on the CPU, every value rounded to the type it has
there and every sum in float32, as a GPU's matrix units do it. TensorRT fuses layers and then rounds less often.

python benchmarks/precision.py --pet NAC.nii.gz --json benchmarks/results/precision.json
"""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import typer
from onnx import helper, numpy_helper
from torch import Tensor

from sctrt import bundle as bundles
from sctrt import nifti, ops
from sctrt.bench.environment import environment
from sctrt.bundle import Bundle
from sctrt.engines.network import fixed_network
from sctrt.files import write_json
from sctrt.planes import PLANES, padded_size, slice_axis
from sctrt.preprocess import network_input

KEPT = {
    "none": (),
    "normalisation": ("norm",),
    "attention": ("attention",),
    "quantiser's input": ("quantiser",),
    "last convolution": ("conv_out",),
    "quantiser's input, normalisation": ("quantiser", "norm"),
    "quantiser's input, last convolution": ("quantiser", "conv_out"),
    "all of these": ("quantiser", "norm", "attention", "conv_out"),
}
DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def main(
    pet: Annotated[Path, typer.Option(help="NAC PET.")],
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Slices apart.")] = 8,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    bundle = bundles.load(model)
    slices = slices_of(bundle, pet, every)
    rows: list[dict[str, Any]] = []
    exact = [run(bundle, images, "fp32", ()) for images in slices]
    body = np.concatenate([in_body(images, bundle.manifest.architecture.factor).ravel() for images in slices])
    for precision in ("fp16", "bf16"):
        for name, kept in KEPT.items():
            made = [run(bundle, images, precision, kept) for images in slices]
            rows.append({"precision": precision, "in fp32": name, **difference(bundle, exact, made, body)})
            print(jsonlib.dumps(rows[-1]), flush=True)
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "pet": pet.name, "every": every}
        write_json(json, {**facts, "model": bundle.fingerprint, "weights": bundle.manifest.name, "rows": rows})


def slices_of(bundle: Bundle, pet: Path, every: int) -> list[np.ndarray]:
    """Some slices [n, C, H, W] of each plane."""
    manifest = bundle.manifest
    channels = network_input(nifti.load(pet), manifest.spacing_mm, manifest.normaliser).channels
    shape = channels.shape[1:]
    found = []
    for plane in PLANES:
        height, width = padded_size(shape, plane, manifest.architecture.factor)
        starts = range(every // 2, shape[slice_axis(plane)], every)
        extract = [
            ops.extract_planes(channels, plane, start, 1, height=height, width=width, fill=manifest.padding)
            for start in starts
        ]
        found.append(np.concatenate(extract))
    return found


def run(
    bundle: Bundle, images: np.ndarray, precision: str, kept: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Codes [n, h, w], slices [n, 1, H, W] in network units, and the largest value met."""
    a, size = bundle.manifest.architecture, images.shape[2:]
    networks = {
        part: onnx.load_from_string(fixed_network(path, part, a, *size, precision, keep_fp32=kept))
        for part, path in (("encoder", bundle.encoder_onnx), ("decoder", bundle.decoder_onnx))
    }
    codebook = ops.Codebook(bundle.codebook())
    codes, slices, largest = [], [], 0.0
    for image in images:
        latent, high = compute(networks["encoder"], torch.from_numpy(image[None]))
        index, quantised = ops.nearest_code(latent.contiguous().numpy(), codebook)
        ct, higher = compute(networks["decoder"], torch.from_numpy(quantised))
        codes.append(index)
        slices.append(ct.numpy())
        largest = max(largest, high, higher)
    return np.concatenate(codes), np.concatenate(slices), largest


@torch.inference_mode()
def compute(network: onnx.ModelProto, given: Tensor) -> tuple[Tensor, float]:
    """The output of a typed network, computed in float32 and rounded to each value's type; and the largest value."""
    graph = network.graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(_plain(t))) for t in graph.initializer}
    types = {t.name: DTYPES.get(t.data_type) for t in graph.initializer}
    values[graph.input[0].name], types[graph.input[0].name] = given, torch.float32
    last_use = {name: i for i, node in enumerate(graph.node) for name in node.input}
    largest = 0.0
    for i, node in enumerate(graph.node):
        arguments = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        dtype = DTYPES[arguments["to"]] if node.op_type == "Cast" else types[node.input[0]]
        made = _layer(node.op_type, [values[name] if name else None for name in node.input], arguments)
        for name, value in zip(node.output, made, strict=True):
            values[name], types[name] = value.to(dtype).float(), dtype
            largest = max(largest, float(value.abs().max()))
        for name in {*node.input} - {*node.output}:
            if last_use.get(name) == i and name in values:
                del values[name]
    return values[graph.output[0].name], largest


def _plain(tensor: onnx.TensorProto) -> Any:
    return np.int64 if tensor.data_type == onnx.TensorProto.INT64 else np.float32


def _layer(kind: str, x: list[Any], arguments: dict[str, Any]) -> list[Tensor] | tuple[Tensor, ...]:
    match kind:
        case "Cast":
            return [x[0]]
        case "Conv":
            top, left, bottom, right = arguments["pads"]
            return [F.conv2d(F.pad(x[0], (left, right, top, bottom)), x[1], x[2], stride=tuple(arguments["strides"]))]
        case "GroupNormalization":
            return [F.group_norm(x[0], arguments["num_groups"], x[1], x[2], eps=arguments["epsilon"])]
        case "Sigmoid":
            return [x[0].sigmoid()]
        case "Mul":
            return [x[0] * x[1]]
        case "Add":
            return [x[0] + x[1]]
        case "MatMul":
            return [x[0] @ x[1]]
        case "Softmax":
            return [x[0].softmax(arguments["axis"])]
        case "Resize":
            return [F.interpolate(x[0], scale_factor=2.0, mode="nearest")]
        case "Reshape":
            return [x[0].reshape([x[0].shape[i] if n == 0 else n for i, n in enumerate(x[1].int().tolist())])]
        case "Transpose":
            return [x[0].permute(arguments["perm"])]
        case "Split":
            return x[0].split(x[1].int().tolist(), arguments["axis"])
        case "Concat":
            return [torch.cat(x, arguments["axis"])]
    raise ValueError(f"expected a layer that fixed_network writes, got {kind}")


def in_body(images: np.ndarray, factor: int) -> np.ndarray:
    """Whether the PET, at the middle of each latent [n, h, w], is at least half the body's median."""
    return images[:, 0, factor // 2 :: factor, factor // 2 :: factor] > 2 * 0.5**2 / (1 + 0.5**2) - 1


def difference(bundle: Bundle, exact: list[Any], made: list[Any], body: np.ndarray) -> dict[str, float]:
    """|HU - HU in fp32| of single planes before fusion, and the share of other codes, also of those in the body."""
    low, high = bundle.manifest.hu_range
    pairs = list(zip(exact, made, strict=True))
    hu = np.concatenate([np.abs(m[1].astype(np.float64) - e[1]).ravel() for e, m in pairs]) * (high - low) / 2
    flipped = np.concatenate([(m[0] != e[0]).ravel() for e, m in pairs])
    return {
        "mean_hu": float(hu.mean()),
        "p99.9_hu": float(np.percentile(hu, 99.9)),
        "flipped_share": float(flipped.mean()),
        "flipped_share_in_body": float(flipped[body].mean()),
        "largest_value": max(m[2] for m in made),
    }


if __name__ == "__main__":
    typer.run(main)
