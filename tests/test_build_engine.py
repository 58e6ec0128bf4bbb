"""Engines built for a bundle and compared with a CPU runtime: by TensorRT-RTX itself as far as that goes without a GPU,
and by a stand-in (tests/stand_in_tensorrt.py) on a GPU that is the CPU (tests/shim.py)."""

import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stand_in_tensorrt
from sctrt import bundle as bundles
from sctrt import engines, gpus, ops, plan
from sctrt.engines import build, cache, network, tensorrt, verify
from sctrt.errors import DeviceError, EngineError, OutOfMemory

CARD = gpus.Card("Stand-in RTX 3060", "8.6", 12_000_000_000)
SIZES = {(32, 64): 3, (64, 64): 3}


@pytest.fixture
def card(monkeypatch):
    """A machine with one GPU, as far as the driver is asked."""
    monkeypatch.setattr(gpus, "present", lambda: (CARD,))
    return CARD


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(gpus, "present", lambda: ())


@pytest.fixture(params=["tensorrt", "tensorrt11", "tensorrt_rtx"])
def trt(request, monkeypatch):
    """A stand-in that is installed."""
    return install(monkeypatch, stand_in_tensorrt.make(request.param))


@pytest.fixture
def rtx(monkeypatch):
    return install(monkeypatch, stand_in_tensorrt.make("tensorrt_rtx"))


def install(monkeypatch, trt):
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    return trt


def runtime_of(trt):
    return trt.__name__.replace("_", "-")


def fingerprints(folder):
    return [entry.fingerprint for entry in cache.entries(folder)[0]]


# Sizes


def test_an_adults_body_box_is_in_voxels():
    assert plan.adult_shape(4.0) == (475, 80, 140)
    assert plan.adult_shape(1.5) == (1267, 214, 374)


@given(st.tuples(*(st.integers(1, 900) for _ in range(3))))
def test_each_planes_slices_are_held_by_a_size(tiny_bundle, shape):
    sizes = plan.plan_for(tiny_bundle, shape, "fp16").engines()
    z, y, x = shape
    for height, width in ((y, x), (z, x), (z, y)):
        assert any(0 <= h - height < 32 and 0 <= w - width < 32 for h, w in sizes)
    assert len(sizes) <= 3 and min(sizes.values()) >= 1
    assert all(n % 32 == 0 for size in sizes for n in size)


def test_a_cube_needs_one_size(tiny_bundle):
    assert plan.plan_for(tiny_bundle, (256, 250, 230), "fp16").engines().keys() == {(256, 256)}


def test_on_a_small_card_tiles_are_built(tiny_bundle):
    ample, short = (plan.plan_for(tiny_bundle, (2000, 1500, 1500), "fp32", budget) for budget in (None, 620_000_000))
    assert (256, 256) in short.engines() and (256, 256) not in ample.engines()


# Building


def test_both_halves_are_built_for_each_size_once(trt, card, tiny_bundle, tmp_path):
    order = {"engine_dir": tmp_path}
    first = build.build_engines(tiny_bundle, runtime_of(trt), "fp16", SIZES, **order)
    assert [built.fresh for built in first] == [True] * 4
    for has in fingerprints(tmp_path):
        assert has.bundle == tiny_bundle.fingerprint and has.runtime == runtime_of(trt)
        assert has.version == trt.__version__ and has.max_batch == 3 and has.workspace_bytes == 3000
        assert has.targets == ("8.6",) and has.gpu == (None if "rtx" in trt.__name__ else CARD.name)
        assert has.precision == "fp16" and has.keep_fp32 == build.KEEP_FP32["fp16"] and has.verified is None
    trt.gpu.steps.clear()
    again = build.build_engines(tiny_bundle, runtime_of(trt), "fp16", SIZES, **order)
    assert [built.entry for built in again] == [built.entry for built in first]
    assert not any(built.fresh for built in again) and trt.gpu.steps == []


@pytest.mark.parametrize(
    "other", ["batch", "precision", "size", "version", "bundle", "targets", "changed byte", "no plan"]
)
def test_what_does_not_fit_is_built_anew(rtx, card, tiny_bundle, scales_bundle, tmp_path, other, monkeypatch):
    order = {"engine_dir": tmp_path}
    built = build.build_engines(tiny_bundle, "tensorrt-rtx", "fp32", {(32, 32): 2}, **order)
    bundle, precision, size, batch = tiny_bundle, "fp32", (32, 32), 2
    if other == "batch":
        batch = 3
    elif other == "precision":
        precision = "fp16"
    elif other == "size":
        size = (32, 64)
    elif other == "version":
        monkeypatch.setattr(rtx, "__version__", "1.8")
    elif other == "bundle":
        bundle = scales_bundle
    elif other == "targets":
        order["targets"] = ["8.6", "8.9"]
    else:
        for one in built:
            one.entry.plan.write_bytes(b"changed") if other == "changed byte" else one.entry.plan.unlink()
    again = build.build_engines(bundle, "tensorrt-rtx", precision, {size: batch}, **order)
    assert all(one.fresh and one.entry.read_plan() for one in again)


def test_a_broken_engine_does_not_stand_before_a_whole_one(rtx, card, tiny_bundle, tmp_path):
    """The one for more slices would be taken first: after building again, what is taken is whole."""
    order = {"engine_dir": tmp_path}
    for batch in (2, 8):
        built = build.build_engines(tiny_bundle, "tensorrt-rtx", "fp32", {(32, 32): batch}, **order)
    for one in built:
        one.entry.plan.write_bytes(b"changed")
    with pytest.raises(EngineError, match="Build it anew with"):
        tensorrt.load(tiny_bundle, "encoder", "tensorrt-rtx", "fp32", (32, 32), tmp_path, gpus.card("cuda"))
    build.build_engines(tiny_bundle, "tensorrt-rtx", "fp32", {(32, 32): 2}, **order)
    assert all(entry.read_plan() for entry in cache.entries(tmp_path)[0]) and len(cache.entries(tmp_path)[0]) == 2


def test_fewer_slices_and_targets_are_there_already(rtx, no_card, tiny_bundle, tmp_path):
    build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {(32, 32): 4}, engine_dir=tmp_path)
    assert fingerprints(tmp_path)[0].targets == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    again = build.build_engines(
        tiny_bundle, "tensorrt-rtx", "fp16", {(32, 32): 2}, targets=["8.9"], engine_dir=tmp_path
    )
    assert not any(built.fresh for built in again)


def test_a_gpu_that_rtx_has_no_name_for_is_tried(rtx, monkeypatch, tiny_bundle, tmp_path):
    rtx.gpu.compute_capability = "9.0"
    monkeypatch.setattr(gpus, "present", lambda: (gpus.Card("H100", "9.0", 80_000_000_000),))
    build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {(32, 32): 1}, engine_dir=tmp_path)
    assert fingerprints(tmp_path)[0].targets == ("9.0",)


def test_tensorrt_needs_the_gpu(monkeypatch, no_card, tiny_bundle, tmp_path):
    install(monkeypatch, stand_in_tensorrt.make("tensorrt"))
    with pytest.raises(DeviceError, match="no GPU is here; build on that machine, or use --runtime tensorrt-rtx"):
        build.build_engines(tiny_bundle, "tensorrt", "fp16", {(32, 32): 1}, engine_dir=tmp_path)


def test_a_build_says_what_it_does(rtx, card, tiny_bundle, tmp_path):
    said, seen = [], []
    for _ in range(2):
        build.build_engines(
            *(tiny_bundle, "tensorrt-rtx", "bf16", {(32, 64): 3}),
            engine_dir=tmp_path,
            say=said.append,
            progress=lambda *step: seen.append(step),
        )
    assert said[0] == "encoder 32 x 64 bf16, 1..3 slices: building for 8.6, expected to take seconds: the GPU's " + (
        "kernels come later"
    )
    assert re.fullmatch(
        r"encoder 32 x 64 bf16, 1\.\.3 slices: \d+\.\d s, \d+\.\d MB, workspace 0 MB, .*\.plan", said[1]
    )
    assert said[4].startswith("encoder 32 x 64 bf16, 1..3 slices: there already, ") and len(said) == 6
    assert seen[-1] == ("decoder 32 x 64 bf16, 1..3 slices", 100, 100)


def test_a_folder_that_cannot_be_written_is_refused(rtx, card, tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"engines cannot be written to .*file.*choose another --engine-dir"):
        build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {(32, 32): 1}, engine_dir=tmp_path / "file")


def test_out_of_memory_while_building_leaves_nothing(rtx, card, tiny_bundle, tmp_path):
    rtx.gpu.run_out_of_memory("build")
    with pytest.raises(OutOfMemory):
        build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {(32, 32): 1}, engine_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Loading by the package's front door


def test_built_engines_are_loaded_by_size(trt, card, tiny_bundle, tmp_path):
    runtime = runtime_of(trt)
    build.build_engines(tiny_bundle, runtime, "fp16", SIZES, engine_dir=tmp_path)
    where = {"device": "cuda:0", "precision": "fp16", "engine_dir": tmp_path}
    assert engines.slice_size(tiny_bundle, runtime, 20, 50, **where) == (32, 64)
    assert engines.slice_size(tiny_bundle, runtime, 33, 64, **where) == (64, 64)
    engine = engines.load(tiny_bundle, "decoder", runtime, size=(32, 64), **where)
    assert engine.version == trt.__version__ and engine.workspace(2) > 0
    with pytest.raises(EngineError, match=r"holds slices of at most 64 x 64.*--shape 300,65,64 --engine-dir"):
        engines.slice_size(tiny_bundle, runtime, 65, 64, shape=(300, 65, 64), **where)
    with pytest.raises(EngineError, match=r"pass size=\(height, width\)"):
        engines.load(tiny_bundle, "decoder", runtime, **where)


def test_a_size_without_its_other_half_is_refused(rtx, card, tiny_bundle, tmp_path):
    where = {"device": "cuda", "precision": "fp16", "engine_dir": tmp_path}
    for size, part in (((32, 48), "encoder"), ((48, 32), "decoder")):
        for built in build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {size: 2}, engine_dir=tmp_path):
            if built.entry.fingerprint.part != part:
                built.entry.path.unlink()
    with pytest.raises(EngineError, match=r"no size in .* has both an encoder and a decoder\. Build them with: "):
        engines.slice_size(tiny_bundle, "tensorrt-rtx", 32, 32, **where)


def test_an_engine_that_the_runtime_refuses_names_the_command(rtx, card, tiny_bundle, tmp_path):
    build.build_engines(tiny_bundle, "tensorrt-rtx", "fp16", {(32, 64): 2}, engine_dir=tmp_path)
    rtx.gpu.compute_capability = "12.0"  # and the driver, which was asked before, says 8.6
    with pytest.raises(
        EngineError, match=r"expecting compute 12\.0.*Build it anew with: sctrt build-engine .*32,32,64"
    ):
        engines.load(
            tiny_bundle, "encoder", "tensorrt-rtx", device="cuda", precision="fp16", size=(32, 64), engine_dir=tmp_path
        )


def test_a_runtime_that_is_broken_names_the_pip_line(monkeypatch, tiny_bundle):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"tensorrt-rtx cannot be imported: .*pip install 'sctrt\[tensorrt-rtx\]'"):
        engines.load(tiny_bundle, "encoder", "tensorrt-rtx", device="cuda", precision="fp16", size=(32, 32))


# Verification


class OnShim:
    """As much of a device as `verify` needs, on the shim's first GPU."""

    name, stream = "cuda:0", 0

    def __init__(self, gpu):
        self.gpu = gpu

    def put(self, array):
        return self.gpu.put(array)

    def get(self, array):
        return self.gpu.get(array)

    def empty(self, shape, dtype="float32"):
        return self.gpu.library.empty(shape, dtype)


@pytest.fixture
def device(shim_gpu):
    return OnShim(shim_gpu)


def built_pair(bundle, runtime, precision, folder, size=(64, 96)):
    build.build_engines(bundle, runtime, precision, {size: 2}, engine_dir=folder)
    where = {"device": "cuda:0", "precision": precision, "size": size, "engine_dir": folder}
    return [engines.load(bundle, part, runtime, **where) for part in ("encoder", "decoder")]


@pytest.mark.parametrize("bundle_name", ["tiny_bundle", "scales_bundle"])
def test_engines_are_verified_once(trt, card, device, request, bundle_name, tmp_path):
    bundle = request.getfixturevalue(bundle_name)
    encoder, decoder = built_pair(bundle, runtime_of(trt), "fp32", tmp_path)
    found = verify.verify_if_needed(bundle, encoder, decoder, device)
    assert found.hu_mean < 0.1 and found.flipped_share < 0.01 and found.device == CARD.name
    assert found.oracle.startswith("native ") and found.oracle.endswith(" fp32")
    assert [has.verified for has in fingerprints(tmp_path)] == [found, found]
    trt.gpu.steps.clear()
    assert verify.verify_if_needed(bundle, encoder, decoder, device) == found  # what lies in the engines
    encoder, decoder = built_pair(bundle, runtime_of(trt), "fp32", tmp_path)
    assert verify.verify_if_needed(bundle, encoder, decoder, device) == found  # what lies in the folder
    assert "execute" not in trt.gpu.steps


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shipped_model_passes(rtx, card, device, tmp_path, precision):
    bundle = bundles.load()
    pair = built_pair(bundle, "tensorrt-rtx", precision, tmp_path, (128, 160))
    found = verify.verify_if_needed(bundle, *pair, device)
    # In fp32, too, a latent halfway between two codes goes either way, and moves the voxels around it.
    assert found.hu_mean < (0.1 if precision == "fp32" else 0.5)
    assert found.flipped_share < (0.002 if precision == "fp32" else 0.1)


def test_another_gpu_is_verified_anew(rtx, card, device, tiny_bundle, tmp_path, monkeypatch):
    pair = built_pair(tiny_bundle, "tensorrt-rtx", "fp32", tmp_path)
    verify.verify_if_needed(tiny_bundle, *pair, device)
    monkeypatch.setattr(gpus, "present", lambda: (gpus.Card("Another", "8.6", 1),))
    assert verify.verify_if_needed(tiny_bundle, *pair, device).device == "Another"


@pytest.mark.parametrize("wrong", ["a little", "not finite"])
def test_engines_that_are_wrong_are_refused(rtx, card, device, tiny_bundle, tmp_path, monkeypatch, wrong):
    pair = built_pair(tiny_bundle, "tensorrt-rtx", "fp16", tmp_path)
    run = pair[1].__class__.__call__

    def spoiled(self, inputs, outputs, **options):
        run(self, inputs, outputs, **options)
        outputs.host[...] = outputs.host + np.float32(0.002) if wrong == "a little" else np.nan

    monkeypatch.setattr(tensorrt.TensorRtEngine, "__call__", spoiled)
    message = {
        "a little": r"in fp16 differs from native .* by \d.*expected less than 2 HU and 5%; use --precision fp32",
        "not finite": "gives numbers that are not finite; use --precision fp32",
    }[wrong]
    for _ in range(2):  # and it stays refused
        with pytest.raises(EngineError, match=message):
            verify.verify_if_needed(tiny_bundle, *pair, device)
    assert [has.verified for has in fingerprints(tmp_path)] == [None, None]


def test_engines_that_are_not_built_need_no_verification(tiny_bundle):
    pair = [engines.load(tiny_bundle, part, "onnxruntime") for part in ("encoder", "decoder")]
    assert verify.verify_if_needed(tiny_bundle, *pair, types.SimpleNamespace(name="cpu")) is None


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (480, 160)])
def test_the_sample_is_a_body_and_always_the_same(size, tiny_bundle, scales_bundle):
    for bundle in (tiny_bundle, scales_bundle, bundles.load()):
        images = verify.sample_slice(bundle.manifest, *size)
        assert images.shape == (1, bundle.manifest.architecture.input_channels, *size) and images.dtype == np.float32
        np.testing.assert_array_equal(images, verify.sample_slice(bundle.manifest, *size))
        assert -1 <= images.min() and images[0, 0].max() < 1 and images.std() > 0.2
        assert images[0, 0, 0, 0] == images[0, 0, -1, -1] == -1


# The command


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Runs `sctrt build-engine ARGS` in this process with engines in tmp_path/engines: (exit code, what it said)."""
    monkeypatch.setenv("SCTRT_ENGINE_DIR", str(tmp_path / "engines"))

    def call(*args, command="build-engine"):
        code, out, err = run(command, *args)
        return code, err + out

    return call


def test_the_command_builds_with_the_real_tensorrt_rtx(run, no_card, tiny_bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    options = (tiny_bundle.path, "--runtime", "tensorrt-rtx", "--shape", "70,40,60", "--max-batch", 2)
    code, said = run(*options, "--compute-capability", "8.6,12.0")
    assert code == 0, said
    assert "tiny for a body box of 70 x 40 x 60 voxels: slices of 64 x 64, 96 x 64 pixels" in said
    assert said.count(" s, ") == 4 and said.count("not verified, since no GPU is here; the first run verifies") == 2
    built = fingerprints(tmp_path / "engines")
    assert {(has.part, has.height, has.width) for has in built} == {
        (part, height, 64) for part in ("encoder", "decoder") for height in (64, 96)
    }
    assert {has.targets for has in built} == {("8.6", "12.0")} and {has.precision for has in built} == {"fp16"}
    code, said = run(*options, "--compute-capability", "8.6,12.0")
    assert code == 0 and said.count("there already") == 4
    found = cache.Verification(oracle="o", device="Some GPU", hu_mean=0.5, hu_p99_9=3.0, flipped_share=0.001)
    for entry in cache.entries(tmp_path / "engines")[0]:
        verified = entry.fingerprint.model_copy(update={"verified": found})
        cache.write_fingerprint(cache.Entry(entry.path, verified))
    code, said = run(*options, "--compute-capability", "8.6,12.0")
    assert code == 0 and "verified on Some GPU against o: 0.500 HU on average, 3.00 HU at the 99.9th" in said
    code, out = run("--json", command="info")
    facts = json.loads(out)["engines"]
    assert facts["count"] == 4 and facts["MB"] > 0 and facts["folder"] == str(tmp_path / "engines")


def test_a_real_plan_passes_every_check_that_needs_no_gpu(no_card, tiny_bundle):
    """Without a driver TensorRT-RTX checks header, version and size, and stops where it would ask for the GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    if ops.cuda_device_count():
        pytest.skip("a GPU is here, which takes the plan")
    a = tiny_bundle.manifest.architecture
    onnx_bytes = network.fixed_network(tiny_bundle.encoder_onnx, "encoder", a, 32, 64, "fp16")
    plan = tensorrt.build(trt, onnx_bytes, max_batch=2, targets=["8.6", "8.9", "12.0"]).data

    def words(data):
        log = tensorrt._log(trt)
        assert trt.Runtime(log).deserialize_cuda_engine(data) is None
        return " ".join(log.errors)

    assert "Serialization" not in words(plan) and "driver" in words(plan)
    for damaged in (plan[:-1], b"x" + plan[1:], b"nothing of the kind" * 99):
        assert "Serialization assertion" in words(damaged)


def test_the_default_box_is_an_adults_and_the_default_runtime_the_first_installed(run, rtx, no_card, tiny_bundle):
    code, said = run(tiny_bundle.path, "--precision", "fp32", "--max-batch", 1)
    assert code == 0, said
    assert "475 x 80 x 140 voxels: slices of 96 x 160, 480 x 96, 480 x 160 pixels" in said
    assert "building for 8.0, 8.6, 8.9, 12.0, 12.1," in said  # 7.5 has fp16 alone


@pytest.mark.parametrize("gb", [8, 16, 24, 80])
def test_a_plan_is_printed_and_nothing_built(run, no_card, tiny_bundle, tmp_path, gb):
    code, said = run(tiny_bundle.path, "--shape", "1000,400,400", "--plan", "--vram-gb", gb)
    assert code == 0, said
    ((peak, budget),) = re.findall(r"peak +(\d+\.\d\d) GB of (\d+\.\d\d) GB", said)
    assert 0 < float(peak) <= float(budget) == gb
    assert not (tmp_path / "engines").exists()


def test_a_pets_body_box_is_taken(run, rtx, no_card, tiny_bundle, nac_body, tmp_path):
    nac_body.pet().save(tmp_path / "pet.nii.gz")
    code, said = run(tiny_bundle.path, "--for", tmp_path / "pet.nii.gz", "--max-batch", 1)
    assert code == 0 and re.search(r"tiny for a body box of \d\d x \d\d x \d\d voxels: ", said), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "1,2"], "expected --shape Z,Y,X"),
        (["--shape", "0,2,3"], "expected --shape Z,Y,X"),
        (["--shape", "1,2,99999"], "expected --shape Z,Y,X"),
        (["--shape", "a,b,c"], "expected --shape Z,Y,X"),
        (["--shape", "1,2,3", "--for", "x.nii"], "give one of them"),
        (["--compute-capability", "86"], "such as 8.6,8.9,12.0"),
        (["--compute-capability", ""], "such as 8.6,8.9,12.0"),
        (["--runtime", "tensorrt", "--compute-capability", "8.6"], "is of tensorrt-rtx"),
        (["--runtime", "openvino"], "tensorrt"),
        (["--precision", "int8"], "int8"),
        (["--max-batch", "0"], "max-batch"),
        (["--plan"], "--plan needs --vram-gb"),
    ],
)
def test_wrong_usage_exits_with_2(run, rtx, no_card, options, message):
    code, said = run(*options)
    assert code == 2 and message in re.sub(r"[\s│]+", " ", said), said


def test_refusals_exit_with_their_codes(run, monkeypatch, rtx, no_card, tmp_path):
    code, said = run("--compute-capability", "9.0")
    assert code == 1 and "expected compute capabilities of 7.5" in said
    code, said = run(tmp_path / "no.sctrt")
    assert code == 3 and "expected a model bundle" in said
    code, said = run("--for", tmp_path / "no.nii")
    assert code == 3
    install(monkeypatch, stand_in_tensorrt.make("tensorrt"))
    code, said = run("--runtime", "tensorrt")
    assert code == 1 and "no GPU is here" in said
    monkeypatch.setattr(engines, "installed", lambda runtime, device: False)
    code, said = run()
    assert code == 1
    assert "pip install 'sctrt[tensorrt-rtx]' or pip install 'sctrt[tensorrt]'" in said


def test_where_a_gpu_is_the_command_verifies(run, trt, card, shim_gpu, tiny_bundle, tmp_path):
    options = (tiny_bundle.path, "--runtime", runtime_of(trt), "--precision", "fp32", "--shape", "64,64,40")
    for built in (True, False):
        code, said = run(*options)
        assert code == 0 and ("building for 8.6" in said) == built, said
        assert said.count(f": verified on {CARD.name} against native ") == 1
        assert {has.verified.device for has in fingerprints(tmp_path / "engines")} == {CARD.name}


def test_where_engines_are_wrong_the_command_fails(run, rtx, card, shim_gpu, tiny_bundle, monkeypatch):
    monkeypatch.setattr(verify, "HU_MEAN_LIMIT", 0.0)
    code, said = run(tiny_bundle.path, "--precision", "bf16", "--shape", "32,32,32")
    assert code == 1 and "in bf16 differs from native" in said and "use --precision fp16 or fp32" in said


def test_a_gpu_that_the_kernels_cannot_use_leaves_engines_unverified(run, rtx, card, tiny_bundle):
    if ops.cuda_device_count():
        pytest.skip("there is a GPU")
    code, said = run(tiny_bundle.path, "--shape", "32,32,32")
    assert code == 0 and re.search(r"not verified, since .+; the first run verifies", said), said
    code, said = run(tiny_bundle.path, "--shape", "32,32,32", "--compute-capability", "12.0")
    assert code == 0 and "not verified, since the GPU here, Stand-in RTX 3060 (8.6), is none of the targets" in said


def test_building_needs_no_torch(tiny_bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    script = """
import sys
for name in ("torch", "lightning", "onnxscript", "onnxruntime", "safetensors", "cupy"):
    sys.modules[name] = None
sys.argv = ["sctrt", "build-engine", *sys.argv[1:]]
from sctrt.cli import main
main()
"""
    options = ["--shape", "32,32,32", "--compute-capability", "8.6", "--engine-dir", tmp_path / "engines"]
    command = [sys.executable, "-W", "error", "-c", script, tiny_bundle.path, "--runtime", "tensorrt-rtx", *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(fingerprints(tmp_path / "engines")) == 2
    shutil.rmtree(tmp_path / "engines")


def test_info_names_gpus_and_what_is_missing(run, card, monkeypatch):
    code, out = run("--json", command="info")
    facts = json.loads(out)
    assert code == 0
    assert facts["gpus"] == ["Stand-in RTX 3060, compute capability 8.6, 12.0 GB"]
    monkeypatch.setattr(engines, "installed", lambda runtime, device: False)
    facts = json.loads(run("--json", command="info")[1])
    assert facts["runtimes"]["cuda: tensorrt-rtx"] == "missing: pip install 'sctrt[tensorrt-rtx]'"
    assert facts["chosen"]["cuda"].startswith("none (no runtime is installed for cuda; pip install")
    assert run(command="info")[0] == 0
