"""ops.resample and ops.grid_matrix: against a float64 loop, and where the answer is known exactly."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from sctrt import ops

IDENTITY = np.eye(4)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1000, 3000, shape).astype(np.float32)


def ramp(shape):
    z, y, x = np.indices(shape)
    return (5 * x - 3 * y + 2 * z + 7).astype(np.float32)


@given(from_shape=shapes, to_shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_resample_is_the_reference(from_shape, to_shape, seed):
    rng = np.random.default_rng(seed)
    volume = random_volume(from_shape, seed)
    matrix = np.concatenate([np.eye(3) + rng.normal(0, 0.4, (3, 3)), rng.uniform(-2, 4, (3, 1))], axis=1)
    expected = reference.resample(volume, matrix, to_shape, -1000)
    np.testing.assert_allclose(ops.resample(volume, matrix, to_shape, fill=-1000), expected, atol=4e-3)  # 1e-6 of 4000


@given(shape=shapes)
def test_resample_by_the_identity_changes_no_bit(shape):
    volume = random_volume(shape)
    volume[0, 0, 0] = -0.0
    volume[-1, -1, -1] = np.nan
    out = ops.resample(volume, IDENTITY, shape)
    np.testing.assert_array_equal(out.view(np.uint32), volume.view(np.uint32))


@given(shape=shapes, shift=st.tuples(*[st.integers(-3, 3)] * 3))
def test_resample_by_whole_voxels_copies(shape, shift):
    volume = random_volume(shape)
    matrix = np.eye(4)
    matrix[:3, 3] = shift[::-1]
    expected = np.full(shape, -1000, np.float32)
    for out_index in np.ndindex(shape):
        in_index = np.add(out_index, shift)
        if (in_index >= 0).all() and (in_index < shape).all():
            expected[out_index] = volume[tuple(in_index)]
    np.testing.assert_array_equal(ops.resample(volume, matrix, shape, fill=-1000), expected)


@pytest.mark.parametrize("axes", [axes for n in range(4) for axes in itertools.combinations(range(3), n)])
def test_resample_between_flipped_grids_is_exact(axes):
    volume = random_volume((4, 5, 6))
    affine = np.diag([4.07283, 4.07283, 3.0, 1.0])
    affine[:3, 3] = [-417.1, 203.7, 911.3]
    flipped = affine.copy()
    for axis in axes:  # of (z, y, x); columns are x, y, z
        column = 2 - axis
        flipped[:3, 3] += affine[:3, column] * (volume.shape[axis] - 1)
        flipped[:3, column] *= -1
    out = ops.resample(volume, ops.grid_matrix(flipped, affine), volume.shape)
    np.testing.assert_array_equal(out, np.flip(volume, axes))


def test_resample_continues_an_affine_ramp():
    volume = ramp((8, 9, 10))
    angle = 0.3
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = [3.0, 0.2, 1.7]
    z, y, x = np.indices((6, 5, 4))
    at = np.tensordot(matrix[:3, :3], np.stack([x, y, z]), 1) + matrix[:3, 3, None, None, None]
    assert (at >= 0).all()
    expected = 5 * at[0] - 3 * at[1] + 2 * at[2] + 7
    np.testing.assert_allclose(ops.resample(volume, matrix, (6, 5, 4)), expected, atol=2e-5)


@given(seed=st.integers(0, 999), scale=st.floats(-3, 3, width=32))
def test_resample_is_linear_in_the_volume(seed, scale):
    rng = np.random.default_rng(seed)
    a, b = random_volume((4, 5, 6), seed), random_volume((4, 5, 6), seed + 1)
    matrix = np.concatenate([np.eye(3) * 0.7, rng.uniform(-1, 1, (3, 1))], axis=1)
    whole = ops.resample(a + np.float32(scale) * b, matrix, (6, 6, 6))
    parts = ops.resample(a, matrix, (6, 6, 6)) + scale * ops.resample(b, matrix, (6, 6, 6))
    np.testing.assert_allclose(whole, parts, atol=1e-2)


def test_resample_keeps_a_constant():
    matrix = np.diag([0.37, 0.41, 0.43, 1.0])
    out = ops.resample(np.full((5, 5, 5), -1024.1, np.float32), matrix, (8, 8, 8), fill=0)
    np.testing.assert_array_equal(out, np.float32(-1024.1))


@pytest.mark.parametrize(
    ("position", "expected"),
    [(-0.51, 0), (-0.5, 10), (-0.3, 10), (0.25, 12.5), (1.0, 20), (2.49, 30), (2.5, 30), (2.51, 0), (1e30, 0)],
)
def test_resample_reaches_half_a_voxel_beyond_the_centres(position, expected):
    volume = np.array([10, 20, 30], np.float32)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[2 - axis] = 3
        matrix = np.zeros((3, 4))
        matrix[axis, 3] = position
        assert ops.resample(volume.reshape(shape), matrix, (1, 1, 1)).item() == expected


def test_grid_matrix_maps_through_the_world(rng):
    to_affine, from_affine = np.eye(4), np.eye(4)
    to_affine[:3] = rng.normal(size=(3, 4))
    from_affine[:3] = rng.normal(size=(3, 4))
    matrix = ops.grid_matrix(from_affine, to_affine)
    index = np.array([3, 4, 5, 1])
    np.testing.assert_allclose(to_affine @ matrix @ index, from_affine @ index, atol=1e-12)


def test_grid_matrix_snaps_what_float32_headers_spoil():
    affine = np.array([[4.07283, 0, 0, -417.1], [0, 4.07283, 0, 203.7], [0, 0, 3.27, 911.3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(ops.grid_matrix(affine, affine), IDENTITY)
    np.testing.assert_array_equal(ops.grid_matrix(affine.astype(np.float32), affine), IDENTITY)
    finer = affine.copy()
    finer[:3, :3] /= 3
    np.testing.assert_allclose(ops.grid_matrix(finer, affine)[:3, :3], np.eye(3) / 3, rtol=1e-15)


def test_resample_refuses_what_is_no_map():
    volume = np.zeros((3, 4, 5), np.float32)
    for matrix in (np.eye(3), np.full((3, 4), np.nan), np.diag([1.0, 1, 1, 2])):
        with pytest.raises(ValueError, match=r"matrix must be finite \[3, 4\], or \[4, 4\] .* grid_matrix"):
            ops.resample(volume, matrix, (3, 4, 5))
    with pytest.raises(ValueError, match=r"shape must be \(z, y, x\), each at least 1, got \(3, 0, 5\)"):
        ops.resample(volume, IDENTITY, (3, 0, 5))
    with pytest.raises(ValueError, match="out must not overlap volume"):
        ops.resample(volume, IDENTITY, (3, 4, 5), out=volume)


@pytest.mark.gpu
def test_resample_on_a_gpu(gpu):
    volume = random_volume((20, 21, 22))
    matrix = np.concatenate([np.diag([0.7, 0.8, 0.9]) + 0.05, [[-1.0], [0.3], [2.0]]], axis=1)
    out = ops.resample(gpu.put(volume), matrix, (12, 13, 14), fill=-1000)
    np.testing.assert_array_equal(gpu.get(out), ops.resample(volume, matrix, (12, 13, 14), fill=-1000))
    np.testing.assert_allclose(gpu.get(out), reference.resample(volume, matrix, (12, 13, 14), -1000), atol=4e-3)
