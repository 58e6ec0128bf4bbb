"""How much device memory a network takes, estimated from its architecture; pure arithmetic."""

from __future__ import annotations

from ..bundle import Architecture
from . import Part

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of a value
LIVE = 6  # tensors of the widest layer's size at once: those of a residual block, and one to convolve in
SCORES_BYTES = 64 << 20  # of attention's scores at once: queries go through it in chunks


def workspace_bytes(architecture: Architecture, part: Part, height: int, width: int, batch: int, precision: str) -> int:
    """Upper estimate of what one half's layers need for `batch` slices of height x width pixels."""
    widths = [architecture.channels * m for m in architecture.multipliers]
    entering = widths if part == "encoder" else [*widths[1:], widths[-1]]  # the decoder widens before it narrows
    pixels = height * width
    widest = max(max(w, e) * pixels // 4**level for level, (w, e) in enumerate(zip(widths, entering, strict=True)))
    latents = pixels // architecture.factor**2
    scores = min(latents**2 * BYTES[precision], max(SCORES_BYTES, latents * BYTES[precision]))
    attention = LIVE * widths[-1] * latents * BYTES[precision] + 2 * scores
    return batch * max(LIVE * widest * BYTES[precision], attention)


def weight_bytes(architecture: Architecture, part: Part, precision: str) -> int:
    """Upper estimate of one half's weights."""
    widths = [architecture.channels * m for m in architecture.multipliers]
    blocks = architecture.blocks + (part == "decoder")
    convolved = 0
    for before, after in zip(widths, widths[1:] + widths[-1:], strict=True):
        wide = max(before, after)
        convolved += 2 * blocks * wide * max(before, after) * 9 + wide * wide * 10
    middle = widths[-1] ** 2 * (4 * 9 + 4)
    return (convolved + middle) * BYTES[precision]
