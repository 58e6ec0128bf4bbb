"""Where arrays lie and work runs: the host, or one GPU through CuPy. The handful of calls that a synthesis needs.

The one file that imports CuPy. Kernels and engines are given `stream` and run on a device's arrays by themselves.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ops
from .errors import DeviceError, OutOfMemory
from .timeline import Span, Timeline

Array = ops.Array


class Clock:
    """When the device did what, by stage. Nothing waits before `timeline` is asked for.

    Args:
        mark: notes the moment at which the device reaches this point of its work.
        between: seconds from one mark to another, once all work is done.
    """

    def __init__(self, mark: Callable[[], Any], between: Callable[[Any, Any], float]) -> None:
        self._mark, self._between = mark, between
        self._stages: list[tuple[str, Any, Any, dict[str, str | int]]] = []
        self._of: dict[str, str | int] = {}
        self._origin = mark()
        self._begun = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is done inside as part of a stage."""
        start = self._mark()
        try:
            yield
        finally:
            self._stages.append((name, start, self._mark(), self._of))

    @contextmanager
    def working_on(self, **of: str | int) -> Iterator[None]:
        """Notes with the stages inside what they work on."""
        before, self._of = self._of, of
        try:
            yield
        finally:
            self._of = before

    def timeline(self) -> Timeline:
        """All stages until now. Work on the device must have ended."""
        wall = time.perf_counter() - self._begun
        spans = (
            Span(name, self._between(self._origin, start), self._between(start, end), of)
            for name, start, end, of in self._stages
        )
        return Timeline(tuple(spans), wall, self._begun)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, "other" for the time of no stage, and "total"; see `timeline`."""
        return self.timeline().seconds()


class Host:
    """The CPU and its memory: NumPy."""

    name = "cpu"
    stream = 0

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, array: NDArray[Any]) -> Array:
        """The array itself."""
        return array

    def get(self, array: Array) -> NDArray[Any]:
        """The array itself."""
        return array

    def fill(self, out: Array, array: NDArray[Any]) -> None:
        """Copies a host array into `out`."""
        out[...] = array

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Array:
        return np.empty(shape, dtype)

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        return np.full(shape, value, np.float32)

    def free_bytes(self) -> int | None:
        """None: memory of the host is not planned."""
        return None

    def peak_bytes(self) -> int | None:
        return None

    def release(self) -> None:
        pass

    def clock(self) -> Clock:
        return Clock(time.perf_counter, lambda start, end: end - start)

    def facts(self) -> dict[str, Any]:
        return {"device": self.name}


class Gpu:
    """One GPU: CuPy's arrays, and one stream that all work is enqueued on.

    `with gpu:` makes it and its stream current, and turns CuPy's memory errors into OutOfMemory; it may be nested.

    Args:
        index: as CUDA counts.

    Raises:
        DeviceError: CuPy is not installed, the kernels were built without CUDA, or there is no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._cupy = _import_cupy()
        _check_present(index)
        self.name = f"cuda:{index}"
        self._device = self._cupy.cuda.Device(index)
        self._entered = 0
        self._current = ExitStack()
        with self._device:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            self._free_at_first, _ = self._cupy.cuda.runtime.memGetInfo()
        self._least_free = self._free_at_first

    @property
    def stream(self) -> int:
        """cudaStream_t."""
        return self._stream.ptr

    def __enter__(self) -> Gpu:
        if self._entered == 0:
            self._current.enter_context(self._device)
            self._current.enter_context(self._stream)
        self._entered += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._entered -= 1
        if self._entered == 0:
            self._current.close()
        if isinstance(error, self._cupy.cuda.memory.OutOfMemoryError):
            raise OutOfMemory(f"{self.name}: {str(error).rstrip('.')}") from error

    def put(self, array: NDArray[Any]) -> Array:
        """A copy on the GPU."""
        with self:
            copy = self.empty(array.shape, array.dtype.name)
            self.fill(copy, array)
            return copy

    def get(self, array: Array) -> NDArray[Any]:
        """A copy on the host; waits for the work that is enqueued."""
        with self:
            copy = array.get(stream=self._stream)
            self._stream.synchronize()
            return copy

    def fill(self, out: Array, array: NDArray[Any]) -> None:
        """Copies a host array into `out`."""
        with self:
            out.set(np.ascontiguousarray(array), stream=self._stream)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> Array:
        with self:
            array = self._cupy.empty(shape, dtype)
            self._note_memory()
            return array

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        with self:
            array = self.empty(shape)
            array[...] = np.float32(value)
            return array

    def free_bytes(self) -> int:
        """What can be allocated: free memory, and what CuPy and PyTorch keep for reuse."""
        with self:
            free = self._note_memory() + self._cupy.get_default_memory_pool().free_bytes()
        torch = _torch_on_gpu()
        if torch is not None:
            free += torch.cuda.memory_reserved(self._device.id) - torch.cuda.memory_allocated(self._device.id)
        return free

    def peak_bytes(self) -> int:
        """Most memory in use since this object was made, less what was in use before, engines and caches included.

        The GPU's own count, taken at each allocation: other programs on the same GPU are counted too.
        """
        return self._free_at_first - self._least_free

    def release(self) -> None:
        """Gives memory that libraries keep for reuse back to the GPU."""
        gc.collect()  # the frames of an error that was handled may hold arrays in a circle
        with self:
            self._cupy.get_default_memory_pool().free_all_blocks()
        torch = _torch_on_gpu()
        if torch is not None:
            torch.cuda.empty_cache()

    def clock(self) -> Clock:
        """By events on the stream, so that nothing waits."""

        def mark() -> Any:
            with self:
                event = self._cupy.cuda.Event()
                event.record(self._stream)
                return event

        def between(start: Any, end: Any) -> float:
            end.synchronize()
            return self._cupy.cuda.get_elapsed_time(start, end) / 1000

        return Clock(mark, between)

    def facts(self) -> dict[str, Any]:
        """What a report tells of it."""
        with self:
            known = self._cupy.cuda.runtime.getDeviceProperties(self._device.id)
            _, total = self._cupy.cuda.runtime.memGetInfo()
        name = known["name"]
        return {
            "device": self.name,
            "device_name": name.decode() if isinstance(name, bytes) else name,
            "device_memory_mb": total / 1e6,
            "cupy": self._cupy.__version__,
        }

    def _note_memory(self) -> int:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        self._least_free = min(self._least_free, free)
        return free


Device = Host | Gpu


def open_device(name: str) -> Device:
    """The device of a name "cpu" or "cuda[:i]".

    Raises:
        DeviceError: it cannot be used.
    """
    if name == "cpu":
        return Host()
    _, _, index = name.partition(":")
    return Gpu(int(index or 0))


def _torch_on_gpu() -> Any:
    """PyTorch, where this process uses it on a GPU; else None."""
    torch = sys.modules.get("torch")
    in_use = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch if in_use else None


def _import_cupy() -> Any:
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DeviceError(
            f"a GPU is used through CuPy, which cannot be imported ({error}); run: pip install 'sctrt[cuda]'"
        ) from error
    return cupy


def _check_present(index: int) -> None:
    if ops.build_info()["cuda"] is None:
        raise DeviceError(
            "this build's kernels have no CUDA; with nvcc on PATH run: SCTRT_CUDA=ON pip install --force-reinstall ."
        )
    count = ops.cuda_device_count()
    if count == 0:
        raise DeviceError("no GPU that CUDA can use is here; see what nvidia-smi says, or use --device cpu")
    if index >= count:
        there = ", ".join(f"cuda:{i}" for i in range(count))
        raise DeviceError(f"expected one of the GPUs {there}, got cuda:{index}")
