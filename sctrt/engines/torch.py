"""PyTorch on the CPU: the oracle for the other runtimes. It runs the weights, not the ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bundle import Bundle
from ..errors import EngineError
from ..model.checkpoint import load_bundle_weights
from . import Part, check_arrays


class TorchEngine:
    """One half of the network, eager."""

    version = torch.__version__

    def __init__(self, network: Callable[[Tensor], Tensor], precision: str) -> None:
        self._network = network
        self._bf16 = precision == "bf16"

    def workspace(self, batch: int) -> int:
        return 0

    def __call__(
        self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], *, stream: int = 0, workspace: Any = None
    ) -> None:
        check_arrays(inputs, outputs)
        try:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                made = self._network(torch.from_numpy(inputs))
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed on input {inputs.shape}: {error}") from error
        if made.shape != outputs.shape:
            raise EngineError(f"expected outputs {tuple(made.shape)} for inputs {inputs.shape}, got {outputs.shape}")
        torch.from_numpy(outputs).copy_(made)


def load(bundle: Bundle, part: Part, precision: str, device: str) -> TorchEngine:
    """Builds the network from the bundle's weights."""
    model = load_bundle_weights(bundle).eval()
    return TorchEngine(model.encode if part == "encoder" else model.decode, precision)
