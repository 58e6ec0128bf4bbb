"""Our own kernels on the CPU: the network layer by layer, from the bundle's weights; needs no package.

The layers and their order are those of `sctrt.model.autoencoder`, which the ONNX files were exported from. In bf16 most
layers multiply in bfloat16 (see Note [Rounded]), and nothing is stored in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import layers
from ..bundle import Architecture, Bundle
from ..errors import EngineError
from ..layers import Activation, Convolution
from . import NO_BF16, Part, check_arrays

GROUP_NORM_EPS = 1e-6
DTYPES = {"F16": np.float16, "F32": np.float32}  # of a bundle's weights
LARGEST_HEADER = 1 << 24  # bytes

Weights = dict[str, NDArray[np.float32]]


@dataclass
class Image:
    """Pixels [height, width, padded channels], sums of each channel for a normalisation, and whose memory it is."""

    pixels: NDArray[np.float32]
    sums: NDArray[np.float64]
    slot: int


@dataclass
class Program:
    """What is called, one after the other, for slices of one size; a slice is put into `inputs` first."""

    inputs: NDArray[np.float32]  # [height, width, channels]
    calls: list[Callable[[], object]]
    outputs: NDArray[np.float32]  # [height', width', padded channels]


class NativeEngine:
    """One half of the network. See Note [Slices at once]."""

    try:
        version = version_of("sctrt")
    except PackageNotFoundError:
        version = "0+checkout"

    def __init__(
        self, architecture: Architecture, part: Part, weights: Weights, *, bf16: bool = False, instructions: str = ""
    ) -> None:
        """`instructions`: see `layers`.

        Raises:
            KeyError: a weight is missing.
            ValueError: one has not the shape that the others or the architecture ask for.
        """
        _check_shapes(architecture, part, weights)
        self._a, self._part = architecture, part
        convolutions = _prepared(part, weights, len(architecture.multipliers) if bf16 else 0)
        self._another = partial(Worker, architecture, part, weights, convolutions, bf16, instructions)
        self._workers: list[Worker] = []
        self._pool: ThreadPoolExecutor | None = None

    def workspace(self, batch: int) -> int:
        return 0

    def __call__(
        self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], *, stream: int = 0, workspace: Any = None
    ) -> None:
        check_arrays(inputs, outputs)
        expected = self._output_shape(inputs.shape)
        if outputs.shape != expected:
            raise EngineError(f"expected outputs {expected} for inputs {inputs.shape}, got {outputs.shape}")
        threads, pixels = layers.threads(), max(prod(inputs.shape[2:]), prod(outputs.shape[2:]))
        at_once = max(1, min(len(inputs), threads // max(1, pixels // PIXELS_A_THREAD)))
        self._workers += [self._another() for _ in range(at_once - len(self._workers))]
        if at_once == 1:
            self._workers[0](inputs, outputs)
            return
        self._pool = self._pool or ThreadPoolExecutor(threads)
        parts = [slice(i, None, at_once) for i in range(at_once)]
        try:
            runs = [
                self._pool.submit(worker, inputs[part], outputs[part], threads // at_once)
                for worker, part in zip(self._workers, parts, strict=False)
            ]
            wait(runs)  # also if one of them fails: the arrays are the caller's
        except BaseException:  # an interrupt: they run on, in memory that no other call may have
            self._workers = []
            raise
        for run in runs:
            run.result()

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """
        Raises:
            EngineError: the network does not accept inputs of this shape.
        """
        n, channels, height, width = shape
        a, f = self._a, self._a.factor
        wanted, made = a.input_channels, a.code_dim
        if self._part == "decoder":
            wanted, made = a.code_dim, a.output_channels
        elif height % f or width % f:
            raise EngineError(f"expected slices whose height and width are multiples of {f}, got inputs {shape}")
        if channels != wanted:
            raise EngineError(f"expected inputs [N, {wanted}, H, W], got {shape}")
        return (n, made, height // f, width // f) if self._part == "encoder" else (n, made, height * f, width * f)


# Note [Slices at once]
# The layers of a small slice have too few rows to keep several threads busy, and each layer ends with the slowest of
# them. So small slices run at once, each on threads of its own, and only large ones one after the other on all threads.
PIXELS_A_THREAD = 18_000


class Worker:
    """Runs slices one after the other.

    Its calls are put together when the slices' size changes, and made again for every slice. The memory that they share
    grows to what the largest slice needs, and is kept.
    """

    def __init__(
        self,
        architecture: Architecture,
        part: Part,
        weights: Weights,
        convolutions: dict[str, Convolution],
        bf16: bool,
        instructions: str,
    ) -> None:
        self._a, self._part, self._weights, self._convolutions = architecture, part, weights, convolutions
        self._bf16, self._instructions = bf16, instructions
        self._memory: dict[int, NDArray[np.float32]] = {}
        self._calls: list[Callable[[], object]] = []
        self._program: Program | None = None

    def __call__(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], threads: int = 0) -> None:
        """Fills `outputs` [N, C', H', W'] from `inputs` [N, C, H, W]; on `threads` from now on, if that is given."""
        if threads:
            layers.use_threads(threads)
        _, channels, *size = inputs.shape
        if self._program is None or self._program.inputs.shape[:2] != tuple(size):
            self._program = self._put_together(np.empty((*size, channels), np.float32))
        program = self._program
        for given, made in zip(inputs, outputs, strict=True):
            program.inputs[:] = given.transpose(1, 2, 0)
            for call in program.calls:
                call()
            made[:] = program.outputs[..., : len(made)].transpose(2, 0, 1)

    def _put_together(self, inputs: NDArray[np.float32]) -> Program:
        self._program, self._calls = None, []
        outputs = (self._encode if self._part == "encoder" else self._decode)(inputs)
        return Program(inputs, self._calls, outputs)

    def _then(self, function: Callable[..., object], *arguments: Any, **options: Any) -> None:
        self._calls.append(partial(function, *arguments, **options))

    def _encode(self, slice_: NDArray[np.float32]) -> NDArray[np.float32]:
        """[height, width, input_channels] -> [height / f, width / f, padded code_dim]."""
        a = self._a
        x = self._convolve("encoder.conv_in", Image(slice_, np.empty(0), -1))
        for level in range(len(a.multipliers)):
            for block in range(a.blocks):
                x = self._block(f"encoder.down.{level}.block.{block}", x)
            if level < len(a.multipliers) - 1:
                x = self._convolve(f"encoder.down.{level}.downsample.conv", x)
        x = self._end("encoder", self._middle("encoder.mid", x))
        if a.adapter_channels is None:
            return x.pixels
        latent = np.empty((*x.pixels.shape[:2], a.code_dim), np.float32)  # for that memory is used again
        self._then(np.copyto, latent, x.pixels[..., : a.code_dim])
        x = self._middle("adapter.mid", self._convolve("adapter.conv_in", Image(latent, np.empty(0), -1)))
        self._then(np.add, latent, self._end("adapter", x).pixels[..., : a.code_dim], out=latent)
        return latent

    def _decode(self, code: NDArray[np.float32]) -> NDArray[np.float32]:
        """[h, w, code_dim] -> [h * f, w * f, padded output_channels]."""
        a = self._a
        weight, bias = self._weights["post_quant_conv.weight"], self._weights["post_quant_conv.bias"]
        latent = np.empty((*code.shape[:2], len(bias)), np.float32)
        self._then(np.matmul, code, weight[:, :, 0, 0].T, out=latent)
        self._then(np.add, latent, bias, out=latent)
        x = self._middle("decoder.mid", self._convolve("decoder.conv_in", Image(latent, np.empty(0), -1)))
        for level in reversed(range(len(a.multipliers))):
            for block in range(a.blocks + 1):
                x = self._block(f"decoder.up.{level}.block.{block}", x)
            if level > 0:
                x = self._convolve(f"decoder.up.{level}.upsample.conv", x, doubled=True)
        return self._end("decoder", x).pixels

    def _end(self, name: str, x: Image) -> Image:
        return self._convolve(f"{name}.conv_out", x, self._norm(f"{name}.norm_out", x))

    def _middle(self, name: str, x: Image) -> Image:
        x = self._block(f"{name}.block_1", x)
        return self._block(f"{name}.block_2", self._attention(f"{name}.attn_1", x))

    def _block(self, name: str, x: Image) -> Image:
        """The residual sum is written over x, or over its shortcut."""
        h = self._convolve(f"{name}.conv1", x, self._norm(f"{name}.norm1", x))
        if f"{name}.nin_shortcut" in self._convolutions:
            x = self._convolve(f"{name}.nin_shortcut", x, beside=h)
        return self._convolve(f"{name}.conv2", h, self._norm(f"{name}.norm2", h), onto=x)

    def _attention(self, name: str, x: Image) -> Image:
        """Written over x."""
        together = self._convolve(f"{name}.qkv", x, self._norm(f"{name}.norm", x, silu=False))
        height, width, channels = x.pixels.shape
        out = self._image((height, width, channels), x, together)
        panels = self._floats(-1, (layers.panel_floats(height * width, channels),))
        flat = together.pixels.reshape(height * width, -1)
        attended = out.pixels.reshape(height * width, -1)
        self._then(layers.attend, flat, panels, attended, bf16=self._bf16, instructions=self._instructions)
        return self._convolve(f"{name}.proj_out", out, onto=x)

    def _norm(self, name: str, x: Image, *, silu: bool = True) -> Activation:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        height, width, _ = x.pixels.shape
        out = np.empty((2, x.sums.shape[2]), np.float32)
        self._then(layers.group_norm, x.sums, height * width, weight, bias, self._a.groups, GROUP_NORM_EPS, out)
        scale, shift = out
        return Activation(scale, shift, silu)

    def _convolve(
        self,
        name: str,
        x: Image,
        activation: Activation | None = None,
        *,
        doubled: bool = False,
        onto: Image | None = None,
        beside: Image | None = None,
    ) -> Image:
        """A convolution of x, added to `onto` or in memory that neither x nor `beside` has."""
        layer = self._convolutions[name]
        height, width = (extent * (2 if doubled else 1) // layer.stride for extent in x.pixels.shape[:2])
        shape = (height, width, len(layer.bias))
        out = onto or self._image(shape, x, *([beside] if beside else []))
        sums = layers.sums_for(layer, height, width)
        self._then(
            layers.convolve,
            layer,
            x.pixels,
            out.pixels,
            activation=activation,
            doubled=doubled,
            accumulate=onto is not None,
            sums=sums,
            instructions=self._instructions,
        )
        return Image(out.pixels, sums, out.slot)

    def _image(self, shape: tuple[int, int, int], *live: Image) -> Image:
        """Memory that none of the live images has; what was there is lost, when the calls are made."""
        slot = min({0, 1, 2, 3} - {image.slot for image in live})
        return Image(self._floats(slot, shape), np.empty(0), slot)

    def _floats(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        count = prod(shape)
        if slot not in self._memory or self._memory[slot].size < count:
            self._memory[slot] = np.empty(count, np.float32)
        return self._memory[slot][:count].reshape(shape)


# Note [Rounded]
# What bfloat16 costs is mostly codes that flip. The encoder's convolutions at the latents' own size flip most of them,
# and would save least: they stay in float32, and so does what writes the decoder's output.
def _is_rounded(name: str, levels: int) -> bool:
    """Whether bf16 has this convolution multiply in bfloat16."""
    if name.startswith("decoder."):
        return name != "decoder.conv_out"
    return ".attn_" in name or name.startswith(tuple(f"encoder.down.{level}." for level in range(levels - 1)))


def _check_shapes(a: Architecture, part: Part, weights: Weights) -> None:
    """Refuses weights of another network than the manifest announces, as far as a run would not notice."""
    first, last = (a.channels * a.multipliers[level] for level in (0, -1))
    expected = {f"{part}.conv_in": (a.channels, a.input_channels), f"{part}.conv_out": (a.latent_channels, last)}
    levels, blocks = "down", a.blocks
    if part == "decoder":
        expected = {"decoder.conv_in": (last, a.latent_channels), "decoder.conv_out": (a.output_channels, first)}
        levels, blocks = "up", a.blocks + 1
    for level, multiplier in enumerate(a.multipliers):
        width = a.channels * multiplier
        expected |= {f"{part}.{levels}.{level}.block.{i}.conv2": (width, width) for i in range(blocks)}
    for name, shape in expected.items():
        found = weights[f"{name}.weight"].shape[:2]
        if found != shape:
            raise ValueError(f"expected {name}.weight of {shape} channels, got {found}")


def _prepared(part: Part, weights: Weights, rounded_levels: int) -> dict[str, Convolution]:
    """Every convolution of the half by its name; those of attention that are computed together as `qkv`.

    Args:
        part: the half.
        weights: of the bundle.
        rounded_levels: levels of resolution in bf16; 0 in fp32.
    """
    made = {}
    for name in (name.removesuffix(".weight") for name, value in weights.items() if value.ndim == 4):
        if not name.startswith((f"{part}.", "adapter." if part == "encoder" else part)):
            continue
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if name == "encoder.conv_out":  # with the 1x1 convolution behind it
            behind = weights["quant_conv.weight"][:, :, 0, 0].astype(np.float64)
            bias = behind @ bias + weights["quant_conv.bias"]
            weight = np.einsum("oi,ichw->ochw", behind, weight)
        if name.endswith((".q", ".k", ".v")):
            continue
        stride, pad = (2, 0) if name.endswith("downsample.conv") else (1, None)
        rounded = rounded_levels > 0 and _is_rounded(name, rounded_levels)
        first = name.endswith("conv_in")
        made[name] = layers.convolution(weight, bias, stride=stride, pad=pad, as_is=first, bf16=rounded)
        if name.endswith(".proj_out"):
            block = name.removesuffix(".proj_out")
            made[f"{block}.qkv"] = _queries_keys_values(block, weights, rounded)
    return made


def _queries_keys_values(name: str, weights: Weights, bf16: bool) -> Convolution:
    """One 1x1 convolution; the queries are scaled as `layers.attend` wants them."""
    channels = len(weights[f"{name}.q.weight"])
    step = layers.padded(channels)
    weight, bias = np.zeros((3 * step, channels, 1, 1)), np.zeros(3 * step)
    for i, (part, scale) in enumerate({"q": np.log2(np.e) / np.sqrt(channels), "k": 1, "v": 1}.items()):
        weight[i * step : i * step + channels] = weights[f"{name}.{part}.weight"] * scale
        bias[i * step : i * step + channels] = weights[f"{name}.{part}.bias"] * scale
    return layers.convolution(weight, bias, bf16=bf16)


def _read_weights(path: Path) -> Weights:
    """The content of a safetensors file as float32.

    Source: https://huggingface.co/docs/safetensors: 8 bytes of length, a JSON header, then the tensors.

    Raises:
        ValueError, KeyError, OSError, and others of JSON: it is none.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if length > LARGEST_HEADER:
        raise ValueError("it does not begin with the length of a header")
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            values = np.frombuffer(content[begin:end], DTYPES[tensor["dtype"]])
            found[name] = values.reshape(tensor["shape"]).astype(np.float32)
    return found


def load(bundle: Bundle, part: Part, precision: str, device: str) -> NativeEngine:
    """Prepares the weights of one half of the network."""
    bf16 = precision == "bf16"
    if bf16 and not layers.multiplies_bf16():
        raise EngineError(f"{NO_BF16}; use --runtime openvino")
    try:
        return NativeEngine(bundle.manifest.architecture, part, _read_weights(bundle.weights), bf16=bf16)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(
            f"{bundle.weights} does not hold the {part}'s weights: {reason}; export the bundle again"
        ) from error
