"""The canvas: its solids have the volumes and distances of geometry, and its paint blends by coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctrt.phantom import canvas as canvas_module
from sctrt.phantom.canvas import HU_AIR, Canvas, Shape, smooth_noise
from sctrt.phantom.labels import BONE, FAT, LUNG, NO_TISSUE, SOFT, Tissue

VOXEL_MM = 2.0
# A cube of 128 mm: x and y from -63 to 63, u from 0 to 126.
MIDDLE = (0.0, 0.0, 63.0)


@pytest.fixture(autouse=True, scope="module")
def no_warp():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas_module, "WARP_MM", (0.0, 0.0, 0.0))
        yield


def new_canvas() -> Canvas:
    return Canvas(np.random.default_rng(0), (64, 64, 64), VOXEL_MM, top_mm=0.0)


def volume_mm3(canvas: Canvas, shape: Shape) -> float:
    return float(canvas.coverage(shape.distance).sum()) * VOXEL_MM**3


half_axis = st.floats(10, 24)
inside = st.floats(-25, 25)


@settings(max_examples=20, deadline=None)
@given(half_axis, half_axis, half_axis, st.sampled_from((0.0, 0.25, -0.6)))
def test_an_ellipsoid_has_its_volume(rx, ry, ru, tilt):
    canvas = new_canvas()
    ellipsoid = canvas.ellipsoid(MIDDLE, (rx, ry, ru), tilt)
    assert volume_mm3(canvas, ellipsoid) == pytest.approx(4 / 3 * np.pi * rx * ry * ru, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(inside, inside, inside, st.floats(8, 20))
def test_a_capsule_has_its_volume(x, y, u, radius):
    canvas = new_canvas()
    end = (x, y, MIDDLE[2] + u)
    length = float(np.linalg.norm(np.subtract(end, MIDDLE)))
    expected = np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3
    assert volume_mm3(canvas, canvas.capsule(MIDDLE, end, radius)) == pytest.approx(expected, rel=0.03)


def test_a_capsule_between_equal_points_is_a_sphere():
    canvas = new_canvas()
    capsule, ellipsoid = canvas.capsule(MIDDLE, MIDDLE, 12), canvas.ellipsoid(MIDDLE, (12, 12, 12))
    assert np.isfinite(capsule.distance).all()
    assert capsule.box == ellipsoid.box
    x, y, u = canvas.coordinates(capsule.box)
    exact = np.sqrt(x**2 + y**2 + (u - MIDDLE[2]) ** 2) - 12
    np.testing.assert_allclose(capsule.distance, exact, atol=1e-3)
    np.testing.assert_allclose(ellipsoid.distance, exact, atol=1e-3)


def test_grown_and_shrunk_move_the_surface():
    canvas = new_canvas()
    sphere = canvas.ellipsoid(MIDDLE, (15, 15, 15))
    assert volume_mm3(canvas, sphere.grown(5)) == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.03)
    assert volume_mm3(canvas, sphere.shrunk(5)) == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.03)


def test_within_keeps_what_is_inside_all():
    canvas = new_canvas()
    sphere = canvas.ellipsoid(MIDDLE, (20, 20, 20))
    right_half = sphere.within(canvas.x[sphere.box])
    assert volume_mm3(canvas, right_half) == pytest.approx(volume_mm3(canvas, sphere) / 2, rel=0.03)
    assert (right_half.distance >= sphere.distance).all()


def test_head_is_the_last_index_and_left_is_positive_x():
    canvas = new_canvas()
    assert np.all(np.diff(canvas.u_axis) < 0)
    assert canvas.u_axis[-1] == 0
    assert np.all(np.diff(canvas.x_axis) > 0) and canvas.x_axis.sum() == 0
    assert np.all(np.diff(canvas.y_axis) > 0) and canvas.y_axis.sum() == 0


def test_paint_blends_by_coverage():
    canvas = new_canvas()
    sphere = canvas.ellipsoid(MIDDLE, (20, 20, 20))
    canvas.fill(sphere, 40, 2.0, Tissue.SOFT)
    cover = canvas.coverage(sphere.distance)
    np.testing.assert_allclose(canvas.ct[sphere.box], HU_AIR + cover * 1040, atol=1e-3)
    np.testing.assert_allclose(canvas.activity[sphere.box], cover * 2, atol=1e-5)
    np.testing.assert_array_equal(canvas.labels[sphere.box] == Tissue.SOFT, cover > 0.5)


def test_a_mask_holds_paint_back():
    canvas = new_canvas()
    sphere = canvas.ellipsoid(MIDDLE, (20, 20, 20))
    canvas.fill(sphere, 40, 2.0, Tissue.SOFT, mask=canvas.x[sphere.box] < 0)
    assert (canvas.labels[..., canvas.x_axis > 0] == Tissue.AIR).all()
    assert (canvas.labels[..., canvas.x_axis < 0] == Tissue.SOFT).any()


def test_bone_has_a_cortex_about_its_marrow():
    canvas = new_canvas()
    canvas.bone(canvas.ellipsoid(MIDDLE, (20, 20, 20)), 700, 6, marrow_hu=180)
    across = canvas.labels[32, 32]
    assert across[32] == Tissue.MARROW
    assert set(across[[22, 23, 41]]) == {Tissue.BONE}
    assert canvas.ct[32, 32, 32] == pytest.approx(180)


def test_a_solid_off_the_grid_paints_nothing():
    canvas = new_canvas()
    canvas.fill(canvas.ellipsoid((500, 0, 60), (20, 20, 20)), 40, 2.0, Tissue.SOFT)
    canvas.bone(canvas.capsule((0, 0, 900), (0, 0, 950), 10), 700, 3, marrow_hu=180)
    assert not canvas.labels.any()
    assert (canvas.ct == HU_AIR).all()


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3), st.floats(0.5, 60))
def test_noise_fills_any_shape(shape, cell_voxels):
    noise = smooth_noise(np.random.default_rng(1), shape, cell_voxels, 2.0)
    assert noise.shape == shape and noise.dtype == np.float32
    assert np.isfinite(noise).all()
    np.testing.assert_array_equal(noise, smooth_noise(np.random.default_rng(1), shape, cell_voxels, 2.0))


def test_tissue_groups_do_not_overlap():
    groups = (NO_TISSUE, FAT, LUNG, BONE, SOFT)
    members = [tissue for group in groups for tissue in group]
    assert len(members) == len(set(members))
    assert set(Tissue) - set(members) == {Tissue.LESION}
    assert sorted(Tissue) == list(range(17))
