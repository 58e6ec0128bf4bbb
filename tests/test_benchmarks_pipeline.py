"""The benchmark of whole bodies runs without a GPU, counts work rightly, and outlives parts that fail."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
torch = pytest.importorskip("torch")

import gpu_pipeline  # noqa: E402
import pipeline_case  # noqa: E402
import pipeline_parts  # noqa: E402
import pipeline_peers  # noqa: E402
import pipeline_table  # noqa: E402
from pipeline_parts import Part  # noqa: E402

import stand_in_tensorrt  # noqa: E402
from sctrt import engines, gpus  # noqa: E402
from sctrt.bench import meters, plain  # noqa: E402
from sctrt.bench.cases import spread_out  # noqa: E402
from sctrt.bench.flops import flops, needed_flops  # noqa: E402
from sctrt.bench.parity import parity  # noqa: E402
from sctrt.bundle import Architecture, load  # noqa: E402

GMAC = 2e9  # operations


def test_work_of_vq_f4():
    """A 400 x 704 slice needs 985 + 1684 GMAC, of them 4 * H * W a pixel for attention; counted by hand."""
    expected = {"encoder": 985, "decoder": 1684}
    for half, gmac in expected.items():
        found = flops(Architecture(), half, 400, 704)
        assert found.total / GMAC == pytest.approx(gmac, rel=1e-3)
        assert found.attention == 2 * 4 * (400 * 704) ** 2


def test_work_of_a_volume_counts_each_slice_once():
    a, grid = Architecture(channels=8, blocks=1, groups=4), (12, 18, 32)
    whole = {plane: {"tiled": False} for plane in ("axial", "coronal", "sagittal")}
    by_hand = 12 * flops(a, "encoder", 20, 32).total + 18 * flops(a, "encoder", 12, 32).total
    by_hand += 32 * flops(a, "encoder", 12, 20).total  # 18 is padded to a multiple of 4
    assert needed_flops(a, "encoder", grid, whole) == by_hand
    tiled = {plane: {"tiled": True, "engine": [8, 8]} for plane in whole}
    pixels = 12 * 20 * 32 + 18 * 12 * 32 + 32 * 12 * 20
    expected = pixels / 64 * flops(a, "encoder", 8, 8).total
    assert needed_flops(a, "encoder", grid, tiled) == pytest.approx(expected)


def test_the_body_fills_its_box(tmp_path):
    case = pipeline_case.make_case(tmp_path, (24, 32, 40), load().manifest, seed=0)
    assert case.facts["network_grid_zyx"] == [24, 32, 40]
    assert case.channels.shape == (7, 24, 32, 40)
    np.testing.assert_array_equal(case.pet.array, pipeline_case.body((24, 32, 40), 4.0, 0).array)


@pytest.mark.parametrize("count, total", [(1, 9), (4, 9), (9, 9), (12, 9), (0, 9)])
def test_samples_are_spread_out(count, total):
    found = spread_out(count, total)
    assert len(found) == len(set(found)) == (count if 0 < count < total else total)
    assert min(found) >= 0 and max(found) < total
    assert abs(np.mean(found) - (total - 1) / 2) <= 1


def test_the_plain_loop_computes_the_network(tiny_bundle, rng):
    network, dtype = plain.torch_network(tiny_bundle, "cpu", "fp32")
    run = plain.torch_slice(network, dtype, "cpu", factor=4, padding=-1.0)
    images = rng.uniform(-1, 1, (2, 1, 18, 24)).astype(np.float32)
    padded = torch.nn.functional.pad(torch.from_numpy(images), (0, 0, 0, 2), value=-1.0)
    with torch.inference_mode():
        expected = network(padded)[:, 0, :18].numpy()
    np.testing.assert_allclose(run(images)[0], expected, atol=1e-5)


def test_planes_are_scaled_up(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(pipeline_peers.time, "perf_counter", lambda: float(next(ticks)))  # each reading a second later
    channels = np.zeros((1, 12, 10, 8), np.float32)
    planes = pipeline_peers._time_planes(lambda images: images, channels, slices=4, batch=2)
    seconds = {plane: row["scaled_s"] for plane, row in planes.items()}
    assert seconds == {"axial": 6, "coronal": 5, "sagittal": 4}  # half a second a slice
    assert {row["timed"] for row in planes.values()} == {4}


def test_ratios_and_shares_of_the_rate():
    half = {"pflop": 1.0, "tflops": 200.0}
    ours = {"total_s": 2.0, "network_s": 1.0, "encoder": dict(half), "decoder": dict(half)}
    parts = {
        "rates": {"tflops": {"fp16 matrix product": 800.0}},
        "sctrt torch fp16": ours,
        "sctrt tensorrt fp16": {"failed": "no GPU"},
        "loop fp32": {"total_s": 50.0, "network_s": 40.0},
        "compile fp16": {"network_s": 3.0},
    }
    pipeline_table.put_together({"parts": parts})
    assert ours["encoder"]["of_rate"] == {"fp16 matrix product": 0.25}
    assert ours["speedup"] == {"total": {"loop fp32": 25}, "network": {"loop fp32": 40, "compile fp16": 3}}


@pytest.fixture
def tensorrt_on_a_gpu(shim_gpu, monkeypatch, tmp_path):
    """Where the engines lie of a stand-in TensorRT, which computes them on the CPU; the CPU also plays the GPU."""
    trt = stand_in_tensorrt.make("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    monkeypatch.setattr(gpus, "present", lambda: (gpus.Card("a GPU", "8.6", 1 << 33),))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "export"))
    return tmp_path / "engines"


def test_engines_are_built_and_compared_with_pytorch(tensorrt_on_a_gpu, tiny_bundle, tmp_path, capsys):
    import compare_engine
    import to_engine

    options = {"runtime": "tensorrt-rtx", "precision": "fp32", "shape": "40,60,64", "engine_dir": tensorrt_on_a_gpu}
    to_engine.main(tiny_bundle.path, targets="", **options)
    assert capsys.readouterr().out.count(": built") == 2  # 64 x 64 alone
    compare_engine.main(tiny_bundle.path, **options)
    assert "64 x 64: 0.0" in (said := capsys.readouterr().out) and "against torch" in said
    case = pipeline_case.make_case(tmp_path, (40, 60, 64), tiny_bundle.manifest, seed=0)
    where = {"device": "cuda:0", "precision": "fp32", "engine_dir": tensorrt_on_a_gpu}
    found = parity(tiny_bundle, case.channels, "tensorrt-rtx", slices=2, **where)
    assert found["mean_hu"] < 0.1 and found["flipped_share"] < 0.01
    assert found["codes"] == 3 * 2 * 16 * 16  # all slices are padded to the engine's


def test_every_part_has_its_name_and_function():
    for device in ("cpu", "cuda"):
        names = [part.name for part in pipeline_parts.parts(device)]
        assert len(names) == len(set(names)) and names[0] == "rtx accepts"
        assert {part.kind for part in pipeline_parts.parts(device)} <= pipeline_parts.RUN.keys()
        runtimes = {part.runtime for part in pipeline_parts.parts(device) if part.runtime}
        assert runtimes == set(engines.RUNTIMES[device])


def test_the_most_memory_in_use_is_seen(monkeypatch):
    free = iter([(70, 100), (40, 100)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: next(free, (90, 100)))
    monkeypatch.setattr(meters, "POLL_S", 0.001)
    with meters.DeviceMemory("cuda:1") as memory:
        time.sleep(0.2)
    assert memory.peak_mb == 60e-6
    with meters.DeviceMemory("cpu") as memory:
        pass
    assert memory.peak_mb is None


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Runs lines of Python as if they were a part."""

    def run(lines, seconds=60.0):
        script = tmp_path / "part.py"
        script.write_text(f"import json, os, sys, time\nfound = {str(tmp_path / 'found.json')!r}\n{lines}")
        monkeypatch.setattr(sys, "argv", [str(script)])
        return gpu_pipeline._run_part(Part("rates"), Namespace(device="cpu"), tmp_path, seconds)

    return run


SAVE = "open(found, 'w').write(json.dumps({'a': 1}))\n"


def test_what_a_part_found_is_kept_however_it_ends(run_script, monkeypatch):
    assert run_script(SAVE) == {"a": 1}
    assert run_script(f"{SAVE}print('last words'); sys.exit(3)") == {"a": 1, "failed": "exit status 3; last words"}
    assert run_script(f"{SAVE}os.kill(os.getpid(), 11)") == {"a": 1, "failed": "ended by SIGSEGV"}
    assert run_script("pass", seconds=1) == {"failed": "not run: the time was up"}
    monkeypatch.setattr(gpu_pipeline, "LEAST_S", 0)
    assert run_script(f"{SAVE}time.sleep(60)", seconds=2) == {"a": 1, "failed": "stopped after 2 s"}


def test_the_whole_benchmark_without_a_gpu(tmp_path):
    path = tmp_path / "results" / "pipeline.json"
    command = [sys.executable, gpu_pipeline.__file__, "--device", "cpu", "--shape", "24,32,32", "--rates", "tiny"]
    command += ["--repeat", "2", "--loop-slices", "2", "--parity-slices", "1", "--json", path]
    command += ["--only", "rtx", "rates", "sctrt openvino", "sctrt torch", "loop"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert {"device", "versions", "commit", "shape_zyx", "seed", "case", "rtx_accepts"} <= report.keys()
    parts = report["parts"]
    assert not [row["failed"] for row in parts.values() if "failed" in row]
    for name in ("sctrt openvino fp32", "sctrt torch fp32"):
        row = parts[name]
        assert len(row["runs_s"]) == 2 and row["spread_s"][0] <= row["total_s"] <= row["spread_s"][1]
        assert row["parity"]["mean_hu"] < 0.1 and row["parity"]["flipped_share"] < 0.01
        assert 0 < row["host_share"] <= row["outside_engines_share"] < 1
        assert 0 < row["encoder"]["tflops"] and row["speedup"]["total"]["loop fp32"] > 0
        assert f"| {name} | " in done.stdout
    assert parts["loop fp32"]["planes"]["axial"]["timed"] == 2
    assert parts["loop check"]["scaled_over_whole"] > 0
    assert not any(way["runs"] is True for way in report["rtx_accepts"].values())  # there is no GPU
