"""TofProjector against a slow reference, and by its properties: adjoint, chord lengths, TOF sums, attenuation."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.stats import norm

from sctrt.errors import DeviceError
from sctrt.physics.geometry import SCANNER_TOF_FWHM_PS, TofGeometry
from sctrt.physics.projector import TofProjector

NEEDS_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("SCTRT_REQUIRE_CUDA") != "1", reason="no CUDA device"
)

geometries = st.builds(
    TofGeometry,
    ny=st.integers(3, 16),
    nx=st.integers(3, 16),
    voxel_mm=st.floats(1, 20),
    z_mm=st.just(4.0),
    n_views=st.integers(1, 6),
    n_radial=st.integers(0, 20),
    radial_mm=st.sampled_from([0.0, 3.0, 11.0]),
    tof_fwhm_ps=st.sampled_from([None, 214.0, 385.0, 600.0]),
)


def small_geometry(tof_fwhm_ps: float | None = 385.0, n: int = 40, n_views: int = 12) -> TofGeometry:
    return TofGeometry(n, n, voxel_mm=8.0, z_mm=8.0, n_views=n_views, tof_fwhm_ps=tof_fwhm_ps)


def disc(n: int, voxel_mm: float, radius_mm: float, oversampling: int = 8) -> torch.Tensor:
    """[1, n, n] share of each voxel inside a centred disc."""
    fine = (np.arange(n * oversampling) + 0.5) / oversampling - n / 2
    inside = (fine[:, None] ** 2 + fine[None] ** 2) * voxel_mm**2 < radius_mm**2
    return torch.tensor(inside.reshape(n, oversampling, n, oversampling).mean((1, 3)), dtype=torch.float32)[None]


def slow_forward(image: np.ndarray, g: TofGeometry) -> np.ndarray:
    """[V, S, T, Z]: interpolate along every line, weigh with the TOF bins' Gaussian integrals."""
    depth = (np.arange(g.n_depth) - (g.n_depth - 1) / 2) * g.voxel_mm
    radial = (np.arange(g.n_radial) - (g.n_radial - 1) / 2) * g.radial_mm
    edges = (np.arange(g.n_tof + 1) - g.n_tof / 2) * g.tof_bin_mm
    data = np.zeros((g.n_views, g.n_radial, g.n_tof, len(image)))
    for view in range(g.n_views):
        angle = np.pi * view / g.n_views
        for s, offset in enumerate(radial):
            x = (offset * np.cos(angle) - depth * np.sin(angle)) / g.voxel_mm + (g.nx - 1) / 2
            y = (offset * np.sin(angle) + depth * np.cos(angle)) / g.voxel_mm + (g.ny - 1) / 2
            for z, plane in enumerate(image):
                line = map_coordinates(plane, [y, x], order=1, mode="grid-constant") * g.voxel_mm
                if g.tof_sigma_mm is None:
                    data[view, s, 0, z] = line.sum()
                else:
                    data[view, s, :, z] = np.diff(norm.cdf(edges[:, None], depth, g.tof_sigma_mm), axis=0) @ line
    return data


@settings(deadline=None, max_examples=20)
@given(geometries)
def test_forward_equals_the_slow_reference(geometry):
    image = np.random.default_rng(1).random((2, geometry.ny, geometry.nx)).astype(np.float32)
    data = TofProjector(geometry).forward(torch.from_numpy(image)).numpy()
    expected = slow_forward(image, geometry)
    np.testing.assert_allclose(data, expected, rtol=1e-4, atol=1e-5 * expected.max())


@settings(deadline=None, max_examples=40)
@given(geometries, st.integers(1, 3), st.integers(0, 99))
def test_adjoint_is_the_transpose_of_forward(geometry, n_z, seed):
    generator = torch.Generator().manual_seed(seed)
    projector = TofProjector(geometry)
    views = range(seed % 2, geometry.n_views, 2) or range(1)
    image = torch.rand(n_z, geometry.ny, geometry.nx, generator=generator)
    data = torch.rand(len(views), geometry.n_radial, geometry.n_tof, n_z, generator=generator)
    in_data = (projector.forward(image, views).double() * data).sum()
    in_image = (image.double() * projector.adjoint(data, views)).sum()
    assert float(in_image) == pytest.approx(float(in_data), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("tof_fwhm_ps", [None, 385.0])
def test_sensitivity_is_the_adjoint_of_weights_equal_in_all_bins(tof_fwhm_ps):
    projector = TofProjector(small_geometry(tof_fwhm_ps, n=12))
    g = projector.geometry
    weights = torch.rand(g.n_views, g.n_radial, 1, 2, generator=torch.Generator().manual_seed(0))
    expected = projector.adjoint(weights.expand(-1, -1, g.n_tof, -1))
    torch.testing.assert_close(projector.sensitivity(weights), expected, rtol=1e-5, atol=1e-4)


def test_forward_of_a_disc_gives_chord_lengths():
    g = small_geometry(None)
    lines = TofProjector(g).forward(disc(g.ny, g.voxel_mm, radius_mm=120.0))[:, :, 0, 0]
    radial = (torch.arange(g.n_radial) - (g.n_radial - 1) / 2) * g.radial_mm
    chords = 2 * (120.0**2 - radial**2).clamp(min=0).sqrt()
    inner = radial.abs() < 90
    torch.testing.assert_close(lines[:, inner], chords[inner].expand(g.n_views, -1), rtol=0.01, atol=0)
    assert float(lines[:, radial.abs() > 132].max()) < 1e-3
    area = lines.sum(1) * g.radial_mm
    torch.testing.assert_close(area, torch.full_like(area, np.pi * 120**2), rtol=0.005, atol=0)


@pytest.mark.parametrize("tof_fwhm_ps", [214.0, 385.0, 600.0])
def test_tof_bins_sum_to_the_line_integral(tof_fwhm_ps):
    image = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
    summed = TofProjector(small_geometry(tof_fwhm_ps)).forward(image).sum(2)
    lines = TofProjector(small_geometry(None)).forward(image)[:, :, 0]
    assert (summed <= lines * (1 + 1e-5)).all()
    torch.testing.assert_close(summed, lines, rtol=0.007, atol=1e-3)  # a Gaussian beyond 2.5 sigma: 0.6 %


@pytest.mark.parametrize(("row", "column"), [(20, 20), (20, 31), (9, 14)])
def test_tof_bins_tell_where_on_the_line_a_source_lies(row, column):
    projector = TofProjector(small_geometry(385.0, n=41))
    g = projector.geometry
    image = torch.zeros(1, 41, 41)
    image[0, row, column] = 1
    bins = (torch.arange(g.n_tof) - (g.n_tof - 1) / 2) * g.tof_bin_mm
    for view, of_bin in enumerate(projector.forward(image).sum((1, 3))):
        angle = np.pi * view / g.n_views
        depth = ((row - 20) * np.cos(angle) - (column - 20) * np.sin(angle)) * g.voxel_mm
        assert float((of_bin * bins).sum() / of_bin.sum()) == pytest.approx(depth, abs=1.5)


def test_views_select_rows_of_the_whole_projection():
    projector = TofProjector(small_geometry(n=12))
    image = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(projector.forward(image, [7, 2]), projector.forward(image)[[7, 2]])


def test_attenuation_through_20_cm_of_water():
    projector = TofProjector(small_geometry(n=41))
    mu = torch.zeros(1, 41, 41)
    mu[:, 8:33, 8:33] = 0.096  # 25 voxels of 8 mm
    factors = projector.attenuation_factors(mu)
    assert factors.shape == (12, 41, 1, 1)
    assert float(factors[0, 20]) == pytest.approx(np.exp(-0.096 * 20), rel=1e-4)
    assert float(factors[0, 0]) == 1.0
    assert ((factors > 0) & (factors <= 1)).all()


def test_geometry_knows_scanners_and_the_width_of_their_tof():
    assert SCANNER_TOF_FWHM_PS["Biograph mMR"] is None
    g = small_geometry(SCANNER_TOF_FWHM_PS["SIGNA PET/MR"])
    assert g.tof_sigma_mm == pytest.approx(24.8, abs=0.1)  # 390 ps are 58.5 mm of FWHM along the line
    assert small_geometry(None).n_tof == 1


@pytest.mark.parametrize("wrong", [{"ny": 0}, {"voxel_mm": -1.0}, {"n_views": 0}, {"tof_fwhm_ps": 0.0}])
def test_geometry_refuses_what_is_not_positive(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
        TofGeometry(**{"ny": 8, "nx": 8, "voxel_mm": 4.0, "z_mm": 4.0} | wrong)


def test_projector_refuses_wrong_shapes_and_types():
    projector = TofProjector(small_geometry(n=12))
    with pytest.raises(ValueError, match=r"image must be float32 \[z, 12, 12\], got torch.float32 \(2, 12, 11\)"):
        projector.forward(torch.zeros(2, 12, 11))
    with pytest.raises(ValueError, match="image must be float32"):
        projector.forward(torch.zeros(2, 12, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"data must be float32 \[12, 12, \d+, z\], got torch.float32 \(11, 12,"):
        projector.adjoint(torch.zeros(11, 12, projector.geometry.n_tof, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_projector_says_that_there_is_no_cuda_device():
    with pytest.raises(DeviceError, match="expected a CUDA device for cuda, got none"):
        TofProjector(small_geometry(n=4), "cuda")


@pytest.mark.gpu
@NEEDS_CUDA
def test_projector_gives_the_same_on_cuda():
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        projector = TofProjector(small_geometry(), device)
        data = projector.forward(image.to(device))
        results.append((data.cpu(), projector.adjoint(data).cpu()))
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cpu, on_cuda, rtol=1e-4, atol=1e-5 * float(on_cpu.max()))
