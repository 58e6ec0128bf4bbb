"""Ordered-subsets expectation maximisation for TOF data."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import TofGeometry
from .projector import TofProjector
from .slabs import by_slab

MIN_EXPECTED = 1e-6  # counts; keeps the ratio finite on lines that miss the body
MIN_SENSITIVITY = 1e-6  # share of the largest


def subset_order(n_subsets: int) -> list[int]:
    """Subset numbers in bit-reversed order, so that neighbours in time lie far apart in angle; any number works."""
    bits = max(1, (n_subsets - 1).bit_length())
    reversed_numbers = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [number for number in reversed_numbers if number < n_subsets]


def field_of_view(geometry: TofGeometry, device: str | torch.device = "cpu") -> Tensor:
    """[y, x] float32: 1 inside the circle that all views see, 0 outside."""
    y = torch.arange(geometry.ny, device=device) - (geometry.ny - 1) / 2
    x = torch.arange(geometry.nx, device=device) - (geometry.nx - 1) / 2
    radius = min(geometry.ny, geometry.nx) / 2
    return (y[:, None] ** 2 + x[None] ** 2 < radius**2).float()


def osem(
    projector: TofProjector,
    data: Tensor,
    *,
    attenuation: Tensor | None = None,
    additive: Tensor | None = None,
    n_iterations: int = 2,
    n_subsets: int = 12,
    scale: float = 1.0,
) -> Tensor:
    """Maximises the Poisson likelihood of expected = scale * attenuation * projection + additive.

    Args:
        projector: of the image's geometry.
        data: [V, S, T, Z] counts.
        attenuation: [V, S, 1, Z] factors; None for none (NAC).
        additive: [V, S, T, Z] expected scatter and randoms [counts]; None for none.
        n_iterations: passes over all data.
        n_subsets: groups of views, one update each; they need not be equal in size.
        scale: counts per unit of projected activity.

    Returns:
        [Z, Y, X] float32, zero outside the field of view, in the unit that `scale` divides out.

    Raises:
        ValueError: no iteration is asked for, or there are more subsets than views.
    """
    n_views = projector.geometry.n_views
    if n_iterations < 1 or not 1 <= n_subsets <= n_views:
        raise ValueError(
            f"expected at least one iteration and 1 to {n_views} subsets (one view each at most), "
            f"got {n_iterations} iterations of {n_subsets} subsets"
        )

    def of_slab(part: slice) -> Tensor:
        return _osem_of_slab(
            projector,
            data[..., part].contiguous(),
            None if attenuation is None else attenuation[..., part].contiguous(),
            None if additive is None else additive[..., part].contiguous(),
            n_iterations,
            n_subsets,
            scale,
        )

    return torch.cat(by_slab(data.shape[-1], data.device, of_slab))


def _osem_of_slab(
    projector: TofProjector,
    data: Tensor,
    attenuation: Tensor | None,
    additive: Tensor | None,
    n_iterations: int,
    n_subsets: int,
    scale: float,
) -> Tensor:
    """`osem` of all the slices that it is given, at once."""
    n_views = projector.geometry.n_views
    fov = field_of_view(projector.geometry, data.device)
    subsets = [range(first, n_views, n_subsets) for first in range(n_subsets)]
    sensitivities = [_sensitivity(projector, data, attenuation, views) for views in subsets]
    image = fov.repeat(data.shape[-1], 1, 1)
    for _ in range(n_iterations):
        for number in subset_order(n_subsets):
            views = subsets[number]
            part = slice(views.start, None, n_subsets)
            expected = projector.forward(image, views)
            if attenuation is not None:
                expected *= attenuation[part]
            expected *= scale
            if additive is not None:
                expected += additive[part]
            ratio = data[part] / expected.clamp_(min=MIN_EXPECTED)
            if attenuation is not None:
                ratio *= attenuation[part]
            image = image * projector.adjoint(ratio, views) / sensitivities[number] * fov
    return image


def _sensitivity(projector: TofProjector, data: Tensor, attenuation: Tensor | None, views: range) -> Tensor:
    """[Z, Y, X] sum of a subset's weights in each voxel, kept above a small share of its maximum."""
    if attenuation is None:
        weights = data.new_ones(len(views), data.shape[1], 1, data.shape[-1])
    else:
        weights = attenuation[views.start :: views.step]
    sensitivity = projector.sensitivity(weights, views)
    return sensitivity.clamp_(min=MIN_SENSITIVITY * float(sensitivity.max()))
