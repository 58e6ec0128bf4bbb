"""How many operations the network needs, counted by PyTorch's own counter without computing anything; and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from ..bundle import Architecture
from ..engines import Part
from ..planes import PLANES, padded_size


@dataclass(frozen=True)
class Flops:
    """Of one slice; a multiplication and an addition are two."""

    convolutions: float
    attention: float

    @property
    def total(self) -> float:
        return self.convolutions + self.attention


def flops(architecture: Architecture, part: Part, height: int, width: int) -> Flops:
    """What one half of the network needs for a slice of `height` x `width` pixels."""
    return _flops(architecture.model_dump_json(), part, height, width)


@cache
def _flops(architecture_json: str, part: Part, height: int, width: int) -> Flops:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..model.autoencoder import VQAutoencoder

    architecture = Architecture.model_validate_json(architecture_json)
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


def needed_flops(architecture: Architecture, half: Part, grid: Sequence[int], plan: Mapping[str, Any]) -> float:
    """Of all slices of the three planes [z, y, x], padded to the network's factor alone.

    What a runtime computes on top (slices padded to an engine's size, overlaps of tiles) is not counted as work; nor
    is, where a plane goes in tiles, the attention from tile to tile.
    """
    z, y, x = grid
    work = 0.0
    for plane, slices in zip(PLANES, (z, y, x), strict=True):
        height, width = padded_size((z, y, x), plane, architecture.factor)
        seen = plan[plane]["engine"] if plan[plane]["tiled"] else (height, width)
        share = height * width / (seen[0] * seen[1])
        work += slices * share * flops(architecture, half, *seen).total
    return work


def work_of(architecture: Architecture, grid: Sequence[int], slices_run: Sequence[int]) -> dict[str, float]:
    """GFLOP of "encoder" and "decoder" for the slices of a body's box (z, y, x) that are run; "attention" of both."""
    z, y, x = grid
    found = {"encoder": 0.0, "decoder": 0.0, "attention": 0.0}
    halves: tuple[Part, ...] = ("encoder", "decoder")
    for half in halves:
        for plane, slices in zip(PLANES, slices_run, strict=True):
            one = flops(architecture, half, *padded_size((z, y, x), plane, architecture.factor))
            found[half] += slices * one.total / 1e9
            found["attention"] += slices * one.attention / 1e9
    return found


def traffic_of(architecture: Architecture, grid: Sequence[int], pet: Sequence[int]) -> dict[str, float]:
    """GB that each stage must read and write at least: its inputs and outputs once, nothing in between.

    Args:
        grid: (z, y, x) of the body's box on the model's grid.
        pet: (z, y, x) of the PET.
    """
    gb = 4 / 1e9  # of a float32
    box, voxels, planes = prod(grid) * gb, prod(pet) * gb, len(PLANES)
    a = architecture
    latents = planes * box / a.factor**2
    return {
        "preprocess": voxels + a.input_channels * box,
        "extract": 2 * planes * a.input_channels * box,
        "encoder": planes * a.input_channels * box + a.code_dim * latents,
        "codebook": (2 * a.code_dim + 1) * latents,
        "decoder": a.code_dim * latents + planes * box,
        "insert": 2 * planes * box,
        "fuse": (planes + 2) * box,
        "resample": 2 * (box + voxels),
    }
