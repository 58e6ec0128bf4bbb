"""How many floating-point operations the network needs, counted by PyTorch's own counter without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ..bundle import Architecture
from ..engines import Part


@dataclass(frozen=True)
class Flops:
    """Of one slice; a multiplication and an addition are two."""

    convolutions: float
    attention: float

    @property
    def total(self) -> float:
        return self.convolutions + self.attention


@cache
def flops(architecture: Architecture, part: Part, height: int, width: int) -> Flops:
    """What one half of the network needs for a slice of `height` x `width` pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..model.autoencoder import VQAutoencoder

    f = architecture.factor
    with torch.device("meta"), torch.inference_mode():
        model = VQAutoencoder(architecture)
        counter = FlopCounterMode(display=False)
        with counter:
            if part == "encoder":
                model.encode(torch.empty(1, architecture.input_channels, height, width))
            else:
                model.decode(torch.empty(1, architecture.code_dim, height // f, width // f))
    operations = counter.get_flop_counts()["Global"]
    convolutions = sum(count for name, count in operations.items() if "convolution" in str(name))
    return Flops(convolutions, sum(operations.values()) - convolutions)
