"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError
from . import Part, check_arrays


class OnnxRuntimeEngine:
    """One session; outputs are written straight into the caller's NumPy array."""

    version = onnxruntime.__version__

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def workspace(self, batch: int) -> int:
        return 0

    def __call__(
        self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], *, stream: int = 0, workspace: Any = None
    ) -> None:
        check_arrays(inputs, outputs)
        binding = self._session.io_binding()
        try:
            binding.bind_cpu_input(self._input, inputs)
            binding.bind_output(self._output, "cpu", 0, np.float32, outputs.shape, outputs.ctypes.data)
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's own exception classes share no public base
            raise EngineError(
                f"ONNX Runtime failed on input {inputs.shape}, output {outputs.shape}: {error}"
            ) from error


def load(bundle: Bundle, part: Part, precision: str, device: str) -> OnnxRuntimeEngine:
    """Opens one half of the network."""
    if precision != "fp32":
        raise EngineError(f"ONNX Runtime runs fp32 on a CPU, got precision {precision!r}; use --runtime openvino")
    path = bundle.onnx(part)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    return OnnxRuntimeEngine(session)
