"""PyTorch: the oracle for the other runtimes, on a CPU or a GPU. It runs the weights, not the ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bundle import Bundle
from ..errors import EngineError, OutOfMemory
from ..model.autoencoder import VQAutoencoder
from ..model.checkpoint import load_bundle_weights
from . import Part, check_arrays

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Array = Any  # of any library, on a GPU


class TorchEngine:
    """One half of the network on the CPU, eager."""

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


class TorchCudaEngine:
    """One half of the network on a GPU, eager, channels last, all of it in one precision.

    It shares the caller's arrays; activations are in PyTorch's own memory, which it keeps for the next call. fp32
    means fp32: convolutions do not round to TF32.
    """

    version = torch.__version__

    def __init__(self, network: Callable[[Tensor], Tensor], precision: str, device: torch.device) -> None:
        self._network, self._dtype, self._device = network, DTYPES[precision], device

    def workspace(self, batch: int) -> int:
        return 0

    def __call__(self, inputs: Array, outputs: Array, *, stream: int = 0, workspace: Any = None) -> None:
        given, wanted = (self._tensor(name, array) for name, array in (("inputs", inputs), ("outputs", outputs)))
        try:
            own = torch.cuda.ExternalStream(stream, self._device)
            few_sizes = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
            with torch.inference_mode(), torch.cuda.stream(own), few_sizes:
                made = self._network(given.to(self._dtype, memory_format=torch.channels_last))
                if made.shape != wanted.shape:
                    raise EngineError(
                        f"expected outputs {tuple(made.shape)} for inputs {tuple(given.shape)}, "
                        f"got {tuple(wanted.shape)}"
                    )
                wanted.copy_(made)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"PyTorch is out of memory on input {tuple(given.shape)}: {error}") from error
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed on input {tuple(given.shape)}: {error}") from error

    def _tensor(self, name: str, array: Array) -> Tensor:
        """The array's own memory as a tensor."""
        tensor = torch.as_tensor(array, device=self._device)
        if tensor.dtype != torch.float32 or tensor.ndim != 4 or tensor.numel() == 0 or not tensor.is_contiguous():
            layout = "C-contiguous" if tensor.is_contiguous() else "strided"
            raise EngineError(
                f"expected {name} float32 [N, C, H, W] on {self._device}, C-contiguous, "
                f"got {tensor.dtype} {tuple(tensor.shape)}, {layout}"
            )
        return tensor


def load(bundle: Bundle, part: Part, precision: str, device: str) -> TorchEngine | TorchCudaEngine:
    """Builds the network from the bundle's weights.

    Raises:
        EngineError: this PyTorch cannot use the GPU.
        OutOfMemory: the weights do not fit.
    """
    model = _half(load_bundle_weights(bundle).eval(), part)
    network = model.encode if part == "encoder" else model.decode
    if device == "cpu":
        return TorchEngine(network, precision)
    if not torch.cuda.is_available():
        raise EngineError(
            f"PyTorch {torch.__version__} has no CUDA or finds no GPU; install a build for CUDA from pytorch.org, or "
            "use --runtime tensorrt-rtx"
        )
    place = torch.device("cuda", int(device.partition(":")[2] or 0))
    try:
        model.to(place, DTYPES[precision]).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{device} has too little memory for the {part}'s weights: {error}") from error
    return TorchCudaEngine(network, precision, place)


def _half(model: VQAutoencoder, part: Part) -> VQAutoencoder:
    """The model without what the other half needs, so that it takes no memory."""
    others = {"encoder": ("decoder", "post_quant_conv"), "decoder": ("encoder", "quant_conv", "adapter")}
    for name in ("quantize", *others[part]):
        setattr(model, name, torch.nn.Identity())
    return model
