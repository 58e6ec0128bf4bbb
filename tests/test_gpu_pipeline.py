"""The pipeline on a GPU: the CPU's CT, without leaving the GPU, and whatever memory does.

Everywhere through the shim: our CUDA kernels on the CPU, and arrays that pass for CuPy's. The networks are stand-ins
that compute on the host, slice by slice, so that equal means equal bits.
"""

import gc
import os
import re
import sys

import numpy as np
import pytest

import shim
import stand_in_tensorrt
from conftest import give_up
from sctrt import Ensemble, Synthesizer, Volume, engines, gpus, ops, plan
from sctrt.device import Gpu, Host
from sctrt.engines import build
from sctrt.engines.memory import weight_bytes
from sctrt.engines.tensorrt import TensorRtEngine
from sctrt.ensemble_bundle import write_ensemble
from sctrt.errors import DeviceError, EngineError, OutOfMemory
from sctrt.pipeline import FUSIONS
from sctrt.planes import PLANES
from sctrt.preprocess import network_input
from sctrt.run import Run

AIR = -1000.0
LENT = 1000  # bytes a slice that the stand-in engines want to be lent


def current_stream():
    """CuPy's, or the stand-in's."""
    return sys.modules["cupy"].cuda.get_current_stream()


class StandInEngine:
    """A network of no sense in which every pixel depends on its slice, as with normalisation and attention."""

    version = "0"
    calls = 0
    fail_at = frozenset()  # numbers of the calls that run out of memory, of both halves together

    def __init__(self, part, architecture, device):
        self.part, self.architecture, self.device = part, architecture, device

    def workspace(self, batch):
        return 0 if self.device == "cpu" else LENT * batch

    def __call__(self, inputs, outputs, *, stream=0, workspace=None):
        if self.device != "cpu":
            assert stream and workspace.shape[0] >= self.workspace(inputs.shape[0])
        number, StandInEngine.calls = StandInEngine.calls, StandInEngine.calls + 1
        if number in self.fail_at:
            raise OutOfMemory("the stand-in engine is out of memory")
        run = self.encode if self.part == "encoder" else self.decode
        images = inputs if self.device == "cpu" else inputs.get(stream=current_stream())
        made = np.stack([run(image) for image in images]).astype(np.float32).reshape(outputs.shape)
        if self.device == "cpu":
            outputs[...] = made
        else:
            outputs.set(made, stream=current_stream())

    def encode(self, image):
        f, (_, height, width) = self.architecture.factor, image.shape
        mean = image.mean(axis=0).reshape(height // f, f, width // f, f).mean(axis=(1, 3), dtype=np.float64)
        return np.stack([mean - mean.mean(), mean**2, np.roll(mean, 1, axis=1)][: self.architecture.code_dim])

    def decode(self, codes):
        f = self.architecture.factor
        return np.tanh(codes + codes.mean()).sum(axis=0).repeat(f, axis=0).repeat(f, axis=1) / 3


@pytest.fixture
def stand_in_engines(monkeypatch):
    def load(bundle, part, runtime, *, device="cpu", **_):
        return StandInEngine(part, bundle.manifest.architecture, device)

    monkeypatch.setattr(engines, "load", load)
    monkeypatch.setattr(engines, "installed", lambda runtime, kind: runtime in ("openvino", "torch"))
    monkeypatch.setattr(plan, "GPU_BATCH_PIXELS", 14 * 44 * 44)
    monkeypatch.setattr(StandInEngine, "calls", 0)
    monkeypatch.setattr(StandInEngine, "fail_at", frozenset())


@pytest.fixture
def on_gpu(shim_gpu, stand_in_engines, tiny_bundle):
    """Makes synthesizers on the stand-in GPU."""
    return lambda **options: Synthesizer(tiny_bundle.path, device="cuda:1", **options)


@pytest.fixture(scope="module")
def pet(nac_body):
    return nac_body.pet()


@pytest.fixture(scope="module")
def expected(tiny_bundle, pet):
    """The CPU's result by fusion, with the stand-in engines."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in_engines.__wrapped__(patch)
        return {fusion: Synthesizer(tiny_bundle.path, fusion=fusion)(pet) for fusion in FUSIONS}


def assert_equal(result, expected):
    np.testing.assert_array_equal(result.ct.array, expected.ct.array)
    np.testing.assert_array_equal(result.uncertainty.array, expected.uncertainty.array)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_ct_is_the_cpus(on_gpu, pet, expected, fusion):
    result = on_gpu(fusion=fusion)(pet)
    assert shim.shim().last_stream() == shim.Stream().ptr
    assert_equal(result, expected[fusion])
    assert np.ptp(result.ct.array) > 100
    report = result.report
    assert report["plan"]["events"] == [] and report["plan"]["volumes"] == "device"
    assert report["runtime"]["device"] == "cuda:1" and report["runtime"]["precision"] == "fp16"
    assert report["runtime"]["device_name"] == "the CPU, through the shim"
    assert report["peak_device_memory_mb"] > 0.1


def test_the_timeline_is_of_events_on_the_stream(on_gpu, pet):
    """Of which a millisecond passes from each to the next, whatever the host does."""
    spans = on_gpu()(pet).timeline.spans
    assert {round(1e3 * span.seconds) for span in spans if span.stage not in ("preprocess", "engines")} == {1}
    begins = [round(1e3 * span.begin) for span in spans]
    assert begins == sorted(set(begins)) and begins[0] == 1
    assert {span.of.get("plane") for span in spans} == {None, *PLANES}


def test_three_scales_and_fine_voxels(on_gpu, stand_in_engines, scales_bundle, nac_body):
    pet = nac_body.pet((50, 83, 80), (2.0, 1.9, 3.3))
    result = Synthesizer(scales_bundle.path, device="cuda")(pet)
    assert_equal(result, Synthesizer(scales_bundle.path)(pet))


def test_only_the_pet_goes_up_and_only_the_overview_and_the_results_come_down(on_gpu, pet, monkeypatch):
    moved = {"fill": [], "get": []}

    def spy(name, original):
        def call(self, array, *rest):
            moved[name].append(array.shape)
            return original(self, array, *rest)

        monkeypatch.setattr(Gpu, name, call)

    for name in moved:
        spy(name, getattr(Gpu, name))
    on_gpu()(pet)
    assert moved == {"fill": [pet.shape], "get": [pet.shape] * 3}  # at 4 mm the overview is the model's grid


def test_nothing_is_allocated_once_a_plane_runs_and_nothing_stays(on_gpu, pet, monkeypatch):
    synthesizer = on_gpu()
    first = []
    synthesizer(pet, progress=lambda plane, done, total: first.append((plane, done, total, shim.memory.allocations)))
    for plane in PLANES:
        told = [(done, total, allocations) for name, done, total, allocations in first if name == plane]
        assert [done for done, *_ in told] == list(range(told[0][1] + 1)) and told[0][1] > 1
        assert len({allocations for *_, allocations in told}) == 1
    gc.collect()
    assert shim.memory.used == 0


def test_what_is_planned_is_what_is_used(on_gpu, pet, monkeypatch):
    """But for the network's own workspace and weights, which the stand-in does without."""
    monkeypatch.setattr("sctrt.engines.memory.FLAT_BYTES", 0)
    monkeypatch.setattr(plan.Network, "workspace", lambda self, size, batch: LENT * batch)
    monkeypatch.setattr(plan.Network, "weights", lambda self: 0)
    before = shim.memory.used
    shim.memory.reset()
    result = on_gpu()(pet)
    used = shim.memory.most - before
    planned = result.report["plan"]["peak_gb"] * 1e9 - plan.RUNTIME_BYTES
    assert 0.6 * planned < used <= planned


def test_each_member_of_an_ensemble_finds_the_gpu_as_empty_as_the_first(
    shim_gpu, stand_in_engines, tiny_bundle, scales_bundle, pet, tmp_path
):
    path = write_ensemble([tiny_bundle.path, scales_bundle.path], tmp_path / "two.sctrt").path
    result = Ensemble(path, device="cuda")(pet)
    alone = [Synthesizer(bundle.path, device="cuda")(pet).ct.array for bundle in (tiny_bundle, scales_bundle)]
    np.testing.assert_array_equal(result.ct.array, (alone[0] + alone[1]) / 2)
    assert_equal(result, Ensemble(path)(pet))
    first, second = (member["plan"]["budget_gb"] for member in result.report["ensemble"]["members"])
    assert first == pytest.approx(second, abs=1e-5)  # GB; their weights differ


# What each plane says


def assert_same_planes(found, expected):
    for plane in PLANES:
        np.testing.assert_array_equal(found.codes[plane], expected.codes[plane])
        np.testing.assert_array_equal(found.hu[plane], expected.hu[plane])


def test_planes_and_codes_are_the_cpus_padded_or_not_and_whatever_fails(
    on_gpu, pet, expected, tiny_bundle, monkeypatch
):
    on_cpu = Synthesizer(tiny_bundle.path).planes(pet)
    assert min(np.unique(on_cpu.codes[plane]).size for plane in PLANES) > 3
    np.testing.assert_array_equal(on_cpu.on(pet, on_cpu.fused("median")[0]).array, expected["median"].ct.array)
    synthesizer = on_gpu()
    StandInEngine.calls = 0
    assert_same_planes(synthesizer.planes(pet), on_cpu)
    for number in range(0, StandInEngine.calls, 3):
        StandInEngine.calls = 0
        monkeypatch.setattr(StandInEngine, "fail_at", {number})
        assert_same_planes(synthesizer.planes(pet), on_cpu)


def test_the_padding_of_engines_has_no_codes(shim_gpu, stand_in_engines, tiny_bundle, pet, monkeypatch):
    monkeypatch.setattr(engines, "slice_size", lambda bundle, runtime, height, width, **_: (height + 12, width + 8))
    found = Synthesizer(tiny_bundle.path, device="cuda").planes(pet)
    for axis, plane in enumerate(PLANES):
        sides = [-(-n // found.factor) for other, n in enumerate(found.grid.shape) if other != axis]
        assert found.codes[plane].shape == (found.grid.shape[axis], *sides)
        assert found.codes[plane].min() >= 0
    result = Synthesizer(tiny_bundle.path, device="cuda")(pet)
    np.testing.assert_array_equal(found.on(pet, found.fused("median")[0]).array, result.ct.array)


def test_tiles_have_no_codes(on_gpu, pet, monkeypatch):
    only_tiles(monkeypatch)
    with pytest.raises(DeviceError, match="expected memory for whole slices, got a plan with tiles of axial, coronal"):
        on_gpu().planes(pet)


# Empty slices


@pytest.fixture(scope="module")
def legs():
    """Two legs with a gap of air between them."""
    array = np.zeros((60, 50, 70), np.float32)
    for x in (14, 56):
        array[5:55, 15:35, x - 8 : x + 8] = 1000.0
    array += np.random.default_rng(0).uniform(0, 30, array.shape).astype(np.float32)
    return Volume(array, np.diag([4.0, 4.0, 4.0, 1.0]), "Bq/ml")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_slices_without_body_are_not_run_and_hold_air(shim_gpu, stand_in_engines, tiny_bundle, legs, device):
    seen = []
    synthesizer = Synthesizer(tiny_bundle.path, fusion="sagittal", device=device)
    result = synthesizer(legs, progress=lambda *told: seen.append(told))
    ct = result.ct.array
    np.testing.assert_allclose(ct[:, :, 28:42], AIR, atol=1e-3)
    z, y, x = result.report["network_grid"]["shape_zyx"]
    assert result.report["network_grid"]["slices_run_zyx"] == [z, y, 2 * (16 + 2 * 3)] and x > 44
    assert (ct[10:50, 20:30, 10:18] != AIR).all() and (ct[10:50, 20:30, 52:60] != AIR).all()


# Memory runs out


def allocations_of(synthesizer, pet):
    shim.memory.reset()
    synthesizer(pet)
    return shim.memory.allocations


def test_a_failure_at_any_allocation_gives_the_same_ct(on_gpu, pet, expected):
    synthesizer = on_gpu()
    count = allocations_of(synthesizer, pet)
    assert count > 20
    for number in range(count):
        shim.memory.reset(fail_at=number)
        result = synthesizer(pet)
        assert_equal(result, expected["median"])
        assert len(result.report["plan"]["events"]) == 1, number
        assert "Out of memory allocating" in result.report["plan"]["events"][0]
    gc.collect()
    assert shim.memory.used == 0


def test_a_failure_of_any_engine_call_gives_the_same_ct(on_gpu, pet, expected, monkeypatch):
    synthesizer = on_gpu()
    synthesizer(pet)
    count = StandInEngine.calls
    assert count > 10
    for number in range(count):
        StandInEngine.calls = 0
        monkeypatch.setattr(StandInEngine, "fail_at", {number})
        result = synthesizer(pet)
        assert_equal(result, expected["median"])
        assert re.search(r"slices went on \d+ at a time", result.report["plan"]["events"][0])


@pytest.mark.parametrize("failures", [2, 5, 6])
def test_failure_after_failure_ends_on_the_host_with_the_same_ct(on_gpu, pet, expected, monkeypatch, failures):
    synthesizer = on_gpu()
    monkeypatch.setattr(StandInEngine, "fail_at", set(range(6, 6 + failures)))
    result = synthesizer(pet)
    assert_equal(result, expected["median"])
    events = result.report["plan"]["events"]
    assert len(events) == failures
    if failures > 4:  # 20, 10, 5, 2, 1 slices at a time
        assert "went to the host" in events[4]


def test_when_nothing_helps_the_error_says_what_to_do(on_gpu, pet, monkeypatch):
    synthesizer = on_gpu()
    monkeypatch.setattr(StandInEngine, "fail_at", range(10**6))
    with pytest.raises(OutOfMemory, match=r"cuda:1 has too little memory for one slice .* or --device cpu"):
        synthesizer(pet)
    gc.collect()
    assert shim.memory.used == 0


@pytest.mark.parametrize("failing", range(0, 60, 7))
def test_with_its_volumes_on_the_host_the_ct_is_the_same(on_gpu, pet, expected, monkeypatch, failing):
    monkeypatch.setattr(plan, "RUNTIME_BYTES", 0)
    monkeypatch.setattr("sctrt.engines.memory.FLAT_BYTES", 0)
    small = 1.3e-3  # GB; engines fit, but not beside the volumes
    shim.memory.reset(fail_at=failing)
    result = on_gpu(vram_gb=small)(pet)
    assert_equal(result, expected["median"])
    assert result.report["plan"]["volumes"] == "host"


@pytest.mark.parametrize("gb", [0.0026, 0.00275, 0.0028, 0.0029, 0.0031])
def test_the_plan_knows_where_the_volumes_lie(on_gpu, nac_body, monkeypatch, gb):
    small_tiles(monkeypatch)
    lie, begin = [], Run.__init__

    def spy(self, *given):
        begin(self, *given)
        lie.append("host" if isinstance(self._volumes, Host) else "device")

    monkeypatch.setattr(Run, "__init__", spy)
    result = on_gpu(vram_gb=gb)(nac_body.pet((70, 70, 70)))
    told = result.report["plan"]["volumes"]
    assert told == lie[0] or (lie[0] == "device" and told == "host")  # that they were moved to


def only_tiles(monkeypatch):
    """Of 24 x 24 pixels: no engine fits that is larger."""
    whole = plan.Network.workspace
    monkeypatch.setattr(plan, "TILE", 24)
    monkeypatch.setattr(plan, "TILE_OVERLAP", 8)
    monkeypatch.setattr("sctrt.run.TILE_OVERLAP", 8)
    monkeypatch.setattr("sctrt.engines.memory.FLAT_BYTES", 0)
    monkeypatch.setattr(plan, "RUNTIME_BYTES", 0)

    def workspace(self, size, batch):
        return whole(self, size, batch) if size == (24, 24) else 10**12

    monkeypatch.setattr(plan.Network, "workspace", workspace)


def test_tiles_run_and_do_not_depend_on_where_the_volumes_lie(on_gpu, pet, expected, monkeypatch):
    only_tiles(monkeypatch)
    results = [on_gpu(**options)(pet) for options in ({}, {"vram_gb": 1.2e-3})]
    assert_equal(results[0], results[1])
    for result, volumes in zip(results, ("device", "host"), strict=True):
        assert all(plane["tiled"] and plane["engine"] == [24, 24] for plane in result.report["plan"]["planes"].values())
        assert result.report["plan"]["volumes"] == volumes
    assert np.abs(results[0].ct.array - expected["median"].ct.array).mean() > 0.1


# Refusals


def test_a_gpu_that_is_not_there_is_refused(shim_gpu, stand_in_engines, tiny_bundle):
    with pytest.raises(DeviceError, match=r"expected one of the GPUs cuda:0, cuda:1, got cuda:2"):
        Synthesizer(tiny_bundle.path, device="cuda:2")
    shim.shim().reset(0, 0)
    with pytest.raises(DeviceError, match="no GPU that CUDA can use"):
        Synthesizer(tiny_bundle.path, device="cuda")


def test_kernels_without_cuda_are_refused(shim_gpu, monkeypatch):
    monkeypatch.setattr("sctrt.ops.build_info", lambda: {"cuda": None})
    with pytest.raises(DeviceError, match="kernels have no CUDA"):
        Gpu(0)


def test_a_missing_cupy_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"pip install 'sctrt\[cuda\]'"):
        Gpu(0)


def test_the_host_moves_nothing(rng):
    array, host = rng.normal(size=(3, 4)).astype(np.float32), Host()
    assert host.put(array) is array and host.get(array) is array and host.free_bytes() is None


# A real GPU: the same, with CuPy itself


@pytest.fixture
def cupy(stand_in_engines):
    required = os.environ.get("SCTRT_REQUIRE_CUDA") == "1"
    if ops.cuda_device_count() == 0:
        give_up("no GPU that the kernels can use", required)
    try:
        import cupy
    except ImportError:
        give_up("cupy is not installed", required)
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
    yield cupy
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@pytest.mark.gpu
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_real_gpu_gives_the_cpus_ct(cupy, tiny_bundle, pet, expected, fusion):
    result = Synthesizer(tiny_bundle.path, device="cuda", fusion=fusion)(pet)
    assert_equal(result, expected[fusion])
    assert result.report["plan"]["events"] == [] and result.report["peak_device_memory_mb"] > 0


@pytest.mark.gpu
def test_a_real_gpus_failure_at_any_allocation_gives_the_same_ct(cupy, tiny_bundle, pet, expected):
    allocate = cupy.get_default_memory_pool().malloc
    made, failures = [], []

    def failing(size):
        made.append(size)
        if len(made) in failures:
            raise cupy.cuda.memory.OutOfMemoryError(size, 0)
        return allocate(size)

    cupy.cuda.set_allocator(failing)
    synthesizer = Synthesizer(tiny_bundle.path, device="cuda")
    synthesizer(pet)
    for number in range(1, len(made) + 1):
        made.clear()
        failures[:] = [number]
        result = synthesizer(pet)
        assert_equal(result, expected["median"])
        assert len(result.report["plan"]["events"]) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "hu"), [("fp32", 0.5), ("fp16", 20), ("bf16", 60)])
def test_torch_on_a_real_gpu_is_near_the_cpu(cupy, monkeypatch, tiny_bundle, pet, precision, hu):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        give_up("this PyTorch has no CUDA", os.environ.get("SCTRT_REQUIRE_CUDA") == "1")
    monkeypatch.undo()
    on_cpu = Synthesizer(tiny_bundle.path, runtime="torch")(pet)
    result = Synthesizer(tiny_bundle.path, runtime="torch", device="cuda", precision=precision)(pet)
    assert np.abs(result.ct.array - on_cpu.ct.array).mean() < hu  # random weights: codes flip easily
    assert result.report["plan"]["events"] == []


# TensorRT, by a stand-in whose engines ONNX Runtime computes on the shim's memory


@pytest.fixture
def tensorrt(shim_gpu, monkeypatch):
    trt = stand_in_tensorrt.make("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    monkeypatch.setattr(gpus, "present", lambda: (gpus.Card("Stand-in RTX 3060", "8.6", 12 << 30),) * 2)
    monkeypatch.setattr(
        engines, "installed", lambda runtime, kind: runtime in ("native", "onnxruntime", "tensorrt-rtx")
    )
    return trt


def build_engines(bundle, box, folder, max_batch=3):
    sizes = dict.fromkeys(plan.plan_for(bundle, tuple(box), "fp32").engines(), max_batch)
    build.build_engines(bundle, "tensorrt-rtx", "fp32", sizes, engine_dir=folder)
    return sizes


def test_tensorrt_gives_the_ct_of_a_cpu_runtime(tensorrt, tiny_bundle, pet, tmp_path):
    on_cpu = Synthesizer(tiny_bundle.path, runtime="onnxruntime")(pet)
    sizes = build_engines(tiny_bundle, on_cpu.report["network_grid"]["shape_zyx"], tmp_path)
    synthesizer = Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path)
    result = synthesizer(pet)
    assert result.ct.array.std() > 10
    plan, runtime = result.report["plan"], result.report["runtime"]
    assert {tuple(plane["engine"]) for plane in plan["planes"].values()} == set(sizes)
    assert all(plane["batch"] <= 3 for plane in plan["planes"].values()) and plan["events"] == []
    assert runtime["name"] == "tensorrt-rtx" and runtime["verified"].keys() == {f"{h} x {w}" for h, w in sizes}
    assert all(verified["hu_mean"] < 0.1 for verified in runtime["verified"].values())
    assert set(tensorrt.gpu.streams) == {shim.Stream().ptr}


def small_tiles(monkeypatch):
    """Memory of which the volumes and engines of a tiny model are all."""
    monkeypatch.setattr(plan, "TILE", 32)
    monkeypatch.setattr(plan, "TILE_OVERLAP", 8)
    monkeypatch.setattr("sctrt.run.TILE_OVERLAP", 8)
    monkeypatch.setattr("sctrt.engines.memory.FLAT_BYTES", 0)
    monkeypatch.setattr(plan, "RUNTIME_BYTES", 0)


def box_of(bundle, pet):
    return network_input(pet, bundle.manifest.spacing_mm, bundle.manifest.normaliser).grid.shape


def built_for(bundle, box, gb, folder):
    sizes = plan.plan_for(bundle, box, "fp32", int(gb * 1e9)).engines()
    build.build_engines(bundle, "tensorrt-rtx", "fp32", sizes, engine_dir=folder)
    return sizes


LITTLE = 0.003  # GB


@pytest.mark.parametrize("built", [LITTLE, 8])
def test_with_little_memory_engines_of_tiles_run(tensorrt, tiny_bundle, pet, tmp_path, monkeypatch, built):
    """Those built for as little; where others are built, the command in the error builds these."""
    small_tiles(monkeypatch)
    built_for(tiny_bundle, box_of(tiny_bundle, pet), built, tmp_path)
    synthesizer = Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path, vram_gb=LITTLE)
    if built == 8:
        with pytest.raises(EngineError, match=r"Build one with: sctrt build-engine") as told:
            synthesizer(pet)
        shape, gb = re.search(r"--shape (\S+) --vram-gb (\S+)", str(told.value)).groups()
        built_for(tiny_bundle, tuple(map(int, shape.split(","))), float(gb), tmp_path)
    result = synthesizer(pet)
    assert any(plane["tiled"] for plane in result.report["plan"]["planes"].values())
    assert result.report["plan"]["events"] == []


def test_engines_of_tiles_alone_run_where_there_is_more_memory_and_that_is_said(
    tensorrt, tiny_bundle, pet, tmp_path, monkeypatch
):
    small_tiles(monkeypatch)
    built_for(tiny_bundle, box_of(tiny_bundle, pet), LITTLE, tmp_path)
    result = Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path)(pet)
    tiled = [name for name, plane in result.report["plan"]["planes"].items() if plane["tiled"]]
    events = result.report["plan"]["events"]
    assert tiled and [event.split()[0] for event in events] == tiled
    assert all("no engine is built for them" in event for event in events)


def test_the_second_volume_is_run_as_the_first(tensorrt, tiny_bundle, pet, tmp_path, monkeypatch):
    """Engines that are loaded are no memory that another must make room for."""
    small_tiles(monkeypatch)
    made = TensorRtEngine.__init__

    def with_weights(self, trt, entry):
        made(self, trt, entry)
        size = weight_bytes(tiny_bundle.manifest.architecture, entry.fingerprint.part, "fp32")
        self.weights = sys.modules["cupy"].empty((size,), np.uint8)

    monkeypatch.setattr(TensorRtEngine, "__init__", with_weights)
    box = box_of(tiny_bundle, pet)
    built_for(tiny_bundle, box, 8, tmp_path)
    network = plan.Network(tiny_bundle.manifest.architecture, "fp32", plan.engine_size)
    grids = plan.Grids(pet.shape, pet.shape, box)
    least = next(n for n in range(10**6, 10**7, 20_000) if whole_slices(grids, network, n))
    gc.collect()  # what other tests left
    monkeypatch.setattr(shim.Memory, "total", int(1.05 * least) + shim.memory.used)
    synthesizer = Synthesizer(tiny_bundle.path, device="cuda:1", precision="fp32", engine_dir=tmp_path)
    first, second = (synthesizer(pet) for _ in range(2))
    assert first.report["plan"]["events"] == second.report["plan"]["events"] == []
    assert second.report["plan"]["planes"] == first.report["plan"]["planes"]
    assert_equal(first, second)


def whole_slices(grids, network, budget):
    try:
        found = plan.gpu_plan(grids, network, budget)
    except OutOfMemory:
        return False
    return found.volumes == "device" and not any(plane.tiled for plane in found.planes)


@pytest.mark.parametrize("step", ["deserialize", "context", "execute"])
def test_tensorrt_that_runs_out_of_memory_is_told(tensorrt, tiny_bundle, pet, tmp_path, step):
    build_engines(tiny_bundle, (40, 32, 38), tmp_path)
    synthesizer = Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path)
    tensorrt.gpu.run_out_of_memory(step)
    with pytest.raises(OutOfMemory, match="with all volumes on the host"):
        synthesizer(pet)
    tensorrt.gpu.fails.clear()
    assert synthesizer(pet).report["plan"]["events"] == []


def test_without_an_engine_auto_goes_on_and_else_the_command_is_named(
    tensorrt, tiny_bundle, pet, tmp_path, monkeypatch
):
    for runtime in ("auto", "tensorrt-rtx"):
        synthesizer = Synthesizer(
            tiny_bundle.path, runtime=runtime, device="cuda", precision="fp32", engine_dir=tmp_path
        )
        with pytest.raises(EngineError, match=r"sctrt build-engine .*--shape \d+,\d+,\d+"):
            synthesizer(pet)
    monkeypatch.setattr(engines, "installed", lambda runtime, kind: runtime in ("tensorrt-rtx", "torch"))
    monkeypatch.setattr(pytest.importorskip("torch").cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"build-engine .*; PyTorch .* has no CUDA"):
        Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path)(pet)
    load = engines.load

    def load_torch_too(bundle, part, runtime, *, device="cpu", **given):
        if runtime == "torch":
            return StandInEngine(part, bundle.manifest.architecture, device)
        return load(bundle, part, runtime, device=device, **given)

    monkeypatch.setattr(engines, "load", load_torch_too)
    result = Synthesizer(tiny_bundle.path, device="cuda", precision="fp32", engine_dir=tmp_path)(pet)
    assert result.report["runtime"]["name"] == "torch"
    assert "tensorrt-rtx: " in result.report["runtime"]["reason"]
    assert "build-engine" in result.report["runtime"]["reason"]
