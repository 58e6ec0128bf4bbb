"""A PET scan of an activity in a body: counts with noise, scatter and randoms, and the images made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..attenuation import hu_to_mu
from ..errors import VolumeError
from ..volume import Volume
from .geometry import DEFAULT_TOF_FWHM_PS, TofGeometry
from .osem import field_of_view, osem
from .projector import TofProjector
from .scan import COUNTS_PER_SLICE, POST_FILTER_FWHM_MM, PSF_FWHM_MM
from .scatter import scatter_shape
from .smoothing import smooth_axis, smooth_image

SCATTER_FRACTION = 0.37  # scatter / (trues + scatter); NEMA: Quadra 0.36 to 0.37 (Prenosil 2022), SIGNA PET/MR 0.425
RANDOMS_FRACTION = 0.25  # randoms / all coincidences
RANDOMS_AXIAL_SIGMA_MM = 60.0  # randoms follow the activity along the body only broadly
MAX_OUTSIDE_FIELD_OF_VIEW = 0.05  # share of the activity that may lie outside the circle that all views see
AXIS_TOLERANCE = 1e-3  # relative to the voxel size


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What a scanner measures, and what only a simulation knows of it: V views, S radial, T TOF bins, Z slices."""

    data: Tensor  # [V, S, T, Z] counts, trues + scatter + randoms, with Poisson noise or without
    attenuation: Tensor  # [V, S, 1, Z] the body's factors
    scatter: Tensor  # [V, S, T, Z] expected counts
    randoms: Tensor  # [V, S, T, Z] expected counts; the same in all lines of a slice (an expanded view)
    scale: float  # counts per unit of projected activity


def acquire(
    projector: TofProjector,
    activity: Tensor,
    mu: Tensor,
    *,
    counts_per_slice: float = COUNTS_PER_SLICE,
    scatter_fraction: float = SCATTER_FRACTION,
    randoms_fraction: float = RANDOMS_FRACTION,
    psf_mm: float = PSF_FWHM_MM,
    seed: int | None = 0,
) -> Acquisition:
    """Simulates the coincidences of one scan.

    The noise is drawn on the CPU, whatever the projector's device, so that a seed means the same draws everywhere.

    Args:
        projector: of the geometry in which the activity is given.
        activity: float32 [Z, Y, X], any unit, not negative.
        mu: float32 [Z, Y, X] linear attenuation coefficient at 511 keV [1/cm].
        counts_per_slice: mean number of true coincidences of a slice.
        scatter_fraction: scatter / (trues + scatter), in [0, 1).
        randoms_fraction: randoms / (trues + scatter + randoms), in [0, 1).
        psf_mm: FWHM of the blur of the activity before projection.
        seed: of the noise; None gives the expected counts, without noise.

    Raises:
        ValueError: a fraction is outside [0, 1), the counts are not positive, or no activity projects into the data.
    """
    if not counts_per_slice > 0:
        raise ValueError(f"counts_per_slice must be positive, got {counts_per_slice}")
    for name, fraction in (("scatter_fraction", scatter_fraction), ("randoms_fraction", randoms_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be in [0, 1), got {fraction}")
    g = projector.geometry
    attenuation = projector.attenuation_factors(mu)
    unattenuated = projector.forward(smooth_image(activity, psf_mm, (g.z_mm, g.voxel_mm, g.voxel_mm)))
    trues = unattenuated * attenuation
    total_trues = _sum(trues)
    if not total_trues > 0:
        raise ValueError("expected an activity inside the field of view, got projections without counts")
    scatter = scatter_shape(g, unattenuated, attenuation)
    del unattenuated
    scatter *= _times(scatter_fraction, total_trues, _sum(scatter))
    randoms = _randoms(g, trues, total_trues + _sum(scatter), randoms_fraction)

    scale = counts_per_slice * activity.shape[0] / float(total_trues)
    expected = trues.add_(scatter).add_(randoms).mul_(scale)
    data = expected if seed is None else _draw(expected, seed)
    return Acquisition(data, attenuation, scatter.mul_(scale), (scale * randoms).expand_as(data), scale)


def _draw(expected: Tensor, seed: int) -> Tensor:
    """Poisson counts, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(expected.cpu(), generator=generator).to(expected.device)


def _sum(values: Tensor) -> Tensor:
    """Sum on one thread: its rounding depends on how many share it, and one draw that flips shifts all after it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return values.sum()
    finally:
        torch.set_num_threads(n_threads)


def _times(fraction: float, base: Tensor, total: Tensor) -> float:
    """Factor that makes `total` the share `fraction` of its sum with `base`; 0 where there is nothing to scale."""
    return float(fraction / (1 - fraction) * base / total) if total > 0 else 0.0


def _randoms(geometry: TofGeometry, trues: Tensor, prompts: Tensor, fraction: float) -> Tensor:
    """[Z] randoms of each line and TOF bin: flat within a slice, smooth along the body."""
    profile = smooth_axis(trues.sum((0, 1, 2))[None], RANDOMS_AXIAL_SIGMA_MM / geometry.z_mm, 1)[0]
    bins_per_slice = trues[..., 0].numel()
    return profile / profile.sum() / bins_per_slice * (fraction / (1 - fraction)) * prompts


def reconstruct_nac(
    projector: TofProjector, acquisition: Acquisition, *, n_iterations: int = 2, n_subsets: int = 12
) -> Tensor:
    """The image [Z, Y, X] without attenuation correction, as clinics make it.

    Randoms are accounted for (scanners measure them); attenuation is not, and scatter is not either, since its
    estimate needs the attenuation map. The projector may have other voxels than the acquisition's, but the same
    lines, TOF bins and slices.
    """
    return osem(
        projector,
        acquisition.data,
        additive=acquisition.randoms,
        n_iterations=n_iterations,
        n_subsets=n_subsets,
        scale=acquisition.scale,
    )


def reconstruct_ac(
    projector: TofProjector, acquisition: Acquisition, mu: Tensor, *, n_iterations: int = 2, n_subsets: int = 12
) -> Tensor:
    """The image [Z, Y, X] corrected with any attenuation map, in the activity's unit.

    Scatter and randoms are the true expected ones whatever the map, so that two images differ by their maps'
    attenuation alone.

    Args:
        projector: as for `reconstruct_nac`.
        acquisition: of the body.
        mu: float32 [Z, Y, X] on the projector's grid [1/cm].
        n_iterations: passes over all data.
        n_subsets: updates in a pass.
    """
    return osem(
        projector,
        acquisition.data,
        attenuation=projector.attenuation_factors(mu),
        additive=acquisition.scatter + acquisition.randoms,
        n_iterations=n_iterations,
        n_subsets=n_subsets,
        scale=acquisition.scale,
    )


def simulate_nac(
    activity: Volume,
    ct: Volume,
    *,
    tof_fwhm_ps: float | None = DEFAULT_TOF_FWHM_PS,
    n_views: int = 48,
    n_iterations: int = 2,
    n_subsets: int = 12,
    counts_per_slice: float = COUNTS_PER_SLICE,
    scatter_fraction: float = SCATTER_FRACTION,
    seed: int = 0,
    kvp: int = 120,
    projection_voxel_mm: float | None = None,
    post_filter_mm: float = POST_FILTER_FWHM_MM,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Volume:
    """Simulates a scan and its reconstruction without attenuation correction.

    Args:
        activity: [z, y, x], any unit, on an axis-aligned LPS grid with the same spacing in y and x; the scanner's
            axis is z, through the middle of the grid.
        ct: [z, y, x] HU on the same grid.
        tof_fwhm_ps: coincidence timing resolution; None for a scanner without time of flight.
        n_views: angles over 180 degrees.
        n_iterations: OSEM iterations.
        n_subsets: OSEM subsets.
        counts_per_slice: mean number of true coincidences of a slice.
        scatter_fraction: scatter / (trues + scatter), in [0, 1).
        seed: of the noise.
        kvp: tube voltage of the CT, for its attenuation map.
        projection_voxel_mm: project from a grid of this in-plane voxel size, made by linear interpolation, instead of
            from the volume's own, so that the reconstruction does not invert the very model that made the data.
        post_filter_mm: FWHM of a Gaussian filter of the reconstructed image; 0 leaves it as it is.
        device: "cpu" or "cuda"; the noise is drawn on the CPU.
        progress: called with a line of text before each stage.

    Returns:
        [z, y, x] float32 on the activity's grid, unit "arbitrary" (too low by the attenuation).

    Raises:
        VolumeError: the grids are unfit or differ, the CT is not in HU, a value is not finite, the activity is
            negative or zero, or too much of it lies outside the circle that the scanner sees.
        ValueError: an unknown tube voltage, or sampling, counts or a scatter fraction that cannot be.
        DeviceError: a CUDA device is asked for and there is none.
    """
    geometry = transverse_geometry(activity, tof_fwhm_ps=tof_fwhm_ps, n_views=n_views)
    check_scannable(activity, ct, field_of_view(geometry).numpy())
    report = progress or (lambda _: None)
    report(f"preparing the projector ({n_views} views, {geometry.n_tof} TOF bins)")
    projector = TofProjector(geometry, device)
    image = torch.tensor(np.asarray(activity.array, np.float32), device=projector.device)
    mu = torch.tensor(hu_to_mu(ct.array, kvp), dtype=torch.float32, device=projector.device)

    source = projector
    if projection_voxel_mm is not None:
        source = TofProjector(with_voxels(geometry, projection_voxel_mm), device)
        image, mu = (resample_in_plane(values, geometry, source.geometry) for values in (image, mu))
    report(f"simulating the scan of {len(image)} slices")
    counts = {"counts_per_slice": counts_per_slice, "scatter_fraction": scatter_fraction}
    acquisition = acquire(source, image, mu, **counts, seed=seed)
    report(f"reconstructing without attenuation correction ({n_iterations} iterations of {n_subsets} subsets)")
    nac = reconstruct_nac(projector, acquisition, n_iterations=n_iterations, n_subsets=n_subsets)
    return Volume(smooth_image(nac, post_filter_mm, activity.spacing).cpu().numpy(), activity.affine)


def transverse_geometry(grid: Volume, *, tof_fwhm_ps: float | None, n_views: int) -> TofGeometry:
    """The geometry of a scanner whose axis is the volume's z axis, through the middle of the grid.

    Raises:
        VolumeError: the grid is oblique, its axes are not in the order x, y, z, or y and x spacing differ.
    """
    z_mm, y_mm, x_mm = grid.spacing
    directions = grid.affine[:3, :3] / np.array([x_mm, y_mm, z_mm])
    if not np.allclose(np.abs(directions), np.eye(3), atol=AXIS_TOLERANCE):
        raise VolumeError(
            f"expected a grid along the patient's axes (x, y, z), got the axes {directions.round(3).tolist()}; "
            "resample it to an axis-aligned LPS grid"
        )
    if not math.isclose(y_mm, x_mm, rel_tol=AXIS_TOLERANCE):
        raise VolumeError(
            f"expected the same voxel size in y and x, got {y_mm:g} and {x_mm:g} mm; resample it to square pixels"
        )
    return TofGeometry(grid.shape[1], grid.shape[2], x_mm, z_mm, n_views=n_views, tof_fwhm_ps=tof_fwhm_ps)


def with_voxels(geometry: TofGeometry, voxel_mm: float) -> TofGeometry:
    """The same lines, TOF bins and slices over an image of other voxels that covers at least the same area."""
    ny, nx = (math.ceil(n * geometry.voxel_mm / voxel_mm) for n in (geometry.ny, geometry.nx))
    return dataclasses.replace(geometry, ny=ny, nx=nx, voxel_mm=voxel_mm)


def resample_in_plane(image: Tensor, source: TofGeometry, target: TofGeometry) -> Tensor:
    """Linear interpolation of each slice [y, x] from one geometry's voxels to another's; zero outside.

    Onto coarser voxels the interpolation kernel is widened to their size.
    """
    rows = _interpolation(source.ny, target.ny, target.voxel_mm / source.voxel_mm).to(image)
    columns = _interpolation(source.nx, target.nx, target.voxel_mm / source.voxel_mm).to(image)
    return torch.matmul(torch.matmul(rows, image), columns.T)


def _interpolation(n_source: int, n_target: int, step: float) -> Tensor:
    """[n_target, n_source] weights of a triangular kernel; both axes share their centre, `step` in source samples."""
    width = max(1.0, step)
    margin = math.ceil(width)  # samples of air on both sides
    places = (torch.arange(n_target) - (n_target - 1) / 2) * step + (n_source - 1) / 2
    samples = torch.arange(-margin, n_source + margin)
    weights = (1 - (places[:, None] - samples).abs() / width).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True))[:, margin:-margin]


def check_scannable(activity: Volume, ct: Volume, fov: np.ndarray) -> None:
    """Refuses what cannot be scanned; `fov` is the [y, x] disc that the scanner sees.

    Raises:
        VolumeError: as `simulate_nac` says.
    """
    if ct.shape != activity.shape or not np.allclose(ct.affine, activity.affine, atol=1e-3):
        raise VolumeError(
            f"expected the CT on the activity's grid {activity.shape}, got {ct.shape} with "
            f"affine {ct.affine.tolist()} against {activity.affine.tolist()}; resample one to the other"
        )
    if ct.unit != "HU":
        raise VolumeError(f"expected a CT in HU, got the unit {ct.unit!r}; pass Volume(..., unit='HU') if it is one")
    for name, volume in (("activity", activity), ("CT", ct)):
        if not np.isfinite(volume.array).all():
            raise VolumeError(f"expected finite values, got NaN or infinity in the {name}; mend or crop it")
    total = float(activity.array.sum(dtype=np.float64))
    if activity.array.min() < 0 or total <= 0:
        raise VolumeError(
            f"expected an activity of zero or more, not all zero, got a minimum of {activity.array.min()} "
            f"and a sum of {total:g}"
        )
    outside = 1 - float((activity.array.sum(0, dtype=np.float64) * fov).sum()) / total
    if outside > MAX_OUTSIDE_FIELD_OF_VIEW:
        raise VolumeError(
            f"expected the activity inside the circle that the scanner sees (as wide as the shorter side of a slice), "
            f"got {outside:.0%} of it outside; pad the volume with air in y or x, or centre the body"
        )
