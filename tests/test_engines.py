"""Every installed runtime through one Protocol: the same numbers, any slice size, the same refusals."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import sys
import time

import numpy as np
import pytest

from conftest import random_model
from sctrt import bundle as bundles
from sctrt import engines, layers
from sctrt.engines import native
from sctrt.errors import DeviceError, EngineError

RUNTIMES = [name for name in engines.RUNTIMES["cpu"] if engines.installed(name, "cpu")]
SIZES = [(1, 4, 8), (5, 40, 36), (2, 36, 44), (1, 28, 132)]  # slices, height, width


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request):
    return request.param


def run_encoder(engine, images, bundle):
    a = bundle.manifest.architecture
    n, _, height, width = images.shape
    latent = np.full((n, a.code_dim, height // a.factor, width // a.factor), np.nan, np.float32)
    engine(images, latent)
    return latent


def run_decoder(engine, codes, bundle):
    a = bundle.manifest.architecture
    n, _, height, width = codes.shape
    slices = np.full((n, a.output_channels, height * a.factor, width * a.factor), np.nan, np.float32)
    engine(codes, slices)
    return slices


@pytest.mark.parametrize("bundle_name", ["tiny_bundle", "scales_bundle"])
def test_every_runtime_equals_pytorch_at_any_size(runtime, bundle_name, request, rng):
    pytest.importorskip("torch")
    bundle = request.getfixturevalue(bundle_name)
    encoder, decoder = (engines.load(bundle, part, runtime) for part in ("encoder", "decoder"))
    their_encoder, their_decoder = (engines.load(bundle, part, "torch") for part in ("encoder", "decoder"))
    for n, height, width in SIZES:
        images = rng.uniform(-1, 1, (n, bundle.manifest.architecture.input_channels, height, width)).astype(np.float32)
        latent = run_encoder(encoder, images, bundle)
        np.testing.assert_allclose(latent, run_encoder(their_encoder, images, bundle), atol=2e-5)
        codes = rng.normal(size=latent.shape).astype(np.float32)
        slices = run_decoder(decoder, codes, bundle)
        np.testing.assert_allclose(slices, run_decoder(their_decoder, codes, bundle), atol=2e-5)


def test_a_call_keeps_its_inputs_and_is_repeatable(runtime, tiny_bundle, rng):
    engine = engines.load(tiny_bundle, "encoder", runtime)
    images = [rng.uniform(-1, 1, (2, 1, size, 16)).astype(np.float32) for size in (16, 24)]
    kept = [image.copy() for image in images]
    first = [run_encoder(engine, image, tiny_bundle) for image in images]
    first_kept = [latent.copy() for latent in first]
    second = [run_encoder(engine, image, tiny_bundle) for image in images]
    for i in range(2):
        np.testing.assert_array_equal(images[i], kept[i])
        np.testing.assert_array_equal(first[i], first_kept[i])  # a later call does not write into an earlier output
        np.testing.assert_array_equal(second[i], first[i])


def unfit_calls():
    """(inputs, outputs) that the encoder of one grey channel and 3 latent channels must refuse."""
    image, latent = np.zeros((2, 1, 16, 24), np.float32), np.zeros((2, 3, 4, 6), np.float32)
    return {
        "input channels": (np.zeros((2, 2, 16, 24), np.float32), latent),
        "input dimensions": (image[0], latent),
        "input dtype": (image.astype(np.float64), latent),
        "input strides": (np.zeros((2, 1, 16, 48), np.float32)[..., ::2], latent),
        "output slices, fewer": (image, latent[:1]),
        "output slices, more": (image, np.zeros((4, 3, 4, 6), np.float32)),
        "output slices, broadcast": (image[:1], latent),
        "output channels": (image, np.zeros((2, 4, 4, 6), np.float32)),
        "output height": (image, np.zeros((2, 3, 5, 6), np.float32)),
        "output width": (image, np.zeros((2, 3, 4, 5), np.float32)),
        "output dtype": (image, latent.astype(np.float64)),
        "output strides": (image, np.zeros((2, 3, 4, 12), np.float32)[..., ::2]),
        "no latent": (np.zeros((2, 1, 0, 24), np.float32), np.zeros((2, 3, 0, 6), np.float32)),
    }


@pytest.mark.parametrize("unfit", unfit_calls())
def test_unfit_arrays_are_refused(runtime, tiny_bundle, unfit):
    engine = engines.load(tiny_bundle, "encoder", runtime)
    inputs, outputs = unfit_calls()[unfit]
    with pytest.raises(EngineError, match=r"expected|failed"):
        engine(inputs, outputs)
    good = np.ones((2, 1, 16, 24), np.float32)  # and the engine is as good as before
    assert np.isfinite(run_encoder(engine, good, tiny_bundle)).all()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_damaged_network_is_refused(runtime, bundle_copy, part):
    for name in ("encoder.onnx", "decoder.onnx", "weights.safetensors"):
        (bundle_copy / name).write_bytes(b"not a network")
    manifest = bundles.Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    bundles.write_manifest(bundle_copy, manifest)
    with pytest.raises((EngineError, bundles.BundleError), match=r"copy\.sctrt"):
        engines.load(bundles.load(bundle_copy), part, runtime)


def test_versions_are_told(runtime, tiny_bundle):
    assert json.dumps(engines.load(tiny_bundle, "encoder", runtime).version).strip('"')[0].isdigit()


def test_bf16_is_near_fp32(runtime, tiny_bundle, rng):
    if runtime == "onnxruntime":
        with pytest.raises(EngineError, match=r"runs fp32 on a CPU, got precision 'bf16'; use --runtime openvino"):
            engines.load(tiny_bundle, "encoder", runtime, precision="bf16")
        return
    if runtime == "native" and not layers.multiplies_bf16():
        pytest.skip("this CPU has no AVX-512 BF16")
    images = rng.uniform(-1, 1, (2, 1, 32, 32)).astype(np.float32)
    exact = run_encoder(engines.load(tiny_bundle, "encoder", runtime), images, tiny_bundle)
    rough = run_encoder(engines.load(tiny_bundle, "encoder", runtime, precision="bf16"), images, tiny_bundle)
    assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["fp16", "int8", "", "FP32", None])
def test_an_unknown_precision_is_refused(tiny_bundle, precision):
    with pytest.raises(EngineError, match="expected precision fp32 or bf16 on cpu, got"):
        engines.load(tiny_bundle, "encoder", RUNTIMES[0], precision=precision)


# Our own kernels

ARCHITECTURES = {
    "channels in no block": {"channels": 24, "multipliers": (1, 3), "groups": 6},
    "one level": {"multipliers": (1,)},
    "two blocks": {"blocks": 2, "multipliers": (2, 1, 2)},
    "wide": {"channels": 40, "multipliers": (1, 2), "groups": 5},
    "other latents": {"latent_channels": 5, "code_dim": 4, "input_channels": 7, "output_channels": 1},
    "an adapter": {"adapter_channels": 12},
}


@pytest.mark.parametrize("instructions", layers.available())
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_native_network_is_the_architectures(name, instructions, rng):
    torch = pytest.importorskip("torch")
    model = random_model(3, **ARCHITECTURES[name])
    with torch.no_grad():
        for parameter in model.adapter.parameters():  # whose last ones begin as zeros
            parameter.normal_(std=0.1)
    a = model.architecture
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    encoder, decoder = (
        native.NativeEngine(a, part, weights, instructions=instructions) for part in ("encoder", "decoder")
    )
    for n, height, width in ((1, a.factor, a.factor), (2, 9 * a.factor, 5 * a.factor), (1, 8, 72)):
        images = rng.uniform(-1, 1, (n, a.input_channels, height, width)).astype(np.float32)
        latent = np.full((n, a.code_dim, height // a.factor, width // a.factor), np.nan, np.float32)
        encoder(images, latent)
        slices = np.full((n, a.output_channels, height, width), np.nan, np.float32)
        decoder(latent, slices)
        with torch.inference_mode():
            np.testing.assert_allclose(latent, model.encode(torch.from_numpy(images)), atol=2e-5)
            np.testing.assert_allclose(slices, model.decode(torch.from_numpy(latent)), atol=2e-5)


@pytest.fixture
def threads():
    """Sets the threads of the layers for one test."""
    before = layers.threads()
    yield layers.use_threads
    layers.use_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_native_batch_is_its_slices_one_by_one(tiny_bundle, rng, threads, count):
    """However many threads there are, and so slices at once."""
    threads(count)
    engine = engines.load(tiny_bundle, "encoder", "native")
    images = rng.uniform(-1, 1, (5, 1, 24, 20)).astype(np.float32)
    together = run_encoder(engine, images, tiny_bundle)
    alone = [run_encoder(engine, images[i : i + 1], tiny_bundle)[0] for i in (4, 3, 2, 1, 0)]
    np.testing.assert_array_equal(together, alone[::-1])
    assert layers.threads() == count


@pytest.mark.parametrize(
    ("slices", "pixels", "count", "shares"),
    [(4, 64, 1, [4]), (4, 64, 8, [1, 1, 1, 1]), (5, 64, 2, [3, 2]), (9, 256, 8, [3, 2, 2, 2]), (9, 1024, 8, [9])],
)
def test_small_native_slices_run_at_once(tiny_bundle, monkeypatch, threads, slices, pixels, count, shares):
    """Each worker on as many threads as the others; large slices one after the other on all."""
    monkeypatch.setattr(native, "PIXELS_A_THREAD", 128)
    used = []
    monkeypatch.setattr(
        native.Worker, "__call__", lambda _, inputs, outputs, share=0: used.append((len(inputs), share))
    )
    threads(count)
    engine = engines.load(tiny_bundle, "encoder", "native")
    run_encoder(engine, np.zeros((slices, 1, pixels // 8, 8), np.float32), tiny_bundle)
    assert sorted((n for n, _ in used), reverse=True) == shares
    assert {share for _, share in used} == {count // len(shares) if len(shares) > 1 else 0}


def test_a_slice_that_fails_is_said_when_all_have_ended(tiny_bundle, monkeypatch, threads):
    ended = []

    def run(worker, inputs, outputs, share):
        if not inputs[0].any():
            raise MemoryError("none left")
        time.sleep(0.1)
        ended.append(len(inputs))

    monkeypatch.setattr(native.Worker, "__call__", run)
    threads(2)
    images = np.ones((4, 1, 8, 8), np.float32)
    images[0] = 0
    with pytest.raises(MemoryError, match="none left"):
        run_encoder(engines.load(tiny_bundle, "encoder", "native"), images, tiny_bundle)
    assert ended == [2]


def test_workers_that_an_interrupt_left_running_are_not_used_again(tiny_bundle, monkeypatch, threads):
    """They go on with memory of their own, which the next call must not write."""

    def interrupt(_):
        raise KeyboardInterrupt

    used = []
    monkeypatch.setattr(native.Worker, "__call__", lambda worker, inputs, outputs, share: used.append(worker))
    threads(2)
    engine = engines.load(tiny_bundle, "encoder", "native")
    images = np.zeros((4, 1, 8, 8), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(native, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_encoder(engine, images, tiny_bundle)
    run_encoder(engine, images, tiny_bundle)
    run_encoder(engine, images, tiny_bundle)
    first, second, third = (set(used[i : i + 2]) for i in (0, 2, 4))
    assert not first & second and second == third


def test_a_layer_has_a_thread_at_least():
    with pytest.raises(ValueError, match="expected 1 thread or more, got 0"):
        layers.use_threads(0)


def test_a_native_engine_goes_from_size_to_size(tiny_bundle, rng):
    """Larger slices take other memory, smaller ones a part of it; what was made before does not show."""
    sizes = [(24, 20), (8, 8), (40, 36), (24, 20), (20, 24)]
    engine = engines.load(tiny_bundle, "encoder", "native")
    for height, width in sizes:
        images = rng.uniform(-1, 1, (2, 1, height, width)).astype(np.float32)
        fresh = engines.load(tiny_bundle, "encoder", "native")
        np.testing.assert_array_equal(run_encoder(engine, images, tiny_bundle), run_encoder(fresh, images, tiny_bundle))


def test_slices_that_do_not_fit_the_native_network_are_refused_with_what_would(tiny_bundle):
    engine = engines.load(tiny_bundle, "encoder", "native")
    outputs = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(EngineError, match=r"height and width are multiples of 4, got inputs \(1, 1, 16, 18\)"):
        engine(np.zeros((1, 1, 16, 18), np.float32), outputs)
    with pytest.raises(EngineError, match=r"expected inputs \[N, 1, H, W\], got \(1, 2, 16, 16\)"):
        engine(np.zeros((1, 2, 16, 16), np.float32), outputs)


def test_native_weights_that_are_not_all_there_are_named(bundle_copy):
    safetensors = pytest.importorskip("safetensors.numpy")
    kept = safetensors.load_file(bundle_copy / "weights.safetensors")
    del kept["decoder.mid.attn_1.k.weight"]
    safetensors.save_file(kept, bundle_copy / "weights.safetensors")
    manifest = bundles.Manifest.model_validate_json((bundle_copy / "manifest.json").read_bytes())
    bundles.write_manifest(bundle_copy, manifest)
    with pytest.raises(EngineError, match=r"safetensors does not hold the decoder's weights.*attn_1\.k\.weight"):
        engines.load(bundles.load(bundle_copy), "decoder", "native")


# The choice


def with_only(monkeypatch, *names):
    monkeypatch.setattr(engines, "installed", lambda runtime, device: runtime in names)


def test_the_first_that_is_installed_is_chosen(monkeypatch):
    first = "first of native, openvino, onnxruntime, torch that is installed"
    with_only(monkeypatch, "native", "openvino", "onnxruntime", "torch")
    assert engines.choose("auto", "cpu") == ("native", first)
    with_only(monkeypatch, "native", "torch")
    assert engines.choose("auto", "cpu", {"native": "is slow"}) == (
        "torch",
        f"{first} and fits (absent: openvino, onnxruntime); native: is slow",
    )
    assert engines.choose("torch", "cpu") == ("torch", "asked for")


def test_what_is_not_installed_is_named_with_its_pip_line(monkeypatch):
    with_only(monkeypatch)
    with pytest.raises(EngineError, match=r"no runtime is installed for cpu; pip install sctrt"):
        engines.choose("auto", "cpu")
    with pytest.raises(EngineError, match=r"onnxruntime is not installed; pip install 'sctrt\[onnxruntime\]'"):
        engines.choose("onnxruntime", "cpu")


def test_a_package_that_is_absent_is_not_installed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert not engines.installed("openvino", "cpu")
    stubs = importlib.machinery.ModuleSpec("openvino", None)  # a folder without __init__.py
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stubs)
    assert not engines.installed("openvino", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", found)
    assert engines.installed("openvino", "cpu")


def test_a_runtime_that_cannot_be_imported_is_an_engine_error(tiny_bundle, monkeypatch):
    monkeypatch.delitem(sys.modules, "sctrt.engines.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it now raises ImportError
    with pytest.raises(EngineError, match=r"onnxruntime cannot be imported.*pip install 'sctrt\[onnxruntime\]'"):
        engines.load(tiny_bundle, "encoder", "onnxruntime")


@pytest.mark.parametrize("runtime_name", ["tensorrt", "OpenVINO", "", "cpu"])
def test_an_unknown_runtime_is_refused(runtime_name):
    with pytest.raises(EngineError, match=r"expected runtime auto, native, openvino, onnxruntime, torch on cpu, got"):
        engines.choose(runtime_name, "cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cpu:1", "cpu:x", "tpu:0", "CPU", "cudax"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(DeviceError, match=r"expected device cpu or cuda\[:i\], got"):
        engines.choose("auto", device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_a_gpu_tensorrt_comes_first(monkeypatch, device):
    with_only(monkeypatch, "torch", "tensorrt-rtx", "openvino")
    assert engines.choose("auto", device) == (
        "tensorrt-rtx",
        "first of tensorrt, tensorrt-rtx, torch that is installed (absent: tensorrt)",
    )
    with pytest.raises(EngineError, match=r"tensorrt is not installed; pip install 'sctrt\[tensorrt\]'"):
        engines.choose("tensorrt", device)
    with pytest.raises(
        EngineError, match="expected runtime auto, tensorrt, tensorrt-rtx, torch on cuda, got 'openvino'"
    ):
        engines.choose("openvino", device)


@pytest.mark.parametrize("there", [True, False])
def test_a_precision_that_a_runtime_lacks_makes_it_unfit(monkeypatch, tiny_bundle, there):
    monkeypatch.setattr(layers, "multiplies_bf16", lambda: there)
    assert engines.unfit_for("cpu", "fp32") == engines.unfit_for("cuda:1", "bf16") == {}
    assert engines.unfit_for("cpu", "bf16").keys() == ({"onnxruntime"} if there else {"native", "onnxruntime"})
    if not there:
        with pytest.raises(EngineError, match="bf16 only where the CPU has AVX-512 BF16; use --runtime openvino"):
            engines.load(tiny_bundle, "encoder", "native", precision="bf16")


def test_the_default_precision_is_that_of_the_device():
    assert [engines.default_precision(device) for device in ("cpu", "cuda", "cuda:1")] == ["fp32", "fp16", "fp16"]


def test_a_cpu_takes_slices_as_they_are_and_needs_no_workspace(runtime, tiny_bundle):
    assert engines.slice_size(tiny_bundle, runtime, 36, 44, device="cpu", precision="fp32") == (36, 44)
    assert engines.load(tiny_bundle, "encoder", runtime).workspace(4) == 0


def test_for_auto_a_runtime_that_does_not_fit_is_passed_over_and_named(monkeypatch):
    with_only(monkeypatch, "tensorrt-rtx", "torch")
    name, reason = engines.choose("auto", "cuda", {"tensorrt-rtx": "no engine is built"})
    assert name == "torch"
    assert reason == (
        "first of tensorrt, tensorrt-rtx, torch that is installed and fits (absent: tensorrt); "
        "tensorrt-rtx: no engine is built"
    )
    with pytest.raises(EngineError, match="no runtime is installed for cuda"):
        engines.choose("auto", "cuda", {"tensorrt-rtx": "", "torch": ""})


@pytest.mark.parametrize("changes", [{"blocks": 2}, {"channels": 64}, {"multipliers": (1, 3)}])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_of_another_network_than_is_announced_are_refused(tiny_bundle, part, changes):
    manifest = tiny_bundle.manifest
    other = manifest.architecture.model_copy(update=changes)
    assert other != manifest.architecture
    announced = dataclasses.replace(tiny_bundle, manifest=manifest.model_copy(update={"architecture": other}))
    with pytest.raises(EngineError, match=f"does not hold the {part}'s weights"):
        engines.load(announced, part, "native")
