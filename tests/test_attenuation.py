"""hu_to_mu: Carney's table, continuity, and what the formula must not be."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt.attenuation import CARNEY_2006, hu_to_mu

KVP = sorted(CARNEY_2006)


@pytest.mark.parametrize(
    ("kvp", "mu_at_1000_hu"),
    [(80, 0.1354), (100, 0.1430), (110, 0.1472), (120, 0.1491), (130, 0.1526), (140, 0.1536)],
)
def test_hu_to_mu_of_bone_follows_the_published_line(kvp, mu_at_1000_hu):
    assert hu_to_mu(1000.0, kvp) == pytest.approx(mu_at_1000_hu, abs=1e-12)


@pytest.mark.parametrize("kvp", KVP)
def test_hu_to_mu_below_the_break_point_mixes_air_and_water(kvp):
    np.testing.assert_allclose(hu_to_mu(np.array([-1000.0, -750.0, -500.0, 0.0]), kvp), [0, 0.024, 0.048, 0.096])


@pytest.mark.parametrize("kvp", KVP)
def test_hu_to_mu_is_continuous_at_the_break_point(kvp):
    break_point = CARNEY_2006[kvp][2]
    below, above = hu_to_mu(np.array([np.nextafter(break_point, -np.inf), break_point]), kvp)
    assert below == pytest.approx(above, abs=2e-4)


@pytest.mark.parametrize("kvp", KVP)
def test_hu_to_mu_keeps_the_offset_that_a_known_wrong_formula_drops(kvp):
    hu = np.array([100.0, 1000.0, 3000.0])
    wrong = 0.096 + CARNEY_2006[kvp][0] * hu
    assert (hu_to_mu(hu, kvp) - wrong > 1e-3).all()


@given(st.lists(st.floats(-3000, 4000), min_size=2, max_size=20), st.sampled_from(KVP))
def test_hu_to_mu_is_never_negative_and_grows_with_hu(hu, kvp):
    mu = hu_to_mu(np.sort(np.array(hu)), kvp)
    assert (mu >= 0).all()
    assert (np.diff(mu) >= -2e-4).all()  # the two lines meet to 2e-4


@pytest.mark.parametrize(("dtype", "expected"), [("int16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_hu_to_mu_keeps_shape_and_floating_type(dtype, expected):
    mu = hu_to_mu(np.full((2, 3, 4), 40, dtype))
    assert mu.shape == (2, 3, 4)
    assert mu.dtype == expected


def test_hu_to_mu_refuses_an_unknown_tube_voltage():
    with pytest.raises(ValueError, match="expected a tube voltage of 80, 100, 110, 120, 130, 140 kVp, got 90"):
        hu_to_mu(0.0, 90)


def test_mu_maps_and_the_physics_package_import_no_torch():
    code = "import sys, sctrt.attenuation, sctrt.physics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
