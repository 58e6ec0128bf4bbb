"""osem by its properties: recovery of a known image, conserved counts, rising likelihood, any subset count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sctrt.physics.geometry import TofGeometry
from sctrt.physics.osem import field_of_view, osem, subset_order
from sctrt.physics.projector import TofProjector

N, VOXEL_MM = 40, 8.0


def ellipse(centre_mm: tuple[float, float], radii_mm: tuple[float, float]) -> torch.Tensor:
    """[1, N, N] bool; centre and radii (y, x)."""
    places = (torch.arange(N) - (N - 1) / 2) * VOXEL_MM
    y, x = (places[:, None] - centre_mm[0]) / radii_mm[0], (places[None] - centre_mm[1]) / radii_mm[1]
    return (y**2 + x**2 < 1)[None]


BODY = ellipse((0, 0), (100, 135))
LUNGS = ellipse((-10, -65), (60, 40)) | ellipse((-10, 65), (60, 40))
ACTIVITY = torch.where(LUNGS, 0.4, torch.where(BODY, 1.0, 0.0))
MU = torch.where(LUNGS, 0.025, torch.where(BODY, 0.096, 0.0))
INNER_LUNG = ellipse((-10, -65), (36, 20)) | ellipse((-10, 65), (36, 20))
INNER_BODY = ellipse((0, 0), (72, 14))


@pytest.fixture(scope="module")
def projector() -> TofProjector:
    return TofProjector(TofGeometry(N, N, VOXEL_MM, VOXEL_MM, n_views=24))


def test_subset_order_reverses_the_bits():
    assert subset_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert subset_order(1) == [0]


@given(st.integers(1, 200))
def test_subset_order_visits_every_subset_once(n_subsets):
    assert sorted(subset_order(n_subsets)) == list(range(n_subsets))


def test_field_of_view_is_the_circle_within_the_shorter_side():
    fov = field_of_view(TofGeometry(20, 30, 4.0, 4.0))
    assert fov.shape == (20, 30)
    assert fov[10, 5:25].all() and not fov[:, :5].any() and not fov[0, 0]


@pytest.mark.parametrize("tof_fwhm_ps", [None, 385.0])
def test_osem_recovers_a_noise_free_image_with_the_true_map(tof_fwhm_ps):
    projector = TofProjector(TofGeometry(N, N, VOXEL_MM, VOXEL_MM, n_views=24, tof_fwhm_ps=tof_fwhm_ps))
    attenuation = projector.attenuation_factors(MU)
    data = 3.0 * attenuation * projector.forward(ACTIVITY)
    image = osem(projector, data, attenuation=attenuation, n_iterations=8, n_subsets=6, scale=3.0)
    assert float(image[INNER_LUNG].mean()) == pytest.approx(0.4, rel=0.02)
    assert float(image[INNER_BODY].mean()) == pytest.approx(1.0, rel=0.02)
    assert float(image[BODY].mean()) == pytest.approx(float(ACTIVITY[BODY].mean()), rel=0.02)


def test_osem_accounts_for_additive_counts(projector):
    attenuation = projector.attenuation_factors(MU)
    trues = attenuation * projector.forward(ACTIVITY)
    additive = torch.full_like(trues, float(trues.mean()))
    image = osem(projector, trues + additive, attenuation=attenuation, additive=additive, n_iterations=6, n_subsets=6)
    assert float(image[INNER_BODY].mean()) == pytest.approx(1.0, rel=0.03)
    ignored = osem(projector, trues + additive, attenuation=attenuation, n_iterations=6, n_subsets=6)
    assert float(ignored[INNER_BODY].mean()) > 1.2


def test_each_pass_with_one_subset_conserves_counts_and_raises_the_likelihood(projector):
    attenuation = projector.attenuation_factors(MU)
    mean = 20 * attenuation * projector.forward(ACTIVITY)
    data = torch.poisson(mean, generator=torch.Generator().manual_seed(0))
    likelihoods = []
    for n_iterations in (1, 2, 4):
        image = osem(projector, data, attenuation=attenuation, n_iterations=n_iterations, n_subsets=1)
        expected = attenuation * projector.forward(image)
        assert float(expected.sum()) == pytest.approx(float(data.sum()), rel=1e-3)
        likelihoods.append(float((data * expected.clamp(min=1e-6).log() - expected).double().sum()))
    assert likelihoods == sorted(likelihoods)


@pytest.mark.parametrize("n_subsets", [1, 5, 7, 16, 24])
def test_osem_takes_any_number_of_subsets(projector, n_subsets):
    data = projector.forward(ACTIVITY)
    image = osem(projector, data, n_iterations=-(-12 // n_subsets), n_subsets=n_subsets)
    assert image.shape == ACTIVITY.shape and image.dtype == torch.float32 and image.is_contiguous()
    assert (image >= 0).all() and torch.isfinite(image).all()
    assert float(image[INNER_BODY].mean()) == pytest.approx(1.0, rel=0.06)


def test_osem_is_zero_outside_the_field_of_view(projector):
    image = osem(projector, projector.forward(torch.ones(1, N, N)), n_iterations=1)
    outside = field_of_view(projector.geometry) == 0
    assert not image[:, outside].any()
    assert (image[:, ~outside] > 0).all()


@pytest.mark.parametrize(("n_iterations", "n_subsets"), [(0, 4), (1, 0), (1, 25)])
def test_osem_refuses_impossible_subsets(projector, n_iterations, n_subsets):
    data = torch.zeros(24, N, projector.geometry.n_tof, 1)
    with pytest.raises(ValueError, match="expected at least one iteration and 1 to 24 subsets"):
        osem(projector, data, n_iterations=n_iterations, n_subsets=n_subsets)
