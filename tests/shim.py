"""The CUDA kernels run on the CPU (csrc/shim): builds them, and has arrays that pass for CuPy's on a GPU."""

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import types
import weakref
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / f"shim-{sys.implementation.cache_tag}"
DEVICES = 2
SEED = 20240


def tool(name):
    """Path of a program that came with this Python or is on PATH; None without one."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def missing_tools():
    """What `build` lacks here; empty where it can build. SCTRT_NATIVE names a module that is built already."""
    if "SCTRT_NATIVE" in os.environ:
        return []
    return [name for name in ("cmake", "ninja", os.environ.get("CXX", "c++")) if tool(name) is None]


def run(*command):
    """Runs a command; its output is in the error."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def build():
    """Compiles the module into build/, afresh only what has changed, and returns its path."""
    import pybind11

    paths = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": FOLDER,
    }
    options = [f"-D{name}={value}" for name, value in paths.items()]
    run(tool("cmake"), "-S", ROOT, "-B", FOLDER, "-GNinja", "-DSCTRT_SHIM=ON", *options)
    run(tool("cmake"), "--build", FOLDER)
    return FOLDER / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"


def load(path, name):
    """Imports an extension module from its path. The name's last part must be `_native`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Shim:
    """The module built on the shim, and what it can be asked: see csrc/shim/cuda_runtime.h."""

    def __init__(self, path):
        self.native = load(path, "shim._native")
        library = ctypes.CDLL(str(path))
        self.reset = library.shim_reset
        self.reset.argtypes = [ctypes.c_int, ctypes.c_uint64]
        self.allocate = library.shim_allocate
        self.allocate.argtypes, self.allocate.restype = [ctypes.c_size_t, ctypes.c_int], ctypes.c_void_p
        self.free = library.shim_free
        self.free.argtypes = [ctypes.c_void_p]
        self.last_stream = library.shim_last_stream
        self.last_stream.restype = ctypes.c_size_t
        self.last_device = library.shim_last_device


@functools.cache
def shim():
    return Shim(os.environ["SCTRT_NATIVE"] if "SCTRT_NATIVE" in os.environ else build())


current_devices = [0]  # the last is current


class Device:
    def __init__(self, number=0):
        self.id = number

    def __enter__(self):
        current_devices.append(self.id)

    def __exit__(self, *_):
        current_devices.pop()

    def synchronize(self):
        pass


class Stream:
    """Nothing waits on it, but kernels must be given its number."""

    def __init__(self, non_blocking=False):
        self.ptr = 0xC0DE

    def __enter__(self):
        current_streams.append(self)
        return self

    def __exit__(self, *_):
        current_streams.pop()

    def synchronize(self):
        assert shim().last_stream() == self.ptr


current_streams = []  # the last is current


class Event:
    """Time passes by one millisecond from one event to the next."""

    recorded = 0

    def record(self, stream):
        Event.recorded += 1
        self.time = Event.recorded

    def synchronize(self):
        pass


class OutOfMemoryError(MemoryError):
    """CuPy's."""


class Memory:
    """How much the stand-in's GPUs hold and what lies there; an allocation may be made to fail."""

    total = 8 << 30

    def __init__(self):
        self.used = 0
        self.reset()

    def reset(self, fail_at=None):
        """Counts anew; allocation number `fail_at`, from 0, fails once."""
        self.most, self.allocations, self.fail_at = self.used, 0, fail_at

    def take(self, size):
        number, self.allocations = self.allocations, self.allocations + 1
        if number == self.fail_at or self.used + size > self.total:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {self.used:,} bytes).")
        self.used += size
        self.most = max(self.most, self.used)

    def give_back(self, address, size):
        self.used -= size
        shim().free(address)


memory = Memory()


class NdArray:
    """An array in memory that the shim takes for a GPU's. Never written elements are NaN, or -1."""

    def __init__(self, host, device):
        self.host = host  # NumPy's view of the same memory
        self.device = device
        self.shape, self.dtype = host.shape, host.dtype

    @property
    def __cuda_array_interface__(self):
        strides = None if self.host.flags.c_contiguous else self.host.strides
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.host.ctypes.data, False),
            "strides": strides,
            "version": 3,
        }

    def __getitem__(self, key):
        return NdArray(self.host[key], self.device)

    def __setitem__(self, key, value):
        self.host[key] = on_gpu(value)

    def __imul__(self, other):
        self.host *= on_gpu(other)
        return self

    def __iadd__(self, other):
        self.host += on_gpu(other)
        return self

    def reshape(self, *shape):
        return NdArray(self.host.reshape(*shape), self.device)

    def mean(self, axis):
        return asarray(self.host.mean(axis=axis))

    def get(self, stream):
        assert shim().last_stream() in (stream.ptr, 0)  # nothing else would be waited for
        return self.host.copy()

    def set(self, array, stream):
        assert type(array) is np.ndarray and array.shape == self.shape and array.dtype == self.dtype
        self.host[...] = array


def on_gpu(operand):
    """CuPy computes with its own arrays and with numbers, not with NumPy's arrays."""
    assert isinstance(operand, NdArray | float | int | np.floating), type(operand)
    return operand.host if isinstance(operand, NdArray) else operand


def empty(shape, dtype=np.float32):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    size = count * dtype.itemsize
    memory.take(size)
    address = shim().allocate(size, current_devices[-1])
    block = (ctypes.c_char * size).from_address(address)
    weakref.finalize(block, memory.give_back, address, size)
    return NdArray(np.frombuffer(block, dtype).reshape(shape), Device(current_devices[-1]))


def asarray(array):
    copy = empty(array.shape, array.dtype)
    copy.host[...] = array
    return copy


def stand_in_for_cupy():
    """A module with CuPy's names, as far as sctrt and the tests use them."""
    NdArray.__module__ = "cupy"
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "stand-in"
    cupy.ndarray, cupy.empty, cupy.asarray, cupy.asnumpy = NdArray, empty, asarray, lambda array: array.host.copy()
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)
    cupy.cuda = types.SimpleNamespace(
        Stream=Stream,
        get_current_stream=lambda: current_streams[-1],
        Device=Device,
        Event=Event,
        get_elapsed_time=lambda start, end: float(end.time - start.time),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            memGetInfo=lambda: (memory.total - memory.used, memory.total),
            getDeviceProperties=lambda index: {"name": b"the CPU, through the shim"},
        ),
    )
    return cupy
