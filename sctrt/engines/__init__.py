"""The runtimes that run the encoder and the decoder, behind one Protocol; one small file a runtime."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import layers
from ..bundle import Bundle
from ..errors import DeviceError, EngineError
from ..gpus import card

Part = Literal["encoder", "decoder"]
BuiltRuntime = Literal["tensorrt", "tensorrt-rtx"]

# By device, in order of preference: runtime -> (module to be installed, pip line, file of this package).
RUNTIMES: dict[str, dict[str, tuple[str, str, str]]] = {
    "cpu": {
        "native": ("sctrt._native", "pip install sctrt", "native"),
        "openvino": ("openvino", "pip install sctrt", "openvino"),
        "onnxruntime": ("onnxruntime", "pip install 'sctrt[onnxruntime]'", "onnxruntime"),
        "torch": ("torch", "pip install 'sctrt[train]'", "torch"),
    },
    "cuda": {
        "tensorrt": ("tensorrt", "pip install 'sctrt[tensorrt]'", "tensorrt"),
        "tensorrt-rtx": ("tensorrt_rtx", "pip install 'sctrt[tensorrt-rtx]'", "tensorrt"),
        "torch": ("torch", "pip install 'sctrt[train]'", "torch"),
    },
}
# Runtimes whose engines are built beforehand, for slices of fixed sizes.
BUILT: tuple[BuiltRuntime, ...] = ("tensorrt", "tensorrt-rtx")
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "bf16", "fp32")}  # the first is the default
NO_BF16 = "the native kernels run bf16 only where the CPU has AVX-512 BF16"


class Engine(Protocol):
    """Runs one network on one device. Knows tensors; not PET, planes or files.

    Inputs and outputs are C-contiguous on `device`; the caller owns both; work is enqueued on
    `stream`; a call neither allocates (but for the runtime's own workspace, where it takes none of the
    caller's) nor synchronises (but on a CPU, where it returns when the output is there).
    """

    version: str  # of the runtime

    def workspace(self, batch: int) -> int:
        """Bytes of device memory that a call with `batch` slices must be lent; 0 where the runtime has its own."""
        ...

    def __call__(self, inputs: Any, outputs: Any, *, stream: int = 0, workspace: Any = None) -> None:
        """Fills `outputs` [N, C', H', W'] float32 from `inputs` [N, C, H, W] float32.

        `workspace`, an array of at least `workspace(N)` bytes on the device, is free again when the work is done.

        Raises:
            EngineError: the network does not accept this shape, or the runtime failed.
            OutOfMemory: the device has too little memory left; with fewer slices it may suffice.
        """
        ...


def threads_with_slices(runtime: str) -> int:
    """How many threads of a CPU a runtime gives slices of their own, where a call has enough of them."""
    if runtime != "native":
        return 1
    from ..layers import threads

    return threads()


def installed(runtime: str, device: str) -> bool:
    """Whether the runtime's own package is there; a folder of type stubs in its name is not."""
    spec = importlib.util.find_spec(RUNTIMES[device][runtime][0])
    return spec is not None and spec.origin is not None


def check_device(device: str) -> None:
    """Refuses what is no name of a device.

    Raises:
        DeviceError: neither "cpu" nor "cuda[:i]".
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceError(f"expected device cpu or cuda[:i], got {device!r}")


def choose(runtime: str, device: str, unfit: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Picks the runtime.

    Args:
        runtime: a name, or "auto" for the first that is installed and fits.
        device: "cpu" or "cuda[:i]".
        unfit: runtimes that are not to be picked for "auto" -> why.

    Returns:
        The runtime's name, and why it was chosen.

    Raises:
        DeviceError: there is no such device.
        EngineError: unknown runtime, or its package is not installed.
    """
    check_device(device)
    kind = device.split(":")[0]
    known = RUNTIMES[kind]
    if runtime != "auto":
        if runtime not in known:
            raise EngineError(f"expected runtime auto, {', '.join(known)} on {kind}, got {runtime!r}")
        if not installed(runtime, kind):
            raise EngineError(f"runtime {runtime} is not installed; {known[runtime][1]}")
        return runtime, "asked for"
    absent = []
    for name in known:
        if unfit and name in unfit:
            continue
        if installed(name, kind):
            reason = f"first of {', '.join(known)} that is installed" + (" and fits" if unfit else "")
            reason += f" (absent: {', '.join(absent)})" if absent else ""
            return name, "; ".join([reason, *(f"{name}: {why}" for name, why in (unfit or {}).items())])
        absent.append(name)
    raise EngineError(f"no runtime is installed for {kind}; {next(iter(known.values()))[1]}")


def first_built() -> BuiltRuntime:
    """The first installed of the runtimes whose engines are built beforehand.

    Raises:
        EngineError: none is; with the pip line of each.
    """
    for name in BUILT:
        if installed(name, "cuda"):
            return name
    pip_lines = " or ".join(RUNTIMES["cuda"][name][1] for name in reversed(BUILT))
    raise EngineError(f"none of {', '.join(BUILT)} is installed; {pip_lines}")


def unfit_for(device: str, precision: str) -> dict[str, str]:
    """The runtimes that do not run this precision -> why, for `choose`."""
    if device != "cpu" or precision == "fp32":
        return {}
    return {"onnxruntime": "runs fp32"} | ({} if layers.multiplies_bf16() else {"native": NO_BF16})


def default_precision(device: str) -> str:
    """What is computed in where nobody asks for another precision."""
    return PRECISIONS[device.split(":")[0]][0]


def load(
    bundle: Bundle,
    part: Part,
    runtime: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    engine_dir: Path | None = None,
) -> Engine:
    """Loads one half of the network.

    Args:
        bundle: checked by `bundle.load`.
        part: which half.
        runtime: a name from `choose`.
        device: which, for `BUILT` runtimes, is CUDA's current device already.
        precision: one of `PRECISIONS`, where the runtime has it.
        size: (height, width) of the slices in pixels, for both halves; `BUILT` runtimes need it, others take any.
        engine_dir: where built engines lie; by default see `cache.engine_directory`.

    Raises:
        EngineError: the runtime cannot load the network at this precision, or no engine is built that fits.
        OutOfMemory: the device has too little memory.
    """
    kind = device.split(":")[0]
    if precision not in PRECISIONS[kind]:
        raise EngineError(f"expected precision {' or '.join(PRECISIONS[kind])} on {kind}, got {precision!r}")
    if runtime in BUILT:
        if size is None:
            raise EngineError(f"the engines of {runtime} are built for slices of one size; pass size=(height, width)")
        return _file(runtime, kind).load(bundle, part, runtime, precision, size, engine_dir, card(device))
    return _file(runtime, kind).load(bundle, part, precision, device)


def slice_size(
    bundle: Bundle,
    runtime: str,
    height: int,
    width: int,
    *,
    device: str,
    precision: str,
    engine_dir: Path | None = None,
    shape: tuple[int, int, int] | None = None,
    budget: int | None = None,
) -> tuple[int, int]:
    """The size that slices are padded to: their own, or that of the smallest engine pair that holds them.

    Args:
        shape: (z, y, x) of the volume on the model's grid, which the command in an error names.
        budget: bytes of the GPU's memory that may be used, for the same.

    Raises:
        EngineError: no engine is built that fits; the message names the command that builds it.
    """
    if runtime not in BUILT:
        return height, width
    file = _file(runtime, device.split(":")[0])
    return file.slice_size(bundle, runtime, precision, (height, width), engine_dir, card(device), shape, budget)


def _file(runtime: str, kind: str) -> Any:
    """The module of this package that runs it."""
    _, pip_line, file = RUNTIMES[kind][runtime]
    try:
        return importlib.import_module(f".{file}", __name__)
    except ImportError as error:
        raise EngineError(f"runtime {runtime} cannot be imported: {error}; {pip_line}") from error


def check_arrays(inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
    """Refuses host arrays that a runtime would misread or read past, since it sees their memory alone.

    Raises:
        EngineError: not float32 [N, C, H, W], C-contiguous and not empty.
    """
    for name, array in (("inputs", inputs), ("outputs", outputs)):
        if array.dtype != np.float32 or array.ndim != 4 or array.size == 0 or not array.flags.c_contiguous:
            layout = "C-contiguous" if array.flags.c_contiguous else "strided"
            raise EngineError(
                f"expected {name} float32 [N, C, H, W], C-contiguous, got {array.dtype} {array.shape}, {layout}; "
                "pass numpy.ascontiguousarray(array, dtype='float32')"
            )
