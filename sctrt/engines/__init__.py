"""The runtimes that run the encoder and the decoder, behind one Protocol; one small file a runtime."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import DeviceError, EngineError

Part = Literal["encoder", "decoder"]

# By device, in order of preference: runtime -> (module to be installed, pip line, file of this package).
RUNTIMES: dict[str, dict[str, tuple[str, str, str]]] = {
    "cpu": {
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
FIXED_SIZE = ("tensorrt", "tensorrt-rtx")  # runtimes whose engines are built ahead, for one height and width
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")}


class Engine(Protocol):
    """Runs one network on one device. Knows tensors; not PET, planes or files.

    Inputs and outputs are C-contiguous on `device`; the caller owns both; work is enqueued on
    `stream`; a call neither allocates (but for the runtime's own workspace, where it takes none of the
    caller's) nor synchronises (but on a CPU, where it returns when the output is there).
    """

    version: str  # of the runtime

    def workspace(self, batch: int) -> int:
        """Bytes of device memory that the caller must lend to a call with `batch` slices; 0 where it need not."""
        ...

    def __call__(self, inputs: Any, outputs: Any, *, stream: int = 0, workspace: Any = None) -> None:
        """Fills `outputs` [N, C', H', W'] float32 from `inputs` [N, C, H, W] float32, at every precision.

        Args:
            inputs: on the device.
            outputs: likewise.
            stream: a cudaStream_t as an integer; 0 on a CPU.
            workspace: of at least `workspace(N)` bytes on the device, of any shape and dtype; None where that is 0.

        Raises:
            EngineError: the network does not accept this shape, or the runtime failed.
            OutOfMemory: the device has too little memory for this call.
        """
        ...


def installed(runtime: str, device: str) -> bool:
    """Whether the runtime's own package can be imported."""
    return importlib.util.find_spec(RUNTIMES[device][runtime][0]) is not None


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
    passed = []
    for name in known:
        if unfit and name in unfit:
            passed.append(f"{name}: {unfit[name]}")
        elif installed(name, kind):
            reason = f"first of {', '.join(known)} that is installed" + (" and fits" if unfit else "")
            return name, reason + (f" (absent: {', '.join(passed)})" if passed else "")
        else:
            passed.append(name)
    raise EngineError(f"no runtime is installed for {kind}; {next(iter(known.values()))[1]}")


def default_precision(device: str) -> str:
    """What the network computes in where nothing is asked for: fp32 on a CPU, fp16 on a GPU."""
    return "fp32" if device == "cpu" else "fp16"


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
        device: "cpu" or "cuda[:i]".
        precision: one of PRECISIONS of the device, where the runtime has it.
        size: (height, width) [pixels] of the slices, as `slice_size` gives it; of no use to runtimes that take any.
        engine_dir: where built engines lie; None means the user's cache. Of use to runtimes of FIXED_SIZE.

    Raises:
        EngineError: the runtime cannot load the network at this precision, or no engine is built for it.
        OutOfMemory: the device has too little memory for the network.
    """
    kind = device.split(":")[0]
    if precision not in PRECISIONS[kind]:
        raise EngineError(f"expected precision {' or '.join(PRECISIONS[kind])} on {kind}, got {precision!r}")
    module = _module(runtime, kind)
    if runtime in FIXED_SIZE:
        return module.load(bundle, part, precision, runtime=runtime, device=device, size=size, engine_dir=engine_dir)
    return module.load(bundle, part, precision, device)


def slice_size(
    bundle: Bundle,
    runtime: str,
    height: int,
    width: int,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    engine_dir: Path | None = None,
) -> tuple[int, int]:
    """The (height, width) [pixels] that slices of `height` and `width` are padded to for this runtime.

    Themselves where the runtime takes any size, else those of the smallest engine that is built and holds them.

    Raises:
        EngineError: no engine holds them; the message names the command that builds one.
    """
    if runtime not in FIXED_SIZE:
        return height, width
    module = _module(runtime, device.split(":")[0])
    return module.slice_size(bundle, runtime, height, width, device=device, precision=precision, engine_dir=engine_dir)


def _module(runtime: str, kind: str) -> ModuleType:
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
