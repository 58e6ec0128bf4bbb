"""The ways that are compared compute the same network; cases are bodies; times are scaled up and compared rightly."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt import Volume
from sctrt.bench import accuracy, cases, environment, meters, run, work
from sctrt.bench.cases import SIZES, make_pet, whole_view
from sctrt.bench.report import Accuracy, Findings, Row, Spread
from sctrt.bench.suites import pipeline, roofline, scaling
from sctrt.bench.suites.common import Context
from sctrt.bundle import Architecture
from sctrt.errors import DeviceError
from sctrt.planes import PLANES, padded_size
from sctrt.preprocess import network_input
from test_layering import run_blocked

TINY = SIZES["tiny"]
HALVES = ("encoder", "decoder")


@pytest.fixture(scope="module")
def pet():
    return make_pet(TINY.shape, TINY.voxel_mm, 1000, TINY.paint_mm)


def row(time=1.0, name="sctrt", **of):
    spread = Spread(median=time, p5=time, p95=time, samples=30)
    return Row(**{"suite": "pipeline", "case": "body", "name": name, "ours": True, "seconds": spread, **of})


# Cases


def test_a_case_is_the_same_for_the_same_seed(pet):
    again = make_pet(TINY.shape, TINY.voxel_mm, 1000, TINY.paint_mm)
    other = make_pet(TINY.shape, TINY.voxel_mm, 1001, TINY.paint_mm)
    assert np.array_equal(pet.array, again.array) and not np.array_equal(pet.array, other.array)
    assert pet.array.dtype == np.float32 and np.isfinite(pet.array).all() and pet.array.min() >= 0


def test_a_case_looks_uncorrected():
    """Darker in its depth than the uptake is: the middle of a torso against its rim."""
    from sctrt.phantom import make_body

    body = make_body(3, 12.0)
    pet = make_pet(body.activity.shape, 12.0, 3, paint_mm=12.0)
    np.testing.assert_allclose(pet.affine, body.activity.affine)
    z, y, x = (n // 2 for n in pet.shape)
    inside = body.ct.array[z] > -500
    rows = np.flatnonzero(inside.any(axis=1))
    near = np.zeros_like(inside)
    near[rows[0] : rows[0] + 3] = near[rows[-1] - 2 : rows[-1] + 1] = True

    def depth_over_rim(array):
        return array[z, y - 2 : y + 2, x - 4 : x + 4].mean() / array[z][inside & near].mean()

    assert depth_over_rim(pet.array) < 0.8 * depth_over_rim(body.activity.array)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_of_a_body(size):
    extent = np.array(SIZES[size].shape) * SIZES[size].voxel_mm
    assert (extent >= (280 if size == "tiny" else 700, 190, 190)).all() and (extent <= (1200, 800, 800)).all()


@given(st.floats(0.05, 4))
def test_stacked_bodies_have_so_many_slices(times):
    volume = Volume(np.arange(2 * 3 * 20, dtype=np.float32).reshape(20, 2, 3), np.eye(4), "Bq/ml")
    found = cases.stacked(volume, times)
    assert found.shape == (max(1, round(times * 20)), 2, 3)
    whole = found.array[:20] if times > 1 else volume.array
    assert np.array_equal(whole, volume.array)
    steps = np.abs(np.diff(found.array[:, 0, 0]))  # mirrored: no jump where one body ends
    assert (steps <= 6).all()


def test_the_middle_part_stays_where_it_is():
    volume = Volume(np.arange(10, dtype=np.float32)[:, None, None], np.diag([1.0, 1, 3, 1]), "Bq/ml")
    part = cases.middle_part(volume, 0.4)
    assert part.array.ravel().tolist() == [3, 4, 5, 6]
    assert (part.affine @ [0, 0, 0, 1])[2] == (volume.affine @ [0, 0, 3, 1])[2]


@pytest.mark.parametrize("times", [0.25, 0.5, 2.0, 4.0])
def test_a_magnified_body_has_so_many_voxels(pet, times):
    found = cases.magnified(pet, times)
    assert found.array.size / pet.array.size == pytest.approx(times, rel=0.1)
    assert found.array.mean() == pytest.approx(pet.array.mean(), rel=0.05)
    assert np.array_equal(found.affine, pet.affine)


def test_the_whole_view_holds_what_the_box_holds(pet, scales_bundle):
    manifest = scales_bundle.manifest
    boxed = network_input(pet, manifest.spacing_mm, manifest.normaliser)
    channels, grid = whole_view(pet, manifest.spacing_mm, manifest.normaliser)
    start = ((boxed.grid.affine[:3, 3] - grid.affine[:3, 3]) / grid.spacing).round().astype(int)[::-1]
    window = tuple(slice(s, s + n) for s, n in zip(start, boxed.grid.shape, strict=True))
    np.testing.assert_allclose(channels[:, *window], boxed.channels, atol=1e-5)


# Ways


@pytest.fixture(scope="module")
def plain():
    pytest.importorskip("torch")
    from sctrt.bench import plain

    return plain


@pytest.fixture(scope="module")
def expected(plain, tiny_bundle, pet):
    """Of each axis: three slices of the network's input [C, z, y, x] with only these, and what the network makes."""
    import torch

    from sctrt.model.checkpoint import load_bundle_weights

    model = load_bundle_weights(tiny_bundle).eval()
    channels = plain.view_of(pet, tiny_bundle, "box")[0]
    made = []
    for axis in range(3):
        part = channels[(slice(None),) * (axis + 1) + (slice(5, 8),)]
        images = np.moveaxis(part, axis + 1, 0)
        height, width = images.shape[2:]
        pad = ((0, 0), (0, 0), (0, -height % 4), (0, -width % 4))
        padded = torch.from_numpy(np.pad(images, pad, constant_values=tiny_bundle.manifest.padding))
        with torch.inference_mode():
            made.append((part, model(padded)[:, 0, :height, :width].numpy()))
    return made


@pytest.mark.parametrize("way", ["eager", "onnxruntime", "monai"])
def test_every_way_computes_the_network(plain, tiny_bundle, expected, way):
    pytest.importorskip({"eager": "torch"}.get(way, way))
    planes = plain.WAYS[way](tiny_bundle, "cpu", "fp32", 1)
    codebook = tiny_bundle.codebook()
    for axis, (part, wanted) in enumerate(expected):
        made, codes = planes(part, axis)
        assert made.shape == wanted.shape
        assert np.median(np.abs(made - wanted)) < 1e-4  # a flipped code changes its surroundings
        shape = padded_size(tuple(part.shape[1:]), PLANES[axis], 4)
        assert codes.shape == (3, shape[0] // 4, shape[1] // 4)
        assert 0 <= codes.min() and codes.max() < len(codebook)


def test_an_unknown_precision_is_refused(plain, tiny_bundle):
    with pytest.raises(ValueError, match="expected precision fp32, tf32, fp16, bf16, got 'int3'"):
        plain.torch_network(tiny_bundle, "cpu", "int3")


def test_a_pass_over_some_slices_is_scaled_up(plain, tiny_bundle, pet):
    ticks = iter(range(1000))

    def planes(part, axis):
        images = np.moveaxis(part, axis + 1, 0)
        return np.zeros((len(images), *images.shape[2:]), np.float32), np.zeros((len(images), 1, 1), np.int64)

    def some(axis, total):
        return list(range(0, total, 2))

    clock = lambda: float(next(ticks))  # noqa: E731  each reading a second later
    done = plain.run_pass(planes, tiny_bundle, pet, "box", some, clock)
    shape = done.grid.shape
    assert done.stages_s == {
        "preprocess": 1,
        "network": pytest.approx(sum(n / len(some(0, n)) for n in shape)),
        "fuse": 1,
        "resample": 1,
    }
    assert done.ct.shape == pet.shape and done.ct.unit == "HU"


def test_what_is_compared_is_always_run():
    from sctrt.bench.peers import Choice

    choice = Choice(share=0.1, start=(3, 0, 5), box=(40, 20, 9))
    for axis, total in enumerate((50, 20, 30)):
        run_slices = choice(axis, total)
        assert set(choice.compared(axis)) <= set(run_slices) <= set(range(total))
        assert len(run_slices) < total
        assert run_slices == sorted(set(run_slices))
    assert Choice(1.2, (0, 0, 0), (4, 4, 4))(0, 9) == list(range(9))


def test_slices_and_cts_are_compared(tmp_path):
    hu = [np.full((2, 3, 3), 10.0, np.float32)] * 3
    off = [hu[0] + 3, hu[1], hu[2]]
    codes = [np.zeros((2, 1, 1), np.int64)] * 3
    accuracy.save_slices(tmp_path, "one", hu, codes)
    accuracy.save_slices(tmp_path, "two", off, [codes[0] + 1, codes[1], codes[2]])
    accuracy.save_slices(tmp_path, "three", off)
    found = accuracy.against_reference(tmp_path, "two", "one", "one", None)
    assert found.mean_hu == pytest.approx(1) and found.max_hu == 3
    assert (found.flipped_share, found.codes) == (pytest.approx(1 / 3), 6)
    assert accuracy.against_reference(tmp_path, "three", "one", "one", None).flipped_share is None
    assert accuracy.against_reference(tmp_path, "absent", "one", "one", None) is None
    ct = np.full((4, 4, 4), -1000.0, np.float32)
    other = ct.copy()
    other[0, 0, :2] = [-998, -1000]
    assert accuracy.mean_difference(ct, other) == 2 and accuracy.mean_difference(ct, ct) == 0
    np.save(accuracy.ct_file(tmp_path, "one"), ct)
    np.save(accuracy.ct_file(tmp_path, "two"), other)
    known = Accuracy(against="x", flipped_share=0.5)
    assert accuracy.against_reference(tmp_path, "two", "one", "one", known).ct_mean_hu == 2


def test_where_the_loop_made_no_whole_ct_ours_in_fp32_stands_for_it(tmp_path):
    case = cases.Case(tmp_path)
    near = Accuracy(against="x", mean_hu=0.001, within=True)
    rows = [row(name="far", precision="bf16"), row(name="ours", precision="fp32", accuracy=near)]
    ct = np.full((4, 4, 4), 10.0, np.float32)
    for name, shift in (("far", 1.5), ("ours", 0.0)):
        np.save(accuracy.ct_file(tmp_path, name), ct + np.float32(shift))
    pipeline._compare_with_reference(rows, case)
    assert (rows[0].accuracy.ct_mean_hu, rows[0].accuracy.ct_against, rows[0].accuracy.within) == (1.5, "ours", True)
    assert rows[1].accuracy.ct_mean_hu is None and rows[1].accuracy.within
    np.save(accuracy.ct_file(tmp_path, pipeline.REFERENCE), ct + 2)
    pipeline._compare_with_reference(rows, case)
    assert (rows[0].accuracy.ct_mean_hu, rows[0].accuracy.ct_against) == (0.5, pipeline.REFERENCE)
    assert not rows[1].accuracy.within  # 2 HU from the loop, in fp32


def test_the_ct_decides_over_single_slices():
    assert accuracy.judged(Accuracy(against="x", mean_hu=3.0, ct_mean_hu=1.0), "bf16").within
    assert not accuracy.judged(Accuracy(against="x", mean_hu=3.0), "bf16").within
    assert not accuracy.judged(Accuracy(against="x", mean_hu=0.2), "fp32").within
    assert accuracy.judged(Accuracy(against="x"), "fp32").within is None


def test_the_questions_are_asked_of_rows_that_are_right():
    near, far = (Accuracy(against="x", ct_mean_hu=hu, within=hu < 2) for hu in (0.5, 9.0))
    rows = [
        row(4.0, "fp32", precision="fp32", peak_memory_mb=50.0),
        row(3.0, "near", precision="bf16", accuracy=near),
        row(1.0, "far", precision="int8", accuracy=far),
        row(12.0, pipeline.REFERENCE, ours=False, peak_memory_mb=100.0),
        row(20.0, pipeline.FIELD, ours=False),
    ]
    found = {one.question: one for one in pipeline.ratios(rows, "body")}
    exact, fastest, *fields = found.values()
    assert (exact.speedup, exact.memory_share, exact.reached) == (3, 0.5, True)
    assert (fastest.ours, fastest.speedup, fastest.reached, fastest.mean_hu) == ("near", 4, True, 0.5)
    assert [one.speedup for one in fields] == [5, pytest.approx(20 / 3)]
    assert pipeline.ratios(rows[:3], "body") == []


# What the machine allows


def fake_context(tmp_path, probe_s, monkeypatch):
    context = Context("cpu", 1, 0, None, ("tiny",), tmp_path, lambda line: None)
    said = Findings(rows=[row(probe_s)] if probe_s else [])
    monkeypatch.setattr(Context, "run", lambda self, plan, **of: said)
    return context


def test_a_case_that_takes_too_long_is_cut_to_its_middle_and_says_so(tmp_path, monkeypatch):
    pet = make_pet((60, 24, 24), 8.0, 1000, 12.0)
    context = fake_context(tmp_path, 1.0, monkeypatch)
    case = context.save("body", pet, what="a body")
    whole_s = pipeline.RUNS / pipeline.PROBE
    cut = pipeline.in_time(context, work.Plan(whole_s / 2, clock=lambda: 0.0), case)
    assert cut.facts["shape_zyx"] == [30, 24, 24]
    assert cut.facts["what"] == "a body; cut to the middle 30 of 60 axial slices to be in time"
    context = fake_context(tmp_path, 1.0, monkeypatch)
    case = context.save("body", pet, what="a body")
    assert pipeline.in_time(context, work.Plan(whole_s, clock=lambda: 0.0), case) == case
    assert pipeline.in_time(fake_context(tmp_path, None, monkeypatch), work.Plan(1), case) == case


def test_sizes_that_memory_does_not_hold_are_left_out(monkeypatch):
    monkeypatch.setattr(run, "available_gb", lambda: 3.0)
    fits, found = run._fitting(["body", "XL"])
    assert fits == ("body",)
    assert [one.case for one in found.left_out] == ["XL"] and "3.0 GB are free" in found.left_out[0].reason


def test_a_plan_ends():
    now = [0.0]
    plan = work.Plan(10, clock=lambda: now[0])
    assert plan.left() == 10 and not plan.ended()
    now[0] = 12.0
    assert plan.left() == 0 and plan.ended()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", None),
        ("raise SystemExit('VolumeError: no body')", "exit status 1; VolumeError: no body"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import time; time.sleep(60)", "stopped after 1 s"),
    ],
)
def test_what_a_worker_found_is_kept_however_it_ends(tmp_path, monkeypatch, script, reason):
    found = Findings(rows=[row()]).model_dump_json()
    command = f"import sys; open(sys.argv[2], 'w').write({found!r}); {script}"
    start = work.subprocess.Popen
    monkeypatch.setattr(
        work.subprocess, "Popen", lambda args, **of: start([sys.executable, "-c", command, *args[3:]], **of)
    )
    monkeypatch.setattr(work, "OVER_S", 1.0 if reason == "stopped after 1 s" else 60.0)
    request = work.Request(task="ours", suite="pipeline", name="a way", threads=1, seconds=0.0)
    made = work.run(request, tmp_path, lambda line: None)
    assert made.rows == [row()]
    assert [one.reason for one in made.left_out] == ([] if reason is None else [reason])


@pytest.mark.parametrize(
    ("device", "listed", "said"),
    [
        ("cpu", None, "cpu None"),
        ("cpu", "3,5", "cpu 3,5"),
        ("cuda", None, "cuda 0"),
        ("cuda:1", None, "cuda 1"),
        ("cuda:1", "3,5", "cuda 5"),
        ("cuda:0", "GPU-8932f937, GPU-d72c8a14", "cuda GPU-8932f937"),
    ],
)
def test_a_worker_sees_the_asked_gpu_alone(tmp_path, monkeypatch, device, listed, said):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    told = "json.load(open(sys.argv[1]))['device'], os.environ.get('CUDA_VISIBLE_DEVICES')"
    command = f"import json, os, sys; sys.exit('%s %s' % ({told}))"
    start = work.subprocess.Popen
    monkeypatch.setattr(
        work.subprocess, "Popen", lambda args, **of: start([sys.executable, "-c", command, *args[3:]], **of)
    )
    request = work.Request(task="ours", suite="pipeline", name="a way", device=device, threads=1, seconds=60.0)
    assert work.run(request, tmp_path, lambda line: None).left_out[0].reason == f"exit status 1; {said}"


def test_the_named_gpu_is_the_asked_one(monkeypatch):
    cards = {"cuda": "the first", "cuda:1": "the second"}
    monkeypatch.setattr(environment, "card", lambda device: types.SimpleNamespace(name=cards[device]))
    answer = types.SimpleNamespace(stdout="570.1\n570.1\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **of: answer)
    assert environment.gpu_name("cuda:1") == "the second, driver 570.1"
    assert environment.gpu_name("cuda") == "the first, driver 570.1"

    def fails(*args, **of):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(environment.subprocess, "run", fails)
    assert environment.gpu_name("cuda:1") == "the second"


@pytest.mark.parametrize(
    ("device", "listed", "asked"), [("cuda:1", None, 1), ("cuda", "5", 5), ("cuda", "GPU-8932f937", "GPU-8932f937")]
)
def test_energy_is_of_the_gpu_that_cuda_sees(monkeypatch, device, listed, asked):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    counted = []
    nvml = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counted.append(handle) or 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with meters.Energy(device):
        pass
    assert counted == [asked, asked]


def test_energy_is_what_nvml_counted(monkeypatch):
    counts = iter([5000, 9000])
    nvml = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with meters.Energy("cuda:0") as energy:
        pass
    assert energy.joules == 4
    with meters.Energy("cpu") as energy:
        pass
    assert energy.joules is None


def test_without_nvml_there_is_no_energy(monkeypatch):
    def fails():
        raise RuntimeError("no driver")

    for nvml in (None, types.SimpleNamespace(NVMLError=RuntimeError, nvmlInit=fails)):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        with meters.Energy("cuda") as energy:
            pass
        assert energy.joules is None


def test_the_suite_loads_no_torch_by_itself():
    script = """
import json
from sctrt.bench import command, worker
from sctrt.bench.suites import build, engines, kernels, pipeline, roofline, scaling
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    blocked = {"torch", "monai", "faiss", "onnxruntime", "openvino", "cupy", "matplotlib"}
    assert not blocked & set(run_blocked(script, blocked))


def test_an_unknown_device_is_refused(tmp_path):
    how = {"threads": 1, "seed": 0, "minutes": 1, "sizes": None, "model": None, "say": print}
    with pytest.raises(DeviceError, match="expected device cpu or cuda"):
        run.run((), device="tpu", **how)


# Floors and growth


def test_a_floor_is_the_larger_of_bytes_and_operations():
    work_row = row(
        precision="fp32",
        runtime="x",
        stages_s={"encoder": 4.0, "fuse": 2.0, "other": 1.0},
        gflop={"encoder": 100.0},
        gbyte={"encoder": 10.0, "fuse": 10.0},
    )
    rates = [
        row(name="a", case="copy", rate={"value": 5.0, "unit": "GB/s"}),
        row(name="b", case="copy", rate={"value": 10.0, "unit": "GB/s"}),
        row(name="c", case="fma", precision="fp32", rate={"value": 50.0, "unit": "GFLOP/s"}),
        row(name="d", case="mm", precision="bf16", rate={"value": 500.0, "unit": "GFLOP/s"}),
    ]
    stages = {stage.name: stage for stage in roofline.roofline(work_row, rates).stages}
    assert (stages["encoder"].bound, stages["encoder"].floor_s, stages["encoder"].gap) == ("arithmetic", 2, 2)
    assert (stages["fuse"].bound, stages["fuse"].floor_s, stages["fuse"].gap) == ("memory", 1, 2)
    assert stages["other"].floor_s is None and stages["other"].gap is None
    assert roofline.roofline(work_row, rates[:2]) is None


def test_least_traffic_counts_each_array_once():
    pytest.importorskip("torch")
    from sctrt.bench.flops import traffic_of, work_of

    a = Architecture(channels=8, blocks=1, groups=4, input_channels=1, output_channels=1)
    gb = 4e-9
    found = traffic_of(a, (8, 12, 16), (10, 10, 10))
    assert found["fuse"] == pytest.approx(5 * 8 * 12 * 16 * gb)
    assert found["extract"] == pytest.approx(6 * 8 * 12 * 16 * gb)
    assert found["resample"] == pytest.approx(2 * (8 * 12 * 16 + 1000) * gb)
    assert found["codebook"] == pytest.approx(7 * 3 * 8 * 12 * 16 / 16 * gb)
    whole, half = (work_of(a, (8, 12, 16), slices) for slices in ((8, 12, 16), (4, 6, 8)))
    assert whole["decoder"] == pytest.approx(2 * half["decoder"])
    assert 0 < whole["attention"] < whole["encoder"] + whole["decoder"]


def test_growth_is_fitted_against_voxels():
    points = [
        scaling.Point(x=x, voxels=1000 * x, seconds=row(2.0 * x).seconds, peak_memory_mb=100 + x / 10)
        for x in (4, 1, 2)
    ]
    rows = [row(gflop={"encoder": n, "decoder": n, "attention": n / 2}) for n in (16.0, 1.0, 4.0)]
    series = scaling.fitted("s", "x", points, rows)
    assert [point.x for point in series.points] == [1, 2, 4]
    assert series.time.value == pytest.approx(1) and series.operations.value == pytest.approx(2)
    assert series.memory_fixed_mb == pytest.approx(100)
    assert series.memory_bytes_per_x == pytest.approx(100)
    assert series.attention_share == [0.25] * 3


def test_the_tasks_of_workers_are_there():
    from sctrt.bench import worker

    package = Path(worker.__file__).parent
    for module in worker.TASKS.values():
        assert "def measure(request: Request, save: Save)" in (package / f"{module.replace('.', '/')}.py").read_text()


def test_case_facts_are_json(tmp_path, pet):
    case = cases.save_case(tmp_path / "c", "c", pet, what="x")
    assert json.loads((case.folder / "case.json").read_text())["shape_zyx"] == list(TINY.shape)
    assert np.array_equal(case.pet.array, pet.array) and np.array_equal(case.pet.affine, pet.affine)
