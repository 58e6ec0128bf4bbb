"""How much device memory an engine needs; arithmetic, no runtime."""

from __future__ import annotations

from itertools import pairwise

from ..bundle import Architecture
from . import Part

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# The scores of one slice are made whole up to WHOLE_SCORES bytes, else in chunks of at most CHUNK_SCORES and no fewer
# than LEAST_CHUNKS: with up to 8 TensorRT-RTX 1.7 makes them side by side and nothing is gained, from 12 on in turn
# (benchmarks/results/engine_memory.json).
WHOLE_SCORES = 8 * 2**20
CHUNK_SCORES = 64 * 2**20
LEAST_CHUNKS = 16
LIVE_IMAGES = 7.1  # images of the first level's width that are alive at once, at worst
FLAT_BYTES = 32 * 2**20  # that even the smallest engine wants


def attention_chunks(positions: int, bytes_each: int) -> int:
    """In how many chunks the queries of one slice go through attention over `positions` latents."""
    scores = positions * positions * bytes_each
    return 1 if scores <= WHOLE_SCORES else max(LEAST_CHUNKS, -(-scores // CHUNK_SCORES))


def workspace_bytes(architecture: Architecture, height: int, width: int, batch: int, precision: str) -> int:
    """Device memory that an engine needs beside its weights, inputs and outputs: never below what was reported.

    Of slices [batch, _, height, width] in pixels; of the encoder or the decoder, whichever needs more; for the layers
    that `network.KEEP_FP32` names. Fitted to benchmarks/results/engine_memory.json.
    """
    size = BYTES[precision]
    positions = (height // architecture.factor) * (width // architecture.factor)
    scores = positions * positions * size
    attention = scores // attention_chunks(positions, size)
    return FLAT_BYTES + batch * (int(LIVE_IMAGES * height * width * architecture.channels * size) + attention)


def weight_bytes(architecture: Architecture, part: Part, precision: str) -> int:
    """Of one half's parameters."""
    return parameters(architecture, part) * BYTES[precision]


def parameters(a: Architecture, part: Part) -> int:
    """Number of weights of one half, its 1x1 convolution beside the codebook counted in."""
    widths = [a.channels * m for m in a.multipliers]
    top = widths[-1]
    middle = _middle(top)
    between = _convolution(a.latent_channels, a.code_dim, 1)
    if part == "encoder":
        ends = _convolution(a.input_channels, a.channels, 3) + 2 * top + _convolution(top, a.latent_channels, 3)
        levels, blocks, previous = widths, a.blocks, a.channels
        between += _adapter(a.code_dim, a.adapter_channels) if a.adapter_channels else 0
    else:
        ends = _convolution(a.latent_channels, top, 3) + 2 * widths[0] + _convolution(widths[0], a.output_channels, 3)
        levels, blocks, previous = widths[::-1], a.blocks + 1, top
        between = _convolution(a.code_dim, a.latent_channels, 1)
    total = ends + middle + between + sum(_convolution(width, width, 3) for width in levels[:-1])
    for before, width in pairwise([previous, *levels]):
        total += _block(before, width) + (blocks - 1) * _block(width, width)
    return total


def _adapter(code_dim: int, channels: int) -> int:
    ends = _convolution(code_dim, channels, 3) + 2 * channels + _convolution(channels, code_dim, 3)
    return ends + _middle(channels)


def _middle(channels: int) -> int:
    return 2 * _block(channels, channels) + 4 * _convolution(channels, channels, 1) + 2 * channels


def _block(inputs: int, outputs: int) -> int:
    shortcut = _convolution(inputs, outputs, 1) if inputs != outputs else 0
    return 2 * inputs + _convolution(inputs, outputs, 3) + 2 * outputs + _convolution(outputs, outputs, 3) + shortcut


def _convolution(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side * side + outputs
