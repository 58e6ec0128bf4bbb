"""The ONNX file that an engine is built from: one half of the network at one slice size and precision.

It knows the layers of `sctrt.model.export`'s files; not bundles, runtimes or devices. Height and width are fixed, the
batch is free: with free sizes TensorRT splits group normalisation in three and its reported memory is no ceiling. The
types are all written out (strong typing): inputs and outputs are float32, and what lies between is of the precision
asked for, but for the kinds of layers in `keep_fp32`. Attention over all pixels is split into chunks of queries, which
is exact and bounds its memory.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..bundle import Architecture
from ..errors import EngineError
from . import Part
from .memory import BYTES, attention_chunks

# Group normalisation with its SiLU; attention's scores and sums; the encoder's last normalisation and convolutions,
# which make what the quantiser sees; the decoder's last convolution; all else.
LayerKind = Literal["norm", "attention", "quantiser", "conv_out", "other"]
# By measurement (benchmarks/results/precision.json): the quantiser's input in float32 more than halves the codes that
# flip in fp16; all the others together gain 0.2 HU more, at up to twice the memory traffic.
KEEP_FP32: dict[str, tuple[LayerKind, ...]] = {"fp32": (), "fp16": ("quantiser",), "bf16": ("quantiser",)}
TYPES: dict[str, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
SIZES: dict[int, int] = {dtype: BYTES[precision] for precision, dtype in TYPES.items()}
SIZES_ONLY = {"Shape", "Squeeze", "Slice", "Concat", "Div", "Reshape"}  # how free sizes and attention are traced


def fixed_network(
    path: Path,
    part: Part,
    architecture: Architecture,
    height: int,
    width: int,
    precision: str,
    *,
    keep_fp32: Collection[LayerKind] | None = None,
) -> bytes:
    """Rewrites an exported encoder or decoder for slices of one size.

    Args:
        path: encoder.onnx or decoder.onnx of a bundle.
        part: which of them.
        height: of the slices in pixels, a multiple of the network's factor; also for the decoder, whose input is
            smaller by that factor.
        width: likewise.
        precision: "fp32", "fp16" or "bf16".
        keep_fp32: kinds of layers that compute in float32 whatever the precision; by default those of `KEEP_FP32`.

    Returns:
        The serialised ONNX model: float32 [batch, channels, height, width] in and out.

    Raises:
        EngineError: the size does not fit the network, or the file holds another kind of network.
    """
    factor = architecture.factor
    if height % factor or width % factor or min(height, width) < factor:
        raise EngineError(f"expected a height and width that are multiples of {factor}, got {height} x {width}")
    if precision not in TYPES:
        raise EngineError(f"expected precision {', '.join(TYPES)}, got {precision!r}")
    kept = frozenset(KEEP_FP32[precision] if keep_fp32 is None else keep_fp32)
    if unknown := kept - set(get_args(LayerKind)):
        raise EngineError(f"expected layers of {', '.join(get_args(LayerKind))} in float32, got {', '.join(unknown)}")
    try:
        source = onnx.load(path)
    except Exception as error:  # protobuf's own classes share no public base
        raise EngineError(f"{path} cannot be read as ONNX: {error}; export the bundle again") from error
    latent = (height // factor, width // factor)
    return _Writer(source, path, TYPES[precision], kept).write(part, (height, width), latent)


class _Writer:
    """Copies the graph node by node into one of fixed sizes and explicit types."""

    def __init__(self, source: onnx.ModelProto, path: Path, dtype: int, keep_fp32: frozenset[LayerKind]) -> None:
        self.graph, self.path, self.dtype, self.keep_fp32 = source.graph, path, dtype, keep_fp32
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.types: dict[str, int] = {}  # of the values made so far
        self.kinds: dict[str, LayerKind] = {}  # of the layers that made them
        self.weights = _weights(source.graph)

    def write(self, part: Part, pixels: tuple[int, int], latent: tuple[int, int]) -> bytes:
        given, wanted = self.graph.input[0], self.graph.output[0]
        sizes = {"encoder": (pixels, latent), "decoder": (latent, pixels)}[part]
        self.types[given.name] = TensorProto.FLOAT
        for node in self.graph.node:
            if self._is_attention(node):
                self._attention(node, latent)
            elif self._is_layer(node):
                self._copy(node)
        if wanted.name not in self.types:
            raise EngineError(f"{self.path} is no {part} of sctrt's: its output is not made by layers that are known")
        self._finish(wanted.name)
        inputs, outputs = (
            helper.make_tensor_value_info(v.name, TensorProto.FLOAT, ["batch", _channels(v), *size])
            for v, size in zip((given, wanted), sizes, strict=True)
        )
        graph = helper.make_graph(self.nodes, part, [inputs], [outputs], list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether it computes on images that are known already; not on weights, sizes or inside attention."""
        return node.op_type not in SIZES_ONLY and bool(node.input) and node.input[0] in self.types

    def _is_attention(self, node: onnx.NodeProto) -> bool:
        """Whether it is the projection that ends an attention block: all before it is written with it."""
        return node.op_type == "Conv" and node.input[1].endswith(".attn_1.proj_out.weight")

    def _copy(self, node: onnx.NodeProto) -> None:
        kind = _kind(node)
        if kind is None:
            raise EngineError(f"{self.path} holds a layer {node.op_type} that sctrt does not export")
        if node.op_type in ("Sigmoid", "Mul"):  # a SiLU is of what it follows
            kind = self.kinds[node.input[0]]
        dtype = TensorProto.FLOAT if kind in self.keep_fp32 else self.dtype
        fixed = node.op_type == "Resize"  # its scales are float32 whatever the values are
        inputs = [self._value(name, TensorProto.FLOAT if fixed and i else dtype) for i, name in enumerate(node.input)]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        self.nodes.append(copy)
        self.types[node.output[0]], self.kinds[node.output[0]] = dtype, kind

    def _attention(self, projection: onnx.NodeProto, latent: tuple[int, int]) -> None:
        """softmax(q k / sqrt(C)) v over all positions, the queries in chunks; then the projection."""
        block = projection.input[1].removesuffix("proj_out.weight")
        q, k, v = (self._output_of(f"{block}{name}.weight") for name in "qkv")
        dtype = TensorProto.FLOAT if "attention" in self.keep_fp32 else self.dtype
        channels, positions = self.weights[f"{block}q.weight"].shape[0], latent[0] * latent[1]
        flat = self._constant(f"{block}flat", np.array([0, channels, positions]))
        scale = self._typed(f"{block}scale", np.array(channels**-0.25, np.float32), dtype)

        def node(op: str, name: str, *inputs: str, **attributes: Any) -> str:
            self.nodes.append(helper.make_node(op, list(inputs), [f"{block}{name}"], f"{block}{name}", **attributes))
            return f"{block}{name}"

        q, k, v = (self._value(value, dtype) for value in (q, k, v))
        rows = node(
            "Transpose", "q.rows", node("Reshape", "q.flat", node("Mul", "q.scaled", q, scale), flat), perm=[0, 2, 1]
        )
        keys = node("Reshape", "k.flat", node("Mul", "k.scaled", k, scale), flat)
        values = node("Transpose", "v.rows", node("Reshape", "v.flat", v, flat), perm=[0, 2, 1])
        chunks = attention_chunks(positions, SIZES[dtype])
        parts = [f"{block}q.{i}" for i in range(chunks)]
        sizes = [len(part) for part in np.array_split(np.arange(positions), chunks)]
        if chunks == 1:
            parts = [rows]
        else:
            split = self._constant(f"{block}split", np.array(sizes))
            self.nodes.append(helper.make_node("Split", [rows, split], parts, f"{block}split", axis=1))
        attended = [
            node(
                "MatMul",
                f"out.{i}",
                node("Softmax", f"weights.{i}", node("MatMul", f"scores.{i}", part, keys), axis=-1),
                values,
            )
            for i, part in enumerate(parts)
        ]
        joined = attended[0] if chunks == 1 else node("Concat", "joined", *attended, axis=1)
        shape = self._constant(f"{block}shape", np.array([0, channels, *latent]))
        image = node("Reshape", "image", node("Transpose", "columns", joined, perm=[0, 2, 1]), shape)
        self.types[image] = dtype
        end = onnx.NodeProto()
        end.CopyFrom(projection)
        end.input[0] = image
        self._copy(end)

    def _output_of(self, weight: str) -> str:
        found = [node.output[0] for node in self.graph.node if weight in node.input]
        if len(found) != 1 or found[0] not in self.types:
            raise EngineError(f"{self.path} lacks the attention layer {weight!r}; export the bundle again")
        return found[0]

    def _value(self, name: str, dtype: int) -> str:
        """The name of a value or weight in a type, cast where it is of another."""
        if not name:
            return ""
        if name in self.weights:
            return self._typed(name, self.weights[name], dtype)
        if name not in self.types:
            raise EngineError(f"{self.path} holds a layer that needs {name!r}, which is not known when it is reached")
        if self.types[name] == dtype:
            return name
        cast = f"{name}.{TensorProto.DataType.Name(dtype).lower()}"
        if cast not in self.types:
            self.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=dtype))
            self.types[cast] = dtype
        return cast

    def _typed(self, name: str, values: NDArray[np.float32], dtype: int) -> str:
        typed = f"{name}.{TensorProto.DataType.Name(dtype).lower()}"
        return self._constant(typed, values.astype(helper.tensor_dtype_to_np_dtype(dtype)))

    def _constant(self, name: str, values: NDArray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def _finish(self, output: str) -> None:
        """Makes the output float32 under its own name."""
        if self.types[output] == TensorProto.FLOAT:
            return
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = f"{output}.typed" if name == output else name
        self.nodes.append(
            helper.make_node("Cast", [f"{output}.typed"], [output], f"{output}.float", to=TensorProto.FLOAT)
        )


def _weights(graph: onnx.GraphProto) -> dict[str, NDArray]:
    """All constants by name, those that are stored in fp16 and cast when loaded as the float32 they are cast to."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
    return values


def _kind(node: onnx.NodeProto) -> LayerKind | None:
    match node.op_type:
        case "Conv":
            return _kind_of_convolution(node.input[1])
        case "GroupNormalization":
            return "quantiser" if node.input[1].startswith(("encoder.norm_out", "adapter.norm_out")) else "norm"
        case "Sigmoid" | "Mul" | "Add" | "Resize":
            return "other"
    return None


def _kind_of_convolution(weight: str) -> LayerKind:
    if weight.startswith(("encoder.conv_out", "quant_conv", "adapter.conv_out")):
        return "quantiser"
    if weight.startswith("decoder.conv_out"):
        return "conv_out"
    return "other"


def _channels(value: onnx.ValueInfoProto) -> int:
    return value.type.tensor_type.shape.dim[1].dim_value
