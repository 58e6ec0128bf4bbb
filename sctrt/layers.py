"""The network's layers on a CPU: NumPy arrays in float32, images [height, width, channels]. It knows no network.

Channels are padded with zeros to a multiple of `BLOCK`, but for those of an image that is convolved as it is. Every
function fills arrays of the caller's; it takes as many threads as OpenMP has, and the result does not depend on how
many. `instructions` is for tests: one of `available()`, "" for the best of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _native

BLOCK = 16
PANEL = 64  # columns that a product of matrices reads side by side: see csrc/layers.h
TILE = 4  # output pixels on a side that Winograd's algorithm computes at once
# Its polynomials are evaluated at 0, +-A, +-B and infinity: see Note [Winograd] in csrc/convolution.h.
A, B = 0.625, 1.5

Floats = NDArray[np.float32]


def padded(channels: int) -> int:
    """The next multiple of BLOCK."""
    return -(-channels // BLOCK) * BLOCK


def available() -> list[str]:
    """Instruction sets that this machine has and the layers are compiled for, the best first."""
    return _native.layer_instructions()


def multiplies_bf16() -> bool:
    """Whether this machine can do what is asked for by `bf16`."""
    return _native.layers_multiply_bfloat16()


def threads() -> int:
    """That a layer called from this thread is shared out among."""
    return _native.layer_threads()


def use_threads(count: int) -> None:
    """Sets `threads()` of the calling thread, and of no other; ValueError below 1."""
    _native.set_layer_threads(count)


@dataclass(frozen=True)
class Convolution:
    """A convolution's weights as the kernels read them; `convolution` makes it."""

    weights: Floats  # flat
    bias: Floats  # [padded out_channels]
    side: int
    stride: int
    pad: int  # pixels of zeros above and to the left; below and to the right as needed
    winograd: bool
    bf16: bool  # pairs of channels in bfloat16: see Note [Pairs] in csrc/vector.h


@dataclass(frozen=True)
class Activation:
    """What an image goes through before a convolution: x * scale + shift, then perhaps SiLU."""

    scale: Floats  # [channels]
    shift: Floats
    silu: bool


def convolution(
    weights: NDArray, bias: NDArray, *, stride: int = 1, pad: int | None = None, as_is: bool = False, bf16: bool = False
) -> Convolution:
    """Prepares the weights of a convolution; by Winograd's algorithm where that is possible.

    Args:
        weights: [out_channels, channels, side, side], finite.
        bias: [out_channels].
        stride: 1 or 2.
        pad: zeros above and to the left; by default as many as keep the image where it is.
        bf16: weights and images are rounded to bfloat16 where they are multiplied; not with `as_is`.
        as_is: the images' channels are not padded: for the first layer, whose images have few.
    """
    outputs, channels, side, _ = weights.shape
    before = side // 2 if pad is None else pad
    winograd = (side, stride, before) == (3, 1, 1) and not as_is
    inputs = channels if as_is else padded(channels)
    full = np.zeros((padded(outputs), inputs, side, side))
    full[:outputs, :channels] = weights
    if winograd:
        g = _winograd_matrix()
        matrices = (g @ full @ g.T).transpose(2, 3, 1, 0).reshape(-1, inputs, len(full))
    else:
        matrices = full.transpose(2, 3, 1, 0).reshape(1, -1, len(full))
    bf16 = bf16 and not as_is
    if bf16:
        matrices = _pairs(matrices)
    panels = [matrices[..., i : i + PANEL].ravel() for i in range(0, len(full), PANEL)]
    packed_bias = np.zeros(len(full), np.float32)
    packed_bias[:outputs] = bias
    weights = np.concatenate(panels).astype(np.float32, copy=False)
    return Convolution(weights, packed_bias, side, stride, before, winograd, bf16)


def _pairs(matrices: NDArray) -> Floats:
    """[n, rows, columns] -> [n, rows / 2, columns] words that hold rows 2 i and 2 i + 1 in bfloat16, ties to even."""
    bits = matrices.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return (rounded[:, ::2] | rounded[:, 1::2] << 16).view(np.float32)


def _winograd_matrix() -> NDArray[np.float64]:
    """[6, 3]: the kernel's polynomial at each point, over what the points' Lagrange polynomials have in common."""
    points = np.array([0, A, -A, B, -B])
    common = [np.prod([p - q for q in points if q != p]) for p in points]
    rows = np.stack([np.ones(5), points, points**2], axis=1) / np.array(common)[:, None]
    return np.vstack([rows, [0, 0, 1]])


def sums_for(layer: Convolution, height: int, width: int) -> NDArray[np.float64]:
    """An array for `convolve` to fill: of an output image, by rows, sums and sums of squares of each channel."""
    return np.empty((-(-height // TILE) if layer.winograd else height, 2, len(layer.bias)))


def convolve(
    layer: Convolution,
    image: Floats,
    out: Floats,
    *,
    activation: Activation | None = None,
    doubled: bool = False,
    accumulate: bool = False,
    sums: NDArray[np.float64] | None = None,
    instructions: str = "",
) -> Floats:
    """Fills `out` with the convolution of an image.

    Args:
        layer: from `convolution`.
        image: [height, width, channels].
        out: [height', width', padded out_channels]: height and width, doubled if asked for, over the stride, rounded
            up.
        activation: applied to the image first; outside the image are zeros all the same.
        doubled: each pixel of the image becomes 2 x 2 equal ones first.
        accumulate: add to `out` rather than overwrite it.
        sums: from `sums_for`; filled.
        instructions: see the module.

    Returns:
        out.
    """
    scale, shift, silu = (None, None, False) if activation is None else vars(activation).values()
    _native.convolve(
        image,
        layer.weights,
        layer.bias,
        layer.side,
        layer.stride,
        layer.pad,
        layer.winograd,
        layer.bf16,
        scale,
        shift,
        silu,
        doubled,
        out,
        accumulate,
        sums,
        instructions,
    )
    return out


def group_norm(
    sums: NDArray[np.float64], pixels: int, weight: Floats, bias: Floats, groups: int, eps: float, out: Floats
) -> Floats:
    """Fills `out` with the group normalisation of an image as a scale and a shift of each channel.

    Args:
        sums: of the image, which `convolve` has filled.
        pixels: of the image.
        weight: [channels], as yet not padded.
        bias: likewise.
        groups: into which the channels are divided.
        eps: added to the variance.
        out: [2, padded channels]: scale, shift.

    Returns:
        out.
    """
    scale, shift = out
    _native.normalise(sums, pixels, weight, bias, groups, eps, scale, shift)
    return out


def panel_floats(positions: int, channels: int) -> int:
    """Of the workspace of `attend`."""
    return -(-positions // PANEL) * PANEL * channels


def attend(inputs: Floats, panels: Floats, out: Floats, *, bf16: bool = False, instructions: str = "") -> Floats:
    """Fills `out` with attention of all positions over all: softmax to base 2 of queries keys^T, times values.

    Args:
        inputs: [positions, 3 * channels]: queries, keys, values. Scale the queries by log2(e) / sqrt(channels).
        panels: [panel_floats(positions, channels)], written over.
        out: [positions, channels].
        bf16: queries, keys, weights and values are rounded to bfloat16 where they are multiplied.
        instructions: see the module.

    Returns:
        out.
    """
    _native.attend(inputs, panels, out, bf16, instructions)
    return out
