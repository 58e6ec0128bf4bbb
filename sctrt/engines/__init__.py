"""The runtimes that run the encoder and the decoder, behind one Protocol; one small file a runtime."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal, Protocol

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
    if kind not in RUNTIMES:
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
    module = importlib.import_module(f".{RUNTIMES[device.split(':')[0]][runtime][2]}", __name__)
    return module.load(bundle, part, precision)
