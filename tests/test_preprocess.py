"""From a PET volume to the network's input: the same body gives the same input however it is stored and scaled."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import BODY_CENTRE, ORIENTATIONS, as_nibabel
from sctrt import Volume, VolumeError, nifti
from sctrt.bundle import Normaliser
from sctrt.device import Gpu
from sctrt.preprocess import (
    AIR_INPUT,
    Grid,
    body_box,
    body_reference,
    compress,
    model_grid,
    network_input,
    occupied_slices,
    opened,
    overview_level,
    smooth,
    to_grid,
)

SCALES = Normaliser(scales=(0, 1, 2))
EVEN, ODD = (40, 40, 40), (39, 41, 37)  # voxels (z, y, x)
STORED = [(EVEN, (4.0, 4.0, 4.0)), (ODD, (4.0, 4.0, 4.0)), (EVEN, (3.9, 4.1, 4.3)), ((30, 56, 54), (2.9, 2.9, 5.3))]
FINE = [((80, 80, 80), (2.0, 2.0, 2.0)), ((48, 72, 76), (2.2, 2.2, 3.3)), ((152, 44, 80), (2.0, 3.7, 1.1))]
FINE_ODD = [((81, 79, 77), (2.04, 2.04, 2.0)), ((48, 73, 75), (2.2, 2.2, 3.3)), ((150, 44, 80), (2.0, 3.7, 1.1))]


def assert_one_input(pet, normaliser=SCALES):
    """Each of the 48 ways to store the volume gives the same network input."""
    expected = network_input(pet, 4.0, normaliser)
    for orientation in ORIENTATIONS:
        turned = nifti.from_nibabel(as_nibabel(pet, orientation))
        given = network_input(turned, 4.0, normaliser)
        assert given.grid.shape == expected.grid.shape, orientation.tolist()
        np.testing.assert_allclose(given.grid.affine, expected.grid.affine, atol=1e-6)
        np.testing.assert_allclose(given.channels, expected.channels, atol=2e-5, err_msg=str(orientation.tolist()))
        assert given.reference == pytest.approx(expected.reference, rel=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), STORED + FINE)
def test_the_input_is_the_same_in_each_orientation(nac_body, shape, spacing):
    assert_one_input(nac_body.pet(shape, spacing))


@pytest.mark.parametrize(("shape", "spacing"), FINE_ODD)
def test_odd_fine_grids_are_the_same_in_each_orientation(nac_body, shape, spacing):
    assert_one_input(nac_body.pet(shape, spacing))


def test_an_oblique_volume_is_the_same_in_each_orientation(nac_body):
    turn = Rotation.from_euler("xyz", [8, -11, 14], degrees=True).as_matrix()
    assert_one_input(nac_body.pet((44, 46, 48), (4.0, 4.0, 4.0), turn))


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (2.0, 2.0, 2.0), (2.0, 2.0, 5.0), (1.3, 2.7, 3.3)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (8, -11, 14), (90, 0, 30)])
def test_the_grid_it_is_stored_on_hardly_matters(nac_body, spacing, angles):
    """Another grid of the same body gives, at the same points, the same input within the blur of interpolation."""
    expected = network_input(nac_body.pet((48, 48, 48)), 4.0, SCALES)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    shape = tuple(int(np.ceil(200 / s)) for s in spacing[::-1])
    other = network_input(nac_body.pet(shape, spacing, turn), 4.0, SCALES)
    assert other.reference == pytest.approx(expected.reference, rel=0.07)  # Otsu sees more or less air around the body
    for theirs, ours in zip(other.channels, expected.channels, strict=True):
        there = to_grid(Volume(theirs, other.grid.affine), expected.grid, fill=AIR_INPUT)
        inner = (slice(3, -3),) * 3  # the boxes may differ by a voxel
        error = np.abs(there - ours)[inner]
        assert error.mean() < 0.05 and np.percentile(error, 99) < 0.2


@pytest.mark.parametrize("factor", [1e-6, 0.37, 8.0, 1e9])
def test_the_scale_of_the_pet_does_not_matter(nac_body, factor):
    pet = nac_body.pet()
    expected = network_input(pet, 4.0, SCALES)
    given = network_input(Volume(pet.array * np.float32(factor), pet.affine), 4.0, SCALES)
    assert given.grid.shape == expected.grid.shape
    np.testing.assert_allclose(given.channels, expected.channels, atol=1e-5)
    assert given.reference == pytest.approx(factor * expected.reference, rel=1e-5)


@pytest.mark.parametrize("dtype", ["u2", "i4", "f8", ">f4", ">i2"])
def test_the_sample_type_does_not_matter(nac_body, dtype):
    pet = nac_body.pet()
    rounded = Volume(np.round(pet.array), pet.affine)
    expected = network_input(rounded, 4.0, SCALES)
    given = network_input(Volume(rounded.array.astype(dtype), pet.affine), 4.0, SCALES)
    np.testing.assert_array_equal(given.channels, expected.channels)
    assert given.channels.dtype == np.float32 and given.channels.flags.c_contiguous


def test_the_input_has_a_channel_a_scale_and_fits_its_grid(nac_body):
    pet = nac_body.pet()
    before = pet.array.copy()
    prepared = network_input(pet, 4.0, SCALES)
    assert prepared.channels.shape == (3, *prepared.grid.shape)
    assert prepared.channels.min() >= -1 and prepared.channels.max() < 1
    assert (
        np.abs(np.median(prepared.channels[0][prepared.channels[0] > -0.5])) < 0.2
    )  # the body's median is mapped to 0
    np.testing.assert_array_equal(network_input(pet, 4.0, Normaliser()).channels, prepared.channels[:1])
    np.testing.assert_array_equal(pet.array, before)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 3.0])
def test_each_channel_is_the_compressed_ratio_of_its_scale(nac_body, exponent):
    pet = nac_body.pet((57, 43, 38))
    scales = (1, 0, 3)
    prepared = network_input(pet, 4.0, Normaliser(scales=scales, exponent=exponent))
    array = to_grid(pet, model_grid(pet, 4.0), fill=0.0)
    box = body_box(occupied_slices(array, prepared.reference, 4.0))
    assert any(s.start > 0 for s in box)
    for channel, level in zip(prepared.channels, scales, strict=True):
        expected = compress(smooth(array, level)[box] / prepared.reference, exponent)
        np.testing.assert_allclose(channel, expected, rtol=0, atol=3e-7)


def test_position_is_measured_from_the_middle_to_the_left_and_to_the_back(nac_body):
    normaliser = Normaliser(scales=(0,), position=True)
    assert normaliser.channels == 3
    pet = nac_body.pet(ODD)
    assert_one_input(pet, normaliser)
    prepared = network_input(pet, 4.0, normaliser)
    _, left, back = prepared.channels
    np.testing.assert_allclose(np.diff(left, axis=2), 4.0 / 250, atol=1e-6)
    np.testing.assert_allclose(np.diff(back, axis=1), 4.0 / 250, atol=1e-6)
    for channel in (left, back):
        assert np.ptp(channel, axis=0).max() == 0 and channel.mean() == pytest.approx(0, abs=1e-6)
    wide = network_input(Volume(pet.array, np.diag([18.0, 18.0, 18.0, 1.0])), 4.0, normaliser)
    assert wide.channels[1:].min() == -1 and wide.channels[1:].max() == 1


# The grid


@settings(max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 9)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    model=st.floats(1, 8),
)
def test_the_model_grid_covers_the_volume_and_little_more(shape, spacing, angles, model):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = [-100, 20, 500]
    grid = model_grid(Volume(np.zeros(shape, np.float32), affine), model)
    assert grid.spacing == pytest.approx(model)
    np.testing.assert_array_equal(grid.affine[:3, :3], np.eye(3) * model)
    size = np.array(shape[::-1])
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in size])).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    low = grid.affine[:3, 3] - model / 2
    high = low + model * np.array(grid.shape[::-1])
    assert (low <= world.min(1) + 0.01).all() and (high >= world.max(1) - 0.01).all()
    assert (high - low - np.ptp(world, axis=1) <= model + 0.01).all()
    np.testing.assert_allclose(low + high, world.min(1) + world.max(1), atol=1e-6)


def test_a_volume_on_the_model_grid_is_copied(nac_body):
    pet = nac_body.pet(ODD)
    grid = model_grid(pet, 4.0)
    assert grid.shape == ODD
    np.testing.assert_array_equal(to_grid(pet, grid, fill=0.0), pet.array)


def test_a_crop_keeps_its_place(nac_body):
    pet = nac_body.pet()
    grid = model_grid(pet, 4.0)
    box = (slice(3, 30), slice(0, 11), slice(7, 40))
    assert grid.crop(box).shape == (27, 11, 33)
    np.testing.assert_array_equal(to_grid(pet, grid.crop(box), fill=0.0), pet.array[box])


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.9, 2.6, 2.7, 4.0, 7.0, 12.0])
def test_resampling_keeps_constants_and_fills_outside(spacing):
    n = int(np.ceil(100 / spacing))
    volume = Volume(np.full((n, n + 1, n + 2), 3.0, np.float32), np.diag([spacing, -spacing, spacing, 1.0]))
    inside = model_grid(volume, 4.0)
    middle = to_grid(volume, inside, fill=-7.0)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(middle, 3.0, rtol=1e-6)
    far = Grid(inside.affine + np.pad(np.full((3, 1), 1000.0), ((0, 1), (3, 0))), (4, 5, 6))
    np.testing.assert_array_equal(to_grid(volume, far, fill=-7.0), np.full((4, 5, 6), -7.0))


def test_fine_noise_is_averaged_not_picked(rng):
    """64 fine voxels of white noise in a coarse one: at least most of them must count."""
    noise = Volume(rng.normal(size=(64, 64, 64)).astype(np.float32), np.eye(4))
    coarse = to_grid(noise, model_grid(noise, 4.0), fill=0.0)
    assert coarse.shape == (16, 16, 16) and coarse.std() < 1.3 / 8


# Smoothing and the curve


@settings(max_examples=30)
@given(level=st.integers(0, 4), shape=st.tuples(*[st.integers(1, 40)] * 3), value=st.floats(-1e4, 1e4, width=32))
def test_smoothing_keeps_constants(level, shape, value):
    array = np.full(shape, value, np.float32)
    np.testing.assert_allclose(smooth(array, level), array, rtol=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_smoothing_keeps_the_mean_and_the_place(nac_body, level):
    array = nac_body.pet((48, 48, 48)).array
    smoothed = smooth(array, level)
    assert smoothed.mean(dtype=np.float64) == pytest.approx(array.mean(dtype=np.float64), rel=1e-4)
    for one, other in zip(ndimage.center_of_mass(smoothed), ndimage.center_of_mass(array), strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_each_level_is_smoother(rng):
    noise = rng.normal(size=(32, 32, 32)).astype(np.float32)
    spread = [smooth(noise, level).std() for level in range(5)]
    assert spread[0] == noise.std() and all(fine > 2 * coarse for fine, coarse in pairwise(spread))
    np.testing.assert_array_equal(smooth(noise, 0), noise)


def test_a_point_is_spread_over_its_block():
    point = np.zeros((16, 16, 16), np.float32)
    point[8, 8, 8] = 64.0
    smoothed = smooth(point, 2)
    assert smoothed.sum() == pytest.approx(64.0, rel=1e-5)
    assert smoothed.max() < 1.0 and smoothed[8:12, 8:12, 8:12].sum() > smoothed[4:8, 4:8, 4:8].sum()


@given(
    ratio=hnp.arrays(np.float32, 50, elements=st.floats(0, 1000, width=32)),
    exponent=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_the_curve_rises_from_minus_one_to_below_one(ratio, exponent):
    ratio = np.sort(ratio)
    value = compress(ratio, exponent)
    assert value.dtype == np.float32
    assert (np.diff(value) >= 0).all() and value[0] >= -1 and value[-1] <= 1
    power = ratio.astype(np.float64) ** exponent
    np.testing.assert_allclose(value, 2 * power / (1 + power) - 1, atol=1e-6)


def test_the_curve_maps_none_to_air_and_the_median_to_the_middle():
    values = compress(np.array([-5, 0, 1, 100], np.float32), 2.0)
    assert values[:3].tolist() == [AIR_INPUT, AIR_INPUT, 0.0] and 0.99 < values[3] < 1


# The body


def test_the_reference_is_the_level_of_soft_tissue(nac_body):
    pet = nac_body.pet()
    reference = body_reference(pet.array)
    assert 0.75 * nac_body.level < reference < 1.2 * nac_body.level
    hot = pet.array.copy()
    hot[20:23, 20:23, 20:23] = 100 * nac_body.level  # a full bladder must not shift it
    assert body_reference(hot) == pytest.approx(reference, rel=0.05)


@pytest.mark.parametrize("shape", [EVEN, ODD, (60, 50, 45)])
def test_the_box_holds_the_body_and_little_more(nac_body, shape):
    pet = nac_body.pet(shape)
    box = body_box(occupied_slices(pet.array, body_reference(pet.array), 4.0))
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")[::-1], axis=-1)
    world = index * 4.0 + pet.affine[:3, 3] - BODY_CENTRE
    inside = np.zeros(shape, bool)
    inside[box] = True
    assert inside[((world / nac_body.semi_axes) ** 2).sum(-1) < 1].all()
    margins = (world[inside].min(0) + nac_body.semi_axes, world[inside].max(0) - nac_body.semi_axes)
    assert np.abs(margins).max() <= 12 + 3 * 4
    assert network_input(pet, 4.0, SCALES).grid.shape == tuple(s.stop - s.start for s in box)


@settings(max_examples=50, deadline=None)
@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)), dense=st.booleans())
def test_opening_is_scipys(mask, dense):
    mask = ndimage.binary_dilation(mask) if dense else mask
    np.testing.assert_array_equal(opened(mask), ndimage.binary_opening(mask))


def test_specks_outside_the_body_do_not_widen_the_box(nac_body):
    pet = nac_body.pet((60, 60, 60))
    speckled = pet.array.copy()
    speckled[2, 2, 2] = speckled[57, 57, 57] = 10 * nac_body.level
    speckled[2:4, 50:53, 3:6] = nac_body.level
    assert (
        network_input(Volume(speckled, pet.affine), 4.0, SCALES).grid.shape
        == network_input(pet, 4.0, SCALES).grid.shape
    )


@pytest.mark.parametrize("array", [np.zeros((20, 20, 20)), np.full((20, 20, 20), -3.0)])
def test_no_signal_is_refused(array):
    with pytest.raises(VolumeError, match="no positive voxel; check"):
        network_input(Volume(array.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), 4.0, SCALES)


@pytest.mark.parametrize("value", [1.0, 1000.0])
def test_a_constant_volume_is_refused(value):
    with pytest.raises(VolumeError, match="check"):
        network_input(Volume(np.full((20, 20, 20), value, np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), 4.0, SCALES)


def test_a_body_too_small_is_refused(nac_body):
    pet = nac_body.pet()
    with pytest.raises(VolumeError, match=r"at least 500 ml in the PET, found \d+ ml; check the voxel size"):
        network_input(Volume(pet.array, np.diag([1.0, 1.0, 1.0, 1.0])), 4.0, SCALES)


def test_a_single_hot_voxel_is_no_body(rng):
    noise = np.abs(rng.normal(size=(30, 30, 30))).astype(np.float32)
    noise[15, 15, 15] = 1e6
    with pytest.raises(VolumeError, match=r"found \d+ ml"):
        network_input(Volume(noise, np.diag([4.0, 4.0, 4.0, 1.0])), 4.0, SCALES)


def test_parts_of_the_body_that_lie_apart_are_in_the_box():
    """Two legs, and a speck of noise outside that is not a part."""
    pet = np.zeros((60, 50, 70), np.float32)
    for x in (18, 50):
        pet[5:55, 20:34, x - 7 : x + 7] = 1.0
    pet[2:4, 5:8, 5:8] = 1.0
    z, y, x = body_box(occupied_slices(pet, 1.0, 4.0))
    assert (z.start, z.stop) == (2, 58) and (y.start, y.stop) == (17, 37)
    assert (x.start, x.stop) == (8, 60)


# Where it is done


@pytest.mark.parametrize("spacing", [4.0, 2.1])
@pytest.mark.parametrize("stored", [(EVEN, (4.0, 4.0, 4.0)), ((150, 44, 80), (2.0, 3.7, 1.1))])
def test_a_gpu_gives_the_same_input(shim_gpu, nac_body, stored, spacing):
    """Bit for bit; CuPy's own averages, where there are finer voxels, may differ in the last place on a GPU."""
    pet, normaliser = nac_body.pet(*stored), Normaliser(scales=(0, 2), position=True)
    on_host, on_gpu = (network_input(pet, spacing, normaliser, device) for device in (None, Gpu(0)))
    assert isinstance(on_host.channels, np.ndarray) and not isinstance(on_gpu.channels, np.ndarray)
    np.testing.assert_array_equal(shim_gpu.get(on_gpu.channels), on_host.channels)
    assert on_gpu.grid.shape == on_host.grid.shape and on_gpu.reference == on_host.reference
    for ours, theirs in zip(on_gpu.occupied, on_host.occupied, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("spacing", "level"), [(1.0, 2), (1.5, 2), (2.0, 1), (3.0, 1), (4.0, 0), (5.0, 0)])
def test_the_overview_is_of_4_mm_or_more(spacing, level):
    assert overview_level(spacing) == level


@pytest.mark.parametrize("spacing", [4.0, 2.0, 1.7])
def test_slices_with_body_are_occupied_at_every_spacing(nac_body, spacing):
    pet = nac_body.pet((60, 50, 45))
    prepared = network_input(pet, spacing, Normaliser())
    body = to_grid(pet, prepared.grid, fill=0.0) > 0.5 * nac_body.level
    for axis, held in enumerate(prepared.occupied):
        assert held.shape == (prepared.grid.shape[axis],)
        others = tuple({0, 1, 2} - {axis})
        assert held[body.any(axis=others)].all() and held[0]
    coarse = network_input(pet, 4.0, Normaliser())
    size_mm = [np.array(p.grid.shape) * p.grid.spacing for p in (prepared, coarse)]
    assert np.abs(size_mm[0] - size_mm[1]).max() <= 4 * 4


def test_a_gap_between_two_parts_of_the_body_is_not_occupied():
    pet = np.zeros((60, 50, 70), np.float32)
    for x in (14, 56):
        pet[5:55, 15:35, x - 8 : x + 8] = 1.0
    z, y, x = occupied_slices(pet, 1.0, 4.0)
    assert z[3:57].all() and y[13:37].all() and not x[26:44].any() and x[8:20].all() and x[50:62].all()
