"""The ONNX file an engine is built from: the bundle's numbers, fixed sizes, the types that were asked for."""

import numpy as np
import pytest

from sctrt.engines.memory import CHUNK_SCORES, LEAST_CHUNKS
from sctrt.errors import EngineError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from sctrt.engines import network as networks  # noqa: E402
from sctrt.engines.network import KEEP_FP32, fixed_network  # noqa: E402

FLOAT, HALF = onnx.TensorProto.FLOAT, {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
PARTS = ("encoder", "decoder")


def make(bundle, part, height=24, width=16, precision="fp32", **options):
    return fixed_network(bundle.onnx(part), part, bundle.manifest.architecture, height, width, precision, **options)


def run(model, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def inputs(bundle, part, height, width, n=2):
    a, rng = bundle.manifest.architecture, np.random.default_rng(3)
    if part == "encoder":
        return rng.uniform(-1, 1, (n, a.input_channels, height, width)).astype(np.float32)
    return rng.normal(size=(n, a.code_dim, height // a.factor, width // a.factor)).astype(np.float32)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bundle_name", ["tiny_bundle", "scales_bundle"])
@pytest.mark.parametrize("chunks", [1, 3, 7])
@pytest.mark.parametrize("size", [(4, 4), (24, 16), (36, 44)])
def test_fp32_is_the_same_network(part, bundle_name, chunks, size, request, monkeypatch):
    bundle = request.getfixturevalue(bundle_name)
    positions = size[0] * size[1] // 16
    monkeypatch.setattr(networks, "attention_chunks", lambda *_: min(chunks, positions))
    images = inputs(bundle, part, *size)
    expected = run(str(bundle.onnx(part)), images)
    np.testing.assert_allclose(run(make(bundle, part, *size), images), expected, atol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_fp16_is_near_and_fp32_layers_make_it_nearer(part, tiny_bundle):
    images = inputs(tiny_bundle, part, 32, 32)
    expected = run(str(tiny_bundle.onnx(part)), images)
    kinds = ("norm", "attention", "quantiser", "conv_out", "other")
    errors = [
        np.abs(run(make(tiny_bundle, part, 32, 32, "fp16", keep_fp32=kinds[:n]), images) - expected).max()
        for n in (0, 5)
    ]
    assert 1e-5 < errors[0] < 1e-2 * np.abs(expected).max()
    assert errors[1] < 1e-5


def typed(model):
    """The graph and every value's type: that of a layer's first input, but of a Cast, and equal in all its inputs."""
    graph = onnx.load_from_string(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    types |= {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        sizes = {"Resize": 1, "Reshape": 1, "Split": 1}.get(node.op_type)  # the inputs after these are no images
        assert len({types[name] for name in node.input[:sizes] if name}) == 1, node
        kind = onnx.helper.get_attribute_value(node.attribute[0]) if node.op_type == "Cast" else types[node.input[0]]
        types |= dict.fromkeys(node.output, kind)
    return graph, types


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_are_those_asked_for(part, precision, tiny_bundle):
    for kept in ((), ("norm",), ("attention",), KEEP_FP32[precision]):
        graph, types = typed(make(tiny_bundle, part, precision=precision, keep_fp32=kept))
        assert types[graph.input[0].name] == types[graph.output[0].name] == FLOAT
        for node in graph.node:
            wanted = HALF[precision]
            if node.op_type == "Softmax" and "attention" in kept:
                wanted = FLOAT
            if node.op_type == "GroupNormalization":
                last = "norm_out" in node.input[1] and part == "encoder"
                wanted = FLOAT if ("quantiser" if last else "norm") in kept else wanted
            elif node.op_type == "Conv" and node.input[1].startswith(("encoder.conv_out", "quant_conv")):
                wanted = FLOAT if "quantiser" in kept else wanted
            elif node.op_type not in ("Conv", "Softmax"):
                continue
            assert {types[name] for name in (*node.input, *node.output) if name} == {wanted}, node


@pytest.mark.parametrize("part", PARTS)
def test_sizes_are_fixed_and_the_batch_is_free(part, tiny_bundle):
    graph, _ = typed(make(tiny_bundle, part, 24, 16, "fp16"))
    for value in (*graph.input, *graph.output):
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param and not batch.dim_value
        assert all(dim.dim_value for dim in rest)
    for n in (1, 3):
        assert len(run(make(tiny_bundle, part, 24, 16), inputs(tiny_bundle, part, 24, 16, n))) == n


def test_large_attention_is_chunked(tiny_bundle):
    graph, _ = typed(make(tiny_bundle, "encoder", 400, 704, "fp16"))
    (split,) = (node for node in graph.node if node.op_type == "Split")
    (sizes,) = (onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == split.input[1])
    assert sizes.sum() == 100 * 176 and len(sizes) == len(split.output) >= LEAST_CHUNKS
    assert sizes.max() * 100 * 176 * 2 <= CHUNK_SCORES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 22}, "multiples of 4, got 22 x 16"),
        ({"width": 0}, "multiples of 4, got 24 x 0"),
        ({"precision": "int8"}, "expected precision fp32, fp16, bf16, got 'int8'"),
        ({"keep_fp32": ("softmax",)}, "expected layers of norm, .* got softmax"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tiny_bundle):
    with pytest.raises(EngineError, match=message):
        make(tiny_bundle, "encoder", **options)


def test_other_files_are_refused(tiny_bundle, tmp_path):
    a = tiny_bundle.manifest.architecture
    garbage = tmp_path / "encoder.onnx"
    garbage.write_bytes(b"not a network")
    with pytest.raises(EngineError, match="cannot be read as ONNX"):
        fixed_network(garbage, "encoder", a, 24, 16, "fp32")
    value = onnx.helper.make_tensor_value_info("image", FLOAT, ["n", 1, "h", "w"])
    out = onnx.helper.make_tensor_value_info("latent", FLOAT, ["n", 1, "h", "w"])
    tanh = onnx.helper.make_node("Tanh", ["image"], ["latent"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([tanh], "g", [value], [out])), garbage)
    with pytest.raises(EngineError, match="a layer Tanh that sctrt does not export"):
        fixed_network(garbage, "encoder", a, 24, 16, "fp32")
