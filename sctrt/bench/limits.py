"""What the machine can do at most: copies of memory, fused multiply-adds, matrix products at half precision."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from .measure import Array, Case, Machine, Run, Way, Work

CHANNELS = 256  # of vq-f4's middle level


def limit_cases(machine: Machine, elements: int, side: int) -> Iterator[Case]:
    """What the machine can do: copy float32 in memory (bytes read and written), and float32 fused multiply-adds.

    Args:
        machine: to measure.
        elements: of the copy.
        side: of the square matrices that are multiplied.
    """
    yield _copy_case(machine, elements)
    yield _fma_case(machine, side)


def matrix_cases(machine: Machine, side: int, batch: int, pixels: int, precision: str = "fp16") -> Iterator[Case]:
    """What the matrix units can do at a low precision, on random data: the rate that the network is held against.

    Args:
        machine: to measure.
        side: of the square matrices.
        batch: images that are convolved together.
        pixels: a side of them; they have the channels of vq-f4's middle level.
        precision: "fp16", "bf16" or "fp32".
    """
    torch = machine.torch
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]

    def random(*shape: int) -> Any:
        return torch.randn(shape, device=machine.device).to(dtype)

    def product() -> Run:
        one, other = random(side, side), random(side, side)
        return lambda: torch.mm(one, other)

    def convolution() -> Run:
        image = random(batch, CHANNELS, pixels, pixels).to(memory_format=torch.channels_last)
        weight = random(CHANNELS, CHANNELS, 3, 3).to(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(image, weight, padding=1)

    flops = 2.0 * batch * pixels**2 * 9 * CHANNELS**2
    yield Case("limits", f"{precision} matrix product", [Way("torch mm", product, Work(2.0 * side**3, "GFLOP/s"))])
    yield Case(
        "limits",
        f"{precision} 3x3 convolution",
        [Way("torch conv2d, channels last", convolution, Work(flops, "GFLOP/s"))],
    )


def _copy_case(machine: Machine, elements: int) -> Case:
    source, target = (machine.put(np.ones(elements, np.float32)) for _ in range(2))

    def numpy_copy() -> Run:
        bounds = np.linspace(0, elements, machine.threads + 1).astype(int)
        parts = [(target[a:b], source[a:b]) for a, b in pairwise(bounds)]
        return lambda: list(machine.pool.map(lambda part: np.copyto(*part), parts))

    def torch_copy() -> Run:
        to, of = machine.tensor(target), machine.tensor(source)
        return lambda: to.copy_(of)

    work = Work(2 * source.nbytes, "GB/s")
    ways = [Way("torch copy_", torch_copy, work)]
    if machine.gpu:
        ways.append(Way("cupy copyto", lambda: _cupy_copy(machine, target, source), work))
    else:
        ways.append(Way("np.copyto", lambda: lambda: np.copyto(target, source), work))
        if machine.threads > 1:
            ways.append(Way(f"np.copyto in {machine.threads} threads", numpy_copy, work))
    return Case("limits", "copy", ways)


def _cupy_copy(machine: Machine, target: Array, source: Array) -> Run:
    to, of = machine.cupy.asarray(target), machine.cupy.asarray(source)
    return lambda: machine.cupy.copyto(to, of)


def _fma_case(machine: Machine, side: int) -> Case:
    rng = np.random.default_rng(0)
    one, other = (machine.put(rng.random((side, side), np.float32)) for _ in range(2))
    product = machine.put(np.empty((side, side), np.float32))

    def torch_product() -> Run:
        machine.torch.set_float32_matmul_precision("highest")  # no TF32
        a, b, out = (machine.tensor(array) for array in (one, other, product))
        return lambda: machine.torch.mm(a, b, out=out)

    work = Work(side**3, "GFMA/s")
    ways = [Way("torch mm", torch_product, work)]
    if not machine.gpu:
        ways.append(Way("np.matmul", lambda: lambda: np.matmul(one, other, out=product), work))
        ways.append(_convolution(machine, side))
    return Case("limits", "fma", ways)


def _convolution(machine: Machine, side: int) -> Way:
    """Where the matrix products do not know the processor and leave AVX-512 alone, oneDNN does not."""
    channels, pixels = 128, max(8, side // 16)

    def prepare() -> Run:
        torch = machine.torch
        image, weight = torch.rand(4, channels, pixels, pixels), torch.rand(channels, channels, 3, 3)
        return lambda: torch.nn.functional.conv2d(image, weight)

    return Way("torch conv2d", prepare, Work(4 * (channels * 3 * (pixels - 2)) ** 2, "GFMA/s"))
