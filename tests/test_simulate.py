"""The simulated scan: fractions and counts, the signature of missing attenuation correction, honest corrections."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctrt.attenuation import hu_to_mu
from sctrt.errors import VolumeError
from sctrt.physics.geometry import TofGeometry
from sctrt.physics.osem import osem
from sctrt.physics.projector import TofProjector
from sctrt.physics.simulate import (
    Acquisition,
    acquire,
    reconstruct_ac,
    reconstruct_nac,
    resample_in_plane,
    simulate_nac,
    with_voxels,
)
from sctrt.volume import Volume

SHAPE, VOXEL_MM = (6, 40, 40), 8.0
AFFINE = np.array([[VOXEL_MM, 0, 0, -156], [0, VOXEL_MM, 0, -156], [0, 0, VOXEL_MM, 0], [0, 0, 0, 1.0]])


def ellipse(centre_mm: tuple[float, float], radii_mm: tuple[float, float]) -> np.ndarray:
    """[z, y, x] bool cylinder; centre and radii (y, x)."""
    places = (np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2) * VOXEL_MM
    y, x = (places[:, None] - centre_mm[0]) / radii_mm[0], (places[None] - centre_mm[1]) / radii_mm[1]
    return np.broadcast_to(y**2 + x**2 < 1, SHAPE)


BODY = ellipse((0, 0), (100, 135))
LUNGS = ellipse((-10, -65), (60, 40)) | ellipse((-10, 65), (60, 40))
SPINE = ellipse((60, 0), (22, 22))
INNER_LUNG = ellipse((-10, -65), (40, 22)) | ellipse((-10, 65), (40, 22))
INNER_MUSCLE = ellipse((-10, 0), (40, 14))
HU = np.select([LUNGS, SPINE, BODY], [-780.0, 500.0, 50.0], -1000.0).astype(np.float32)
SUV = np.select([LUNGS, SPINE, BODY], [0.4, 1.5, 0.7], 0.0).astype(np.float32)
CT = Volume(HU, AFFINE, "HU")
ACTIVITY = Volume(SUV, AFFINE, "SUV")
MU = torch.tensor(hu_to_mu(HU))


def projector_of(tof_fwhm_ps: float | None = 385.0, n_views: int = 24) -> TofProjector:
    return TofProjector(TofGeometry(40, 40, VOXEL_MM, VOXEL_MM, n_views=n_views, tof_fwhm_ps=tof_fwhm_ps))


@pytest.fixture(scope="module")
def projector() -> TofProjector:
    return projector_of()


@pytest.fixture(scope="module")
def scan(projector) -> Acquisition:
    return acquire(projector, torch.tensor(SUV), MU)


def mean(image: torch.Tensor | np.ndarray, mask: np.ndarray) -> float:
    return float(np.asarray(image)[mask].mean())


def test_acquire_counts_trues_scatter_and_randoms_in_the_asked_shares(projector):
    scan = acquire(projector, torch.tensor(SUV), MU, counts_per_slice=2e5, scatter_fraction=0.3, randoms_fraction=0.2)
    trues, scatter, randoms = 2e5 * SHAPE[0], float(scan.scatter.sum()), float(scan.randoms.sum())
    assert scatter / (trues + scatter) == pytest.approx(0.3, rel=1e-3)
    assert randoms / (trues + scatter + randoms) == pytest.approx(0.2, rel=1e-3)
    prompts = trues + scatter + randoms
    assert float(scan.data.sum()) == pytest.approx(prompts, abs=5 * prompts**0.5)


def test_acquire_without_scatter_or_randoms_has_none(projector):
    scan = acquire(projector, torch.tensor(SUV), MU, scatter_fraction=0, randoms_fraction=0)
    assert not scan.scatter.any() and not scan.randoms.any()


def test_acquire_in_air_has_no_scatter(projector):
    scan = acquire(projector, torch.tensor(SUV), torch.zeros(SHAPE))
    assert (scan.attenuation == 1).all()
    assert not scan.scatter.any() and torch.isfinite(scan.data).all()


def test_acquire_draws_poisson_counts(projector, scan):
    rays = scan.attenuation * projector.forward(torch.tensor(SUV)) * scan.scale
    expected = rays + scan.scatter + scan.randoms  # but for the blur of 4.5 mm, less than a voxel
    bright = expected > 20
    chi_square = ((scan.data - expected) ** 2 / expected)[bright].mean()
    assert (scan.data == scan.data.round()).all() and (scan.data >= 0).all()
    assert float(chi_square) == pytest.approx(1, abs=0.15)


def test_scatter_and_randoms_are_broad(scan):
    assert (scan.scatter >= 0).all()
    steps = scan.scatter.diff(dim=1).abs().max() / scan.scatter.max()
    assert float(steps) < 0.2
    assert torch.equal(scan.randoms, scan.randoms[:1, :1, :1].expand_as(scan.randoms))


def test_a_seed_gives_the_same_counts_on_any_number_of_threads(projector, scan):
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert torch.equal(acquire(projector, torch.tensor(SUV), MU).data, scan.data)
    finally:
        torch.set_num_threads(n_threads)
    assert not torch.equal(acquire(projector, torch.tensor(SUV), MU, seed=1).data, scan.data)


def test_without_a_seed_there_is_no_noise(projector, scan):
    expected = acquire(projector, torch.tensor(SUV), MU, seed=None)
    trues = expected.data - expected.scatter - expected.randoms
    assert float(trues.sum()) == pytest.approx(5e5 * SHAPE[0], rel=1e-4)
    assert torch.equal(expected.scatter, scan.scatter) and expected.scale == scan.scale
    assert float(((scan.data - expected.data) ** 2).sum() / expected.data.sum()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("wrong", [{"scatter_fraction": 1.0}, {"randoms_fraction": -0.1}])
def test_acquire_refuses_fractions_outside_zero_to_one(projector, wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be in \[0, 1\)"):
        acquire(projector, torch.tensor(SUV), MU, **wrong)


def test_acquire_refuses_an_empty_body(projector):
    with pytest.raises(ValueError, match="got projections without counts"):
        acquire(projector, torch.zeros(SHAPE), MU)


def test_the_true_map_corrects_exactly_as_the_bodys_own_factors(projector, scan):
    additive = scan.scatter + scan.randoms
    own = osem(projector, scan.data, attenuation=scan.attenuation, additive=additive, scale=scan.scale)
    assert torch.equal(reconstruct_ac(projector, scan, torch.tensor(hu_to_mu(CT.array))), own)


def test_correction_restores_what_nac_underestimates(projector, scan):
    nac, corrected = reconstruct_nac(projector, scan), reconstruct_ac(projector, scan, MU, n_iterations=4)
    assert mean(nac, INNER_MUSCLE) < 0.5 * mean(SUV, INNER_MUSCLE)
    assert mean(nac, INNER_LUNG) < 0.8 * mean(SUV, INNER_LUNG)
    assert mean(corrected, INNER_MUSCLE) == pytest.approx(mean(SUV, INNER_MUSCLE), rel=0.05)
    assert mean(corrected, BODY) == pytest.approx(mean(SUV, BODY), rel=0.03)


def test_without_correction_lungs_look_hotter_the_coarser_the_timing():
    ratios = []
    for tof_fwhm_ps in (None, 385.0, 214.0):
        projector = projector_of(tof_fwhm_ps)
        nac = reconstruct_nac(projector, acquire(projector, torch.tensor(SUV), MU))
        ratios.append(mean(nac, INNER_LUNG) / mean(nac, INNER_MUSCLE))
    without_tof, at_385_ps, at_214_ps = ratios
    assert without_tof > at_385_ps > at_214_ps > mean(SUV, INNER_LUNG) / mean(SUV, INNER_MUSCLE)


def test_map_errors_spread_into_the_corrected_image_and_tof_dampens_them():
    changes = {}
    for tof_fwhm_ps in (None, 385.0):
        projector = projector_of(tof_fwhm_ps)
        scan = acquire(projector, torch.tensor(SUV), MU)
        reference = reconstruct_ac(projector, scan, MU)
        denser_lungs = torch.tensor(hu_to_mu(np.where(LUNGS, HU + 100, HU)))
        no_bone = torch.tensor(hu_to_mu(np.where(SPINE, 50, HU)))
        changes[tof_fwhm_ps] = [
            mean(reconstruct_ac(projector, scan, mu), mask) / mean(reference, mask) - 1
            for mu, mask in ((denser_lungs, INNER_LUNG), (no_bone, SPINE))
        ]
    lung, spine = changes[385.0]
    assert 0.05 < lung < 0.25
    assert -0.2 < spine < -0.03
    assert changes[None][0] > lung and changes[None][1] < spine


def test_simulate_nac_equals_its_parts_and_keeps_the_grid():
    said = []
    nac = simulate_nac(ACTIVITY, CT, n_views=24, seed=3, post_filter_mm=0.0, progress=said.append)
    projector = projector_of()
    expected = reconstruct_nac(projector, acquire(projector, torch.tensor(SUV), MU, seed=3))
    assert np.array_equal(nac.array, expected.numpy())
    assert np.array_equal(nac.affine, AFFINE) and nac.unit == "arbitrary" and nac.array.dtype == np.float32
    assert [line.split()[0] for line in said] == ["preparing", "simulating", "reconstructing"]


def test_simulate_nac_takes_counts_and_scatter():
    counts = {"counts_per_slice": 1e5, "scatter_fraction": 0.1}
    nac = simulate_nac(ACTIVITY, CT, n_views=24, post_filter_mm=0.0, **counts)
    projector = projector_of()
    expected = reconstruct_nac(projector, acquire(projector, torch.tensor(SUV), MU, **counts))
    assert np.array_equal(nac.array, expected.numpy())


@pytest.mark.parametrize("counts", [0, -1.0, float("nan")])
def test_acquire_refuses_counts_that_are_none(projector, counts):
    with pytest.raises(ValueError, match="counts_per_slice must be positive, got"):
        acquire(projector, torch.tensor(SUV), MU, counts_per_slice=counts)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("SCTRT_REQUIRE_CUDA") != "1", reason="no CUDA device"
)
def test_simulate_nac_gives_the_same_means_on_cuda():
    on_cpu, on_cuda = (simulate_nac(ACTIVITY, CT, n_views=24, device=device).array for device in ("cpu", "cuda"))
    for mask in (BODY, INNER_LUNG, INNER_MUSCLE):
        assert mean(on_cuda, mask) == pytest.approx(mean(on_cpu, mask), rel=0.02)


def test_simulate_nac_filters_the_image_when_asked():
    plain, filtered = (simulate_nac(ACTIVITY, CT, n_views=24, post_filter_mm=fwhm) for fwhm in (0.0, 12.0))
    assert filtered.array[INNER_MUSCLE].std() < plain.array[INNER_MUSCLE].std()
    assert mean(filtered.array, INNER_MUSCLE) == pytest.approx(mean(plain.array, INNER_MUSCLE), rel=0.35)


@pytest.mark.parametrize("projection_voxel_mm", [5.0, 10.0])
def test_projecting_from_another_grid_changes_the_image_little(projection_voxel_mm):
    matched = simulate_nac(ACTIVITY, CT, n_views=24).array
    crossed = simulate_nac(ACTIVITY, CT, n_views=24, projection_voxel_mm=projection_voxel_mm).array
    assert not np.array_equal(matched, crossed)
    for mask in (BODY, INNER_LUNG, INNER_MUSCLE):
        assert mean(crossed, mask) == pytest.approx(mean(matched, mask), rel=0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 20), st.integers(4, 20), st.floats(0.6, 3.0))
def test_resample_in_plane_keeps_constants_linear_images_and_the_centre(ny, nx, voxel_mm):
    source = TofGeometry(ny, nx, 2.0, 2.0)
    target = with_voxels(source, voxel_mm)
    assert (target.n_radial, target.radial_mm) == (source.n_radial, source.radial_mm)
    assert target.ny * voxel_mm >= ny * 2.0 - 1e-9

    def ramp(g: TofGeometry) -> torch.Tensor:
        y, x = ((torch.arange(n) - (n - 1) / 2) * g.voxel_mm for n in (g.ny, g.nx))
        return (1 + 0.1 * y[:, None] - 0.05 * x[None])[None]

    reach = max(voxel_mm, 2.0)  # of the kernel
    y, x = ((torch.arange(n) - (n - 1) / 2).abs() * voxel_mm for n in (target.ny, target.nx))
    inside = (y[:, None] <= ny + 1 - reach) & (x[None] <= nx + 1 - reach)
    ones = resample_in_plane(torch.ones(1, ny, nx), source, target)[:, inside]
    torch.testing.assert_close(ones, torch.ones_like(ones))
    if voxel_mm <= 2.0:
        resampled = resample_in_plane(ramp(source), source, target)
        torch.testing.assert_close(resampled[:, inside], ramp(target)[:, inside], rtol=1e-4, atol=1e-5)


def rotated(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine[:2, :2] = VOXEL_MM * np.array([[c, -s], [s, c]])
    return affine


def at_the_edge() -> np.ndarray:
    suv = np.zeros(SHAPE, np.float32)
    suv[:, :4, :4] = 1
    return suv


@pytest.mark.parametrize(
    ("activity", "ct", "message"),
    [
        (Volume(SUV, rotated(5)), Volume(HU, rotated(5), "HU"), "expected a grid along the patient's axes"),
        (Volume(SUV, AFFINE[:, [2, 1, 0, 3]]), Volume(HU, AFFINE[:, [2, 1, 0, 3]], "HU"), "expected a grid along"),
        (Volume(SUV, np.diag([8.0, 4, 8, 1])), Volume(HU, np.diag([8.0, 4, 8, 1]), "HU"), "same voxel size in y and x"),
        (ACTIVITY, Volume(HU[1:], AFFINE, "HU"), "expected the CT on the activity's grid"),
        (ACTIVITY, Volume(HU, np.diag([8.0, 8, 8, 1]), "HU"), "expected the CT on the activity's grid"),
        (ACTIVITY, Volume(HU, AFFINE), "expected a CT in HU, got the unit 'arbitrary'"),
        (Volume(np.where(BODY, SUV, np.nan), AFFINE), CT, "got NaN or infinity in the activity"),
        (ACTIVITY, Volume(np.where(BODY, HU, np.inf), AFFINE, "HU"), "got NaN or infinity in the CT"),
        (Volume(-SUV, AFFINE), CT, "expected an activity of zero or more"),
        (Volume(0 * SUV, AFFINE), CT, "not all zero"),
        (Volume(at_the_edge(), AFFINE), CT, "got 100% of it outside"),
    ],
)
def test_simulate_nac_refuses_what_cannot_be_scanned(activity, ct, message):
    with pytest.raises(VolumeError, match=message):
        simulate_nac(activity, ct)


def test_simulate_nac_refuses_an_unknown_tube_voltage():
    with pytest.raises(ValueError, match="expected a tube voltage"):
        simulate_nac(ACTIVITY, CT, kvp=99)


def test_simulate_nac_takes_flipped_axes():
    flipped = np.diag([-VOXEL_MM, VOXEL_MM, -VOXEL_MM, 1])
    nac = simulate_nac(Volume(SUV, flipped, "SUV"), Volume(HU, flipped, "HU"), n_views=24)
    assert np.array_equal(nac.affine, flipped)
