"""The stand-in for CUDA itself (csrc/shim): would it show a kernel that is wrong? Kernels: shim_kernels.cu."""

import re
import subprocess
import time

import numpy as np
import pytest

import shim
from sctrt import ops
from sctrt.errors import DeviceError

SEEDS = [0, 1, 2, 20240]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("shim") / "kernels")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("shim") / "sanitized", *SANITIZERS)


def compiled(path, *options):
    if shim.tool("g++") is None:
        pytest.skip("g++ is not installed")
    folder = shim.ROOT / "csrc" / "shim"
    options = ("-std=c++17", "-O1", "-D__CUDACC__", "-DSCTRT_SHIM", f"-I{folder}", f"-I{folder.parent}", *options)
    sources = ("-x", "c++", shim.ROOT / "tests" / "shim_kernels.cu", folder / "runtime.cpp")
    shim.run("g++", *options, *sources, "-o", path)
    return path


def run(program, case, seed=0):
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program, case, str(seed)], capture_output=True, text=True, env=environment)


def printed(program, case, seed=0):
    done = run(program, case, seed)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", ["reverse", "sums", "places", "large locals", "first bytes", "after a failure"])
def test_right_kernels_are_right_in_every_order(program, case, seed):
    assert printed(program, case, seed) == "0"


@pytest.mark.parametrize("case", ["reverse without barrier", "sums without second barrier"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_gives_wrong_results(program, case, seed):
    assert int(printed(program, case, seed)) > 0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("leave early", r"shim: the barrier at .*shim_kernels.cu:\d+ was reached by 63 of 64 threads of a block"),
        ("part ways", r"shim: threads of a block wait at different barriers, .*shim_kernels.cu:\d+ and .*:\d+"),
    ],
)
def test_a_barrier_that_not_all_threads_reach_fails(program, case, message):
    done = run(program, case)
    assert done.returncode < 0
    assert re.search(message, done.stderr)


def test_blocks_and_threads_run_in_order_or_scattered(program):
    ordered = [f"{block}.{thread}" for block in range(3) for thread in range(5)]
    assert printed(program, "order").split() == ordered
    orders = [printed(program, "order", seed).split() for seed in SEEDS[1:]]
    for order in orders:
        assert order != ordered
        assert sorted(order) == ordered
    assert orders[0] != orders[1]
    assert printed(program, "order", SEEDS[1]).split() == orders[0]


@pytest.mark.parametrize(("case", "seconds"), [("million", 1), ("million with barrier", 10)])
def test_a_million_threads_do_not_take_long(program, case, seconds):
    start = time.perf_counter()
    assert printed(program, case, 1) == "1000000"
    assert time.perf_counter() - start < 3 * seconds  # of a machine that does other things too


@pytest.mark.parametrize("case", ["no blocks", "too many threads", "too many rows"])
def test_launches_that_no_gpu_takes_are_refused(program, case):
    assert printed(program, case) == "the kernel launch failed: invalid configuration argument\n"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("write past the end", "heap-buffer-overflow"),
        ("write past shared memory", "global-buffer-overflow"),
        ("overflow", "signed integer overflow"),
        ("unaligned vector", "misaligned address"),
    ],
)
def test_the_sanitizers_bite(sanitized, case, message):
    done = run(sanitized, case)
    assert done.returncode
    assert message in done.stderr
    assert "shim_kernels.cu" in done.stderr


@pytest.mark.parametrize("case", ["write inside", "reverse", "sums", "places", "large locals"])
def test_the_sanitizers_let_right_kernels_pass(sanitized, case):
    assert run(sanitized, case, seed=1).returncode == 0


def test_kernels_run_on_the_device_and_stream_of_their_arrays(shim_gpu):
    volume = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    with shim_gpu.library.cuda.Device(1):
        there = shim_gpu.put(volume)
    planes = ops.extract_planes(there, "axial", 0, 3, stream=1234)
    assert planes.device.id == 1
    assert (shim.shim().last_device(), shim.shim().last_stream()) == (1, 1234)
    np.testing.assert_array_equal(shim_gpu.get(planes)[:, 0], volume)
    with pytest.raises(DeviceError, match="out must lie where volume does, on cuda:0, got cuda:1"):
        ops.extract_planes(shim_gpu.put(volume), "axial", 0, 3, out=planes)


def test_without_a_gpu_the_shim_says_so(shim_gpu):
    array = shim_gpu.put(np.zeros((3, 4, 5), np.float32))
    shim.shim().reset(0, 0)
    assert ops.cuda_device_count() == 0
    with pytest.raises(DeviceError, match="no GPU is visible to CUDA; check the driver with nvidia-smi"):
        ops.extract_planes(array, "axial", 0, 3)


def test_the_build_says_that_it_is_the_shim(shim_gpu):
    assert ops.build_info()["cuda_architectures"] == "shim"
    assert ops.cuda_device_count() == shim.DEVICES
