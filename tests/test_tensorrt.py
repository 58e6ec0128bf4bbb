"""The TensorRT file against a stand-in for the module (tests/stand_in_tensorrt.py), and against TensorRT-RTX itself as
far as that goes without a GPU: it builds. Calls are made with arrays that only pass for a GPU's."""

import enum
import importlib.metadata
import inspect
import re
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stand_in_tensorrt
from sctrt import engines
from sctrt.engines import cache, network, tensorrt
from sctrt.errors import EngineError, OutOfMemory

KINDS = ["tensorrt", "tensorrt11", "tensorrt_rtx"]
HEIGHT, WIDTH, MAX_BATCH = 32, 64, 3


@pytest.fixture(scope="session")
def onnx_of(tiny_bundle):
    """ONNX bytes of one half of the tiny bundle for 32 x 64 pixels."""

    def make(part, precision="fp32"):
        path = tiny_bundle.onnx(part)
        architecture = tiny_bundle.manifest.architecture
        keep = network.KEEP_FP32[precision]
        return network.fixed_network(path, part, architecture, HEIGHT, WIDTH, precision, keep_fp32=keep)

    return make


@pytest.fixture(params=KINDS)
def trt(request):
    return stand_in_tensorrt.make(request.param)


@pytest.fixture
def entry_of(tiny_bundle, onnx_of, tmp_path):
    """Builds half a network with a stand-in module and puts it into a folder."""

    def make(trt, part="encoder", precision="fp32"):
        targets = [trt.gpu.compute_capability] if trt.__name__ == "tensorrt_rtx" else []
        plan = tensorrt.build(trt, onnx_of(part, precision), max_batch=MAX_BATCH, targets=targets)
        fingerprint = cache.Fingerprint(
            bundle=tiny_bundle.fingerprint,
            model="tiny",
            part=part,
            runtime=trt.__name__.replace("_", "-"),
            version=trt.__version__,
            precision=precision,
            keep_fp32=network.KEEP_FP32[precision],
            height=HEIGHT,
            width=WIDTH,
            max_batch=MAX_BATCH,
            targets=(trt.gpu.compute_capability,),
            gpu=None if targets else trt.gpu.name,
            workspace_bytes=plan.workspace_bytes,
            plan_sha256=tensorrt.hashlib.sha256(plan.data).hexdigest(),
            build_seconds=0.1,
        )
        return cache.store(tmp_path, fingerprint, plan.data)

    return make


class Passes:
    """An array that passes for one on a GPU."""

    def __init__(self, host, **changes):
        self.host = host
        interface = {"shape": host.shape, "typestr": host.dtype.str, "data": (host.ctypes.data, False), "version": 3}
        contiguous = host.flags.c_contiguous
        self.__cuda_array_interface__ = {**interface, "strides": None if contiguous else host.strides, **changes}


def aligned(size):
    memory = np.empty(size + 512, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size]


def run(engine, part, batch, rng, stream=7):
    """Runs a batch; returns (inputs, outputs) on the host."""
    sizes = [(1, HEIGHT, WIDTH), (3, HEIGHT // 4, WIDTH // 4)]
    shapes = sizes if part == "encoder" else [sizes[1], sizes[0]]
    inputs = rng.uniform(-1, 1, (batch, *shapes[0])).astype(np.float32)
    outputs = np.full((batch, *shapes[1]), np.nan, np.float32)
    workspace = Passes(aligned(engine.workspace(batch)))
    engine(Passes(inputs), Passes(outputs), stream=stream, workspace=workspace)
    return inputs, outputs


def unaligned(memory):
    return Passes(np.frombuffer(memory, np.uint8)[1:])


# Running


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_engine_computes_what_the_cpu_does(trt, entry_of, tiny_bundle, part, rng):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt, part))
    oracle = engines.load(tiny_bundle, part, "onnxruntime")
    assert engine.version == trt.__version__ and engine.max_batch == MAX_BATCH
    for batch in (1, 3, 2, 3):
        inputs, outputs = run(engine, part, batch, rng)
        expected = np.empty_like(outputs)
        oracle(inputs, expected)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert trt.gpu.streams == [7] * 4


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precisions_take_and_give_float32(trt, entry_of, tiny_bundle, precision, rng):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt, "encoder", precision))
    inputs, outputs = run(engine, "encoder", 2, rng)
    expected = np.empty_like(outputs)
    engines.load(tiny_bundle, "encoder", "onnxruntime")(inputs, expected)
    np.testing.assert_allclose(outputs, expected, atol=0.05 * np.abs(expected).max())


def test_the_workspace_is_what_the_context_says_and_is_asked_once(trt, entry_of):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    sizes = [engine.workspace(batch) for batch in (1, 2, 3)]
    assert sizes == sorted(sizes) and all(size >= 1000 * batch for batch, size in enumerate(sizes, 1))
    trt.gpu.steps.clear()
    assert [engine.workspace(batch) for batch in (1, 2, 3)] == sizes
    assert trt.gpu.steps == []


def test_steps_that_are_done_already_are_not_repeated(trt, entry_of, rng):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    run(engine, "encoder", 2, rng)
    trt.gpu.steps.clear()
    run(engine, "encoder", 2, rng)
    assert trt.gpu.steps == ["address", "address", "execute"]


def unfit_calls():
    image, latent = np.zeros((2, 1, HEIGHT, WIDTH), np.float32), np.zeros((2, 3, 8, 16), np.float32)
    wide = np.zeros((2, 1, HEIGHT, 2 * WIDTH), np.float32)
    sizes = r"expected inputs \[1\.\.3, 1, 32, 64\], got "
    return {
        "more slices than the profile": (np.zeros((4, 1, HEIGHT, WIDTH), np.float32), latent, sizes + r"\(4, "),
        "another height": (np.zeros((2, 1, 36, WIDTH), np.float32), latent, sizes),
        "another width": (wide, latent, sizes),
        "channels": (np.zeros((2, 2, HEIGHT, WIDTH), np.float32), latent, sizes),
        "dimensions": (image[0], latent, r"expected inputs float32 \[N, C, H, W\]"),
        "no slice": (image[:0], latent, r"expected inputs float32"),
        "dtype": (image.astype(np.float16), latent, r"C-contiguous, got <f2"),
        "strided": (wide[..., ::2], latent, r"got <f4 \(2, 1, 32, 64\), strided"),
        "fewer outputs": (image, latent[:1], r"expected outputs \(2, 3, 8, 16\), got \(1, 3, 8, 16\)"),
        "outputs of another size": (image, np.zeros((2, 3, 8, 15), np.float32), r"expected outputs"),
        "double outputs": (image, latent.astype(np.float64), r"expected outputs float32"),
    }


@pytest.mark.parametrize("unfit", unfit_calls())
def test_unfit_arrays_are_refused_and_the_engine_goes_on(trt, entry_of, unfit, rng):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    inputs, outputs, message = unfit_calls()[unfit]
    with pytest.raises(EngineError, match=message):
        engine(Passes(inputs), Passes(outputs), workspace=Passes(aligned(1 << 16)))
    assert trt.gpu.streams == []
    assert np.isfinite(run(engine, "encoder", 2, rng)[1]).all()


def test_strides_are_no_reason_where_they_are_those_of_a_contiguous_array(trt, entry_of):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    image, latent = np.zeros((2, 1, HEIGHT, WIDTH), np.float32), np.zeros((2, 3, 8, 16), np.float32)
    engine(Passes(image, strides=image.strides), Passes(latent), workspace=Passes(aligned(engine.workspace(2))))


def test_host_arrays_and_lists_are_refused(trt, entry_of):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    with pytest.raises(EngineError, match=r"expected inputs on a GPU, got numpy.ndarray"):
        engine(np.zeros((1, 1, HEIGHT, WIDTH), np.float32), None)


def test_a_workspace_that_is_missing_small_or_unaligned_is_refused(trt, entry_of):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    arrays = Passes(np.zeros((2, 1, HEIGHT, WIDTH), np.float32)), Passes(np.zeros((2, 3, 8, 16), np.float32))
    needed = engine.workspace(2)
    for workspace in (None, Passes(aligned(needed - 1)), unaligned(aligned(needed + 1))):
        with pytest.raises(EngineError, match=rf"expected a workspace of {needed} bytes for 2 slices.*workspace\(2\)"):
            engine(*arrays, workspace=workspace)
    engine(*arrays, workspace=Passes(aligned(needed).view(np.float32)))  # the bytes count, not the elements


@given(batches=st.lists(st.integers(-1, MAX_BATCH + 2), min_size=1, max_size=8))
def test_any_order_of_batches(tiny_bundle, onnx_of, tmp_path_factory, batches):
    trt = stand_in_tensorrt.make("tensorrt_rtx")
    plan = tensorrt.build(trt, onnx_of("encoder"), max_batch=MAX_BATCH, targets=["8.6"])
    path = tmp_path_factory.mktemp("engines") / "e.json"
    entry = types.SimpleNamespace(plan=path, kernels=path.with_suffix(".kernels"), read_plan=lambda: plan.data)
    engine = tensorrt.TensorRtEngine(trt, entry)
    for batch in batches:
        if 1 <= batch <= MAX_BATCH:
            assert np.isfinite(run(engine, "encoder", batch, np.random.default_rng(0))[1]).all()
        else:
            with pytest.raises(EngineError, match="expected inputs"):
                engine.workspace(batch)


# Failures of the runtime


@pytest.mark.parametrize("step", ["deserialize", "context", "shape", "memory", "address", "execute"])
@pytest.mark.parametrize("reason", ["memory", "other"])
def test_a_failing_step_is_told_in_the_runtimes_words(trt, entry_of, step, reason, rng):
    entry = entry_of(trt)
    if reason == "memory":
        trt.gpu.run_out_of_memory(step, 4242)
    else:
        trt.gpu.fails[step] = "Error Code 10: Internal Error (the stars are wrong)"
    words = r"out of memory.*4242 bytes" if reason == "memory" else "the stars are wrong"
    with pytest.raises(OutOfMemory if reason == "memory" else EngineError, match=words):
        run(tensorrt.TensorRtEngine(trt, entry), "encoder", 1, rng)


@pytest.mark.parametrize("step", ["shape", "memory", "address", "execute"])
def test_after_a_failure_the_engine_is_as_good_as_before(trt, entry_of, step, rng):
    engine = tensorrt.TensorRtEngine(trt, entry_of(trt))
    run(engine, "encoder", 1, rng)
    trt.gpu.run_out_of_memory(step)
    with pytest.raises(OutOfMemory):
        run(engine, "encoder", 3, rng)
    trt.gpu.fails.clear()
    assert np.isfinite(run(engine, "encoder", 3, rng)[1]).all()
    trt.gpu.fails[step] = "something else"  # and old words are not told again
    with pytest.raises(EngineError, match=r": something else$"):
        run(engine, "encoder", 2, rng)


def test_a_silent_failure_is_told_too(trt, entry_of):
    trt.Runtime.deserialize_cuda_engine = lambda self, serialized_engine: None
    with pytest.raises(EngineError, match=r"does not take the engine.*it does not say why"):
        tensorrt.TensorRtEngine(trt, entry_of(trt))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_another_version_or_gpu_is_refused_by_the_runtime(kind, entry_of):
    entry = entry_of(stand_in_tensorrt.make(kind))
    with pytest.raises(EngineError, match=r"not compatible with this version.*got .*please rebuild"):
        tensorrt.TensorRtEngine(stand_in_tensorrt.make(kind, version="99.0"), entry)
    other = stand_in_tensorrt.Gpu("Other", "12.0")
    with pytest.raises(EngineError, match=r"incompatible device, expecting compute 12.0 got compute 8.6"):
        tensorrt.TensorRtEngine(stand_in_tensorrt.make(kind, gpu=other), entry)


def test_a_changed_byte_does_not_reach_the_runtime(trt, entry_of):
    entry = entry_of(trt)
    plan = bytearray(entry.plan.read_bytes())
    plan[-3] ^= 1
    entry.plan.write_bytes(plan)
    trt.gpu.steps.clear()
    with pytest.raises(EngineError, match="has changed since it was built"):
        tensorrt.TensorRtEngine(trt, entry)
    assert trt.gpu.steps == []


# What only TensorRT-RTX has


def test_rtx_keeps_the_kernels_that_it_made(entry_of, rng):
    trt = stand_in_tensorrt.make("tensorrt_rtx")
    entry = entry_of(trt)
    for made in (1, 1):  # the second start makes none
        engine = tensorrt.TensorRtEngine(trt, entry)
        run(engine, "encoder", 1, rng)
        assert trt.gpu.steps.count("make kernels") == made
        del engine
        assert entry.kernels.is_file()
    assert set(trt.gpu.graphs) == {stand_in_tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE}


@pytest.mark.parametrize("damage", ["other GPU", "changed byte", "empty", "short", "folder"])
def test_rtx_kernels_that_do_not_fit_are_made_anew(entry_of, rng, damage):
    trt = stand_in_tensorrt.make("tensorrt_rtx")
    entry = entry_of(trt)
    tensorrt.TensorRtEngine(trt, entry)
    content = entry.kernels.read_bytes()
    if damage == "other GPU":
        trt.gpu.name = "Other"
    elif damage == "folder":
        entry.kernels.unlink()
        entry.kernels.mkdir()
    else:
        changed = bytes([*content[:-1], content[-1] ^ 1])
        entry.kernels.write_bytes({"changed byte": changed, "empty": b"", "short": content[:20]}[damage])
    run(tensorrt.TensorRtEngine(trt, entry), "encoder", 1, rng)
    assert trt.gpu.steps.count("make kernels") == 2
    if damage not in ("other GPU", "folder"):
        assert entry.kernels.read_bytes() == content


# Building


def test_a_build_reports_workspace_and_progress(trt, onnx_of):
    seen = []
    targets = ["8.6", "12.0"] if trt.__name__ == "tensorrt_rtx" else []
    plan = tensorrt.build(trt, onnx_of("decoder"), max_batch=5, targets=targets, progress=seen.append)
    assert plan.workspace_bytes == 5000
    assert seen == sorted(seen) and seen[-1] == 100 and len(set(seen)) > 4
    flags = b'["REQUIRE_USER_ALLOCATION"]' if targets else b"[]"
    assert b'"tf32": false, "flags": ' + flags in plan.data


@pytest.mark.parametrize("kind", [*KINDS, "real"])
def test_an_interrupted_build_stops(kind, onnx_of):
    trt = pytest.importorskip("tensorrt_rtx") if kind == "real" else stand_in_tensorrt.make(kind)
    calls = []

    def stop(percent):
        calls.append(percent)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(
            trt, onnx_of("encoder"), max_batch=1, targets=["8.6"] if "rtx" in trt.__name__ else [], progress=stop
        )
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["tensorrt_rtx", "real"])
def test_unknown_compute_capabilities_are_refused(kind, onnx_of):
    trt = pytest.importorskip("tensorrt_rtx") if kind == "real" else stand_in_tensorrt.make(kind)
    for unknown in ("9.0", "86", "", "8.6 ", "CURRENT", "NONE", "99.9"):
        with pytest.raises(
            EngineError, match=r"expected compute capabilities of 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1,"
        ):
            tensorrt.build(trt, onnx_of("encoder"), max_batch=1, targets=["8.6", unknown])


def test_the_gpu_that_is_there_needs_no_name(onnx_of):
    trt = stand_in_tensorrt.make("tensorrt_rtx", gpu=stand_in_tensorrt.Gpu("H100", "9.0"))
    plan = tensorrt.build(trt, onnx_of("encoder"), max_batch=1, targets=["9.0"], here="9.0")
    assert b'"targets": ["9.0"]' in plan.data


def test_a_build_that_fails_says_why(trt, onnx_of):
    targets = ["8.6"] if trt.__name__ == "tensorrt_rtx" else []
    trt.gpu.run_out_of_memory("build")
    with pytest.raises(OutOfMemory, match=r"cannot build the network.*out of memory"):
        tensorrt.build(trt, onnx_of("encoder"), max_batch=1, targets=targets)
    trt.gpu.fails.clear()
    trt.gpu.present = False
    if not targets:
        with pytest.raises(EngineError, match="cannot build the network: CUDA initialization failure"):
            tensorrt.build(trt, onnx_of("encoder"), max_batch=1)


@pytest.mark.parametrize("kind", [*KINDS, "real"])
def test_what_is_no_network_is_refused(kind, tiny_bundle):
    trt = pytest.importorskip("tensorrt_rtx") if kind == "real" else stand_in_tensorrt.make(kind)
    for content in (b"junk", b"\xff" * 1000):
        with pytest.raises(EngineError, match="cannot read the network: "):
            tensorrt.build(trt, content, max_batch=1)
    for content in (b"", tiny_bundle.encoder_onnx.read_bytes()):
        with pytest.raises(EngineError, match=r"expected a network of one input \[N, C, H, W\] with C, H and W fixed"):
            tensorrt.build(trt, content, max_batch=1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_tensorrt_rtx_builds_without_a_gpu(part, precision, onnx_of):
    trt = pytest.importorskip("tensorrt_rtx")
    seen = []
    plan = tensorrt.build(trt, onnx_of(part, precision), max_batch=2, targets=["8.6", "12.0"], progress=seen.append)
    assert len(plan.data) > 1000 and plan.workspace_bytes > 0
    assert seen == sorted(seen) and seen[-1] == 100
    validity, _ = trt.Runtime(tensorrt._log(trt)).get_engine_validity(plan.data)
    assert validity in trt.EngineValidity.__members__.values()


def test_a_real_plan_without_a_gpu_is_refused_in_the_librarys_words(onnx_of, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    from sctrt import gpus

    if gpus.present():
        pytest.skip("there is a GPU")
    plan = tensorrt.build(trt, onnx_of("encoder"), max_batch=1, targets=["8.6"])
    entry = types.SimpleNamespace(plan=tmp_path / "e.plan", kernels=tmp_path / "e.kernels", read_plan=lambda: plan.data)
    with pytest.raises(EngineError, match=r"does not take the engine.*CUDA driver version is insufficient"):
        tensorrt.TensorRtEngine(trt, entry)


# The stand-in is like the real one


def public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def classes_of(kind):
    trt = stand_in_tensorrt.make(kind)
    return {name: thing for name, thing in vars(trt).items() if inspect.isclass(thing)}


def stubs(names):
    """Class -> member -> argument names of each overload, of TensorRT's type stubs."""
    try:
        files = importlib.metadata.files("tensorrt-stubs") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            "tensorrt-stubs is not installed; pip install --no-deps tensorrt-stubs (it asks for TensorRT itself)"
        )
    [path] = [file.locate() for file in files if file.name == "tensorrt.pyi"]
    blocks = re.split(r"^(?=class )", Path(path).read_text(), flags=re.MULTILINE)  # not all of it is valid Python
    classes = {}
    for name in names:
        [block] = [block for block in blocks if re.match(rf"class {name}\b", block)]
        members = classes[name] = {member: [] for member in re.findall(r"^    (?:class )?(\w+):", block, re.MULTILINE)}
        for member, text in re.findall(r"^    def (\w+)\(self(?:, )?(.*)\) ->", block, re.MULTILINE):
            members.setdefault(member, []).append(argument_names(text))
    return classes


def test_the_stand_in_has_tensorrt_10s_names_and_arguments():
    classes = classes_of("tensorrt")
    real = stubs(classes)
    for name, ours in classes.items():
        ours = ours.__bases__[0] if hasattr(ours, "trt") else ours
        if not issubclass(ours, enum.IntEnum):
            for member in public(ours) - OWN - RTX_ONLY:
                assert member in real[name], f"{name}.{member} is not TensorRT 10's"
                if inspect.isfunction(getattr(ours, member)):
                    assert list(inspect.signature(getattr(ours, member)).parameters)[1:] in real[name][member]
        else:
            assert set(ours.__members__) <= real[name].keys()


RTX_ONLY = {"num_compute_capabilities", "set_compute_capability"}
OWN = {"trt", "onnx", "shapes", "make_kernels", "strategy", "cache"}  # of the stand-in's inside


@pytest.mark.parametrize("name", sorted(classes_of("tensorrt_rtx")))
def test_the_stand_in_has_tensorrt_rtxs_names_and_arguments(name):
    real = getattr(pytest.importorskip("tensorrt_rtx"), name)
    ours = classes_of("tensorrt_rtx")[name]
    ours = ours.__bases__[0] if hasattr(ours, "trt") else ours
    for member in public(ours) - OWN:
        assert hasattr(real, member), f"{name}.{member} is not TensorRT-RTX's"
        if inspect.isfunction(getattr(ours, member)):
            arguments = list(inspect.signature(getattr(ours, member)).parameters)[1:]
            assert any(arguments == documented for documented in documented_arguments(getattr(real, member))), member


def documented_arguments(method):
    """The argument names of each overload, from pybind11's docstring."""
    for signature in re.findall(r"\w+\(self: [^,)]+(?:, )?(.*)\) -> ", method.__doc__):
        yield argument_names(signature)


def argument_names(signature):
    return re.findall(r"(\w+): ", re.sub(r"\[[^]]*\]|<[^>]*>", "", signature))


def test_the_enumerations_have_the_real_values():
    real = pytest.importorskip("tensorrt_rtx")
    for name in ("TensorIOMode", "ExecutionContextAllocationStrategy", "CudaGraphStrategy"):
        ours = {member.name: int(member) for member in getattr(stand_in_tensorrt, name)}
        assert ours == {key: int(value) for key, value in getattr(real, name).__members__.items()}
    assert set(stand_in_tensorrt.ComputeCapability.__members__) == set(real.ComputeCapability.__members__)
    severities = real.ILogger.Severity.__members__
    assert {s.name: int(s) for s in stand_in_tensorrt.ILogger.Severity} == {k: int(v) for k, v in severities.items()}
