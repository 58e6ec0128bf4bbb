"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError
from . import Part, check_arrays

# OpenVINO picks bf16 by itself where the CPU has it, so the precision is always named.
PRECISION = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """One compiled network; inputs and outputs are NumPy arrays that it reads and writes in place."""

    version = openvino.__version__

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._request = model.create_infer_request()

    def workspace(self, batch: int) -> int:
        return 0

    def __call__(
        self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], *, stream: int = 0, workspace: Any = None
    ) -> None:
        check_arrays(inputs, outputs)
        try:
            self._request.set_input_tensor(openvino.Tensor(inputs, shared_memory=True))
            self._request.set_output_tensor(openvino.Tensor(outputs, shared_memory=True))
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on input {inputs.shape}, output {outputs.shape}: {error}") from error
        made = tuple(self._request.get_output_tensor().shape)
        if made != outputs.shape:  # then OpenVINO has put the result into memory of its own
            raise EngineError(f"expected outputs {made} for inputs {inputs.shape}, got {outputs.shape}")


def load(bundle: Bundle, part: Part, precision: str, device: str) -> OpenVinoEngine:
    """Compiles one half of the network for this CPU."""
    path = bundle.onnx(part)
    settings = {"INFERENCE_PRECISION_HINT": PRECISION[precision], "PERFORMANCE_HINT": "LATENCY"}
    try:
        return OpenVinoEngine(openvino.Core().compile_model(str(path), device.upper(), settings))
    except RuntimeError as error:
        raise EngineError(f"OpenVINO {openvino.__version__} cannot compile {path}: {error}") from error
