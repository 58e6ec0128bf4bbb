"""What one would write first: PyTorch, one slice after the other, median of the planes on the host; and torch.compile.

A whole body so takes minutes, so that a stated number of slices of each plane is timed and scaled up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pipeline_case import Case

from sctrt.bench.cases import spread_out
from sctrt.bench.plain import Slice, torch_network, torch_slice
from sctrt.bundle import Bundle
from sctrt.planes import PLANES

WARM_UP = 2  # calls
MEDIAN_PART = 8  # np.median is timed on one part in so many of the volume


def plain_loop(bundle: Bundle, case: Case, device: str, precision: str, slices: int) -> dict[str, Any]:
    """The plain loop's seconds for the whole volume, scaled up from `slices` of each plane (0: all of them).

    Args:
        precision: "fp32"; "tf32": fp32 as PyTorch has it, whose convolutions are TF32; or "fp16".
    """
    network, dtype = torch_network(bundle, device, precision)
    run = torch_slice(network, dtype, device, bundle.manifest.architecture.factor, bundle.manifest.padding)
    planes = _time_planes(run, case.channels, slices, batch=1)
    network_s = sum(row["scaled_s"] for row in planes.values())
    median_s = _median_seconds(case.channels.shape[1:])
    return {"planes": planes, "network_s": network_s, "median_s": median_s, "total_s": network_s + median_s}


def compiled(
    bundle: Bundle,
    case: Case,
    device: str,
    precision: str,
    slices: int,
    batch: int,
    save: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """torch.compile of encoder and decoder, channels last, `batch` slices a call; otherwise as the plain loop.

    `save` is called with what is known after each plane, since compiling may take longer than there is time.
    """
    import torch

    network, dtype = torch_network(bundle, device, precision)
    network = network.to(memory_format=torch.channels_last)
    network.encode, network.decode = (torch.compile(half, dynamic=False) for half in (network.encode, network.decode))
    factor, padding = bundle.manifest.architecture.factor, bundle.manifest.padding
    run = torch_slice(network, dtype, device, factor, padding, torch.channels_last)
    planes = _time_planes(run, case.channels, slices, batch, save)
    return {"batch": batch, "planes": planes, "network_s": sum(row["scaled_s"] for row in planes.values())}


def _time_planes(
    run: Slice,
    channels: NDArray[np.float32],
    slices: int,
    batch: int,
    save: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, dict[str, Any]]:
    planes = {}
    for axis, plane in reversed(list(enumerate(PLANES))):  # most slices first
        total = channels.shape[axis + 1]
        starts = spread_out(-(-slices // batch), total // batch)
        images = np.moveaxis(channels, axis + 1, 0)
        batches = [np.ascontiguousarray(images[i * batch : (i + 1) * batch]) for i in starts]
        start = time.perf_counter()
        for _ in range(WARM_UP):
            run(batches[0])
        warm_up_s = time.perf_counter() - start
        seconds = []
        for inputs in batches:
            start = time.perf_counter()
            run(inputs)
            seconds.append((time.perf_counter() - start) / batch)
        low, middle, high = np.percentile(seconds, [5, 50, 95])
        planes[plane] = {
            "slices": total,
            "timed": len(seconds) * batch,
            "slice_ms": {"median": middle * 1e3, "p5": low * 1e3, "p95": high * 1e3},
            "warm_up_s": warm_up_s,
            "scaled_s": float(np.mean(seconds)) * total,
        }
        save({"planes": planes})
    return planes


def _median_seconds(shape: tuple[int, ...]) -> float:
    """np.median of three volumes of this shape, scaled up from a part of it."""
    part = -(-shape[0] // MEDIAN_PART)
    planes = np.random.default_rng(0).random((3, part, *shape[1:]), np.float32)
    start = time.perf_counter()
    np.median(planes, axis=0)
    return (time.perf_counter() - start) * shape[0] / part
