"""The runtimes that run the encoder and the decoder, behind one Protocol; one small file a runtime."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import DeviceError, EngineError

Part = Literal["encoder", "decoder"]

# By device, in order of preference: runtime -> (module to be installed, pip line, file of this package).
# TensorRT and TensorRT-RTX take their place at the head of "cuda".
RUNTIMES: dict[str, dict[str, tuple[str, str, str]]] = {
    "cpu": {
        "openvino": ("openvino", "pip install sctrt", "openvino"),
        "onnxruntime": ("onnxruntime", "pip install 'sctrt[onnxruntime]'", "onnxruntime"),
        "torch": ("torch", "pip install 'sctrt[train]'", "torch"),
    },
    "cuda": {},
}
PRECISIONS = ("fp32", "bf16")


class Engine(Protocol):
    """Runs one network on one device. Knows tensors; not PET, planes or files.

    Inputs and outputs are C-contiguous on `device`; the caller owns both; work is enqueued on
    `stream`; a call neither allocates (but for the runtime's own workspace) nor synchronises (but on
    a CPU, where it returns when the output is there).
    """

    version: str  # of the runtime

    def __call__(self, inputs: Any, outputs: Any, *, stream: int = 0) -> None:
        """Fills `outputs` [N, C', H', W'] float32 from `inputs` [N, C, H, W] float32.

        Raises:
            EngineError: the network does not accept this shape, or the runtime failed.
        """
        ...


def installed(runtime: str, device: str) -> bool:
    """Whether the runtime's own package can be imported."""
    return importlib.util.find_spec(RUNTIMES[device][runtime][0]) is not None


def choose(runtime: str, device: str) -> tuple[str, str]:
    """Picks the runtime.

    Args:
        runtime: a name, or "auto" for the first that is installed.
        device: "cpu" or "cuda[:i]".

    Returns:
        The runtime's name, and why it was chosen.

    Raises:
        DeviceError: nothing runs on this device.
        EngineError: unknown runtime, or its package is not installed.
    """
    kind = device.split(":")[0]
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceError(f"expected device cpu or cuda[:i], got {device!r}")
    known = RUNTIMES[kind]
    if not known:
        raise DeviceError("this version of sctrt synthesises on the CPU only; use --device cpu")
    if runtime != "auto":
        if runtime not in known:
            raise EngineError(f"expected runtime auto, {', '.join(known)} on {kind}, got {runtime!r}")
        if not installed(runtime, kind):
            raise EngineError(f"runtime {runtime} is not installed; {known[runtime][1]}")
        return runtime, "asked for"
    absent = []
    for name in known:
        if installed(name, kind):
            reason = f"first of {', '.join(known)} that is installed"
            return name, reason + (f" (absent: {', '.join(absent)})" if absent else "")
        absent.append(name)
    raise EngineError(f"no runtime is installed for {kind}; {next(iter(known.values()))[1]}")


def load(bundle: Bundle, part: Part, runtime: str, *, device: str = "cpu", precision: str = "fp32") -> Engine:
    """Loads one half of the network.

    Args:
        bundle: checked by `bundle.load`.
        part: which half.
        runtime: a name from `choose`.
        precision: "fp32", or "bf16" where the runtime has it.

    Raises:
        EngineError: the runtime cannot load the network at this precision.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"expected precision {' or '.join(PRECISIONS)}, got {precision!r}")
    _, pip_line, file = RUNTIMES[device.split(":")[0]][runtime]
    try:
        module = importlib.import_module(f".{file}", __name__)
    except ImportError as error:
        raise EngineError(f"runtime {runtime} cannot be imported: {error}; {pip_line}") from error
    return module.load(bundle, part, precision)


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
