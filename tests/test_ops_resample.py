"""ops.resample and ops.grid_matrix: against a float64 loop, and where the answer is known exactly."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from sctrt import ops

IDENTITY = np.eye(4)
SHAPE = (9, 11, 13)
ORDERS = list(itertools.permutations(range(3)))
shapes = st.tuples(*[st.integers(1, 7)] * 3)
seeds = st.integers(0, 2**32 - 1)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1000, 3000, shape).astype(np.float32)


def ramp(shape):
    z, y, x = np.indices(shape)
    return (5 * x - 3 * y + 2 * z + 7).astype(np.float32)


def separable(order, steps, offsets):
    """The input's axis i (x, y, z) runs along the output's axis order[i]."""
    matrix = np.zeros((4, 4))
    for axis in range(3):
        matrix[axis, order[axis]], matrix[axis, 3] = steps[axis], offsets[axis]
    matrix[3, 3] = 1
    return matrix


def between(order, steps, from_shape, to_shape):
    """Separable, from the middle of one grid to the middle of the other."""
    matrix = separable(order, steps, (0, 0, 0))
    middles = [(np.array(shape[::-1]) - 1) / 2 for shape in (from_shape, to_shape)]
    matrix[:3, 3] = middles[0] - matrix[:3, :3] @ middles[1]
    return matrix


def nearly_oblique(matrix):
    """The same positions from a matrix without zeros, which goes the way of all maps."""
    return np.where(matrix == 0, 1e-200, matrix)[:3]


@st.composite
def separable_maps(draw):
    """Other spacings, flips and orders; half of them with positions on centres, edges and half way between."""
    steps, offsets = st.floats(-3, 3), st.floats(-9, 9)
    if draw(st.booleans()):
        steps, offsets = (st.sampled_from([-2, -1, -0.5, 0, 0.5, 1, 2, 3]), st.integers(-9, 9).map(lambda n: n / 2))
    return separable(draw(st.sampled_from(ORDERS)), *[draw(st.tuples(s, s, s)) for s in (steps, offsets)])


@st.composite
def oblique_maps(draw):
    rng = np.random.default_rng(draw(seeds))
    matrix = draw(separable_maps())[:3]
    matrix[:, :3] += rng.normal(0, draw(st.sampled_from([1e-3, 0.4])), (3, 3)) * (rng.random((3, 3)) < 0.6)
    return matrix


def resample_poisoned(volume, matrix, shape, **options):
    """Into the middle of an array of NaNs, which must stay around it; `offset` shifts it against the cache lines."""
    offset = options.pop("offset", 0)
    count = int(np.prod(shape))
    memory = np.full(count + 64 + offset, np.nan, np.float32)
    out = memory[32 + offset : 32 + offset + count].reshape(shape)
    assert ops.resample(volume, matrix, shape, out=out, **options) is out
    assert np.isnan(memory[: 32 + offset]).all() and np.isnan(memory[32 + offset + count :]).all()
    return out


@given(from_shape=shapes, to_shape=shapes, matrix=separable_maps() | oblique_maps(), seed=seeds)
def test_resample_is_the_reference(from_shape, to_shape, matrix, seed):
    volume = random_volume(from_shape, seed)
    out = resample_poisoned(volume, matrix, to_shape, fill=-1000)
    expected = reference.resample(volume, matrix, to_shape, -1000)
    np.testing.assert_allclose(out, expected, atol=4e-3)  # 1e-6 of 4000
    np.testing.assert_array_equal(out, reference.resample_bits(volume, matrix, to_shape, -1000))


@given(from_shape=shapes, to_shape=shapes, matrix=separable_maps(), seed=seeds)
def test_separable_maps_give_the_bits_of_others(from_shape, to_shape, matrix, seed):
    volume = random_volume(from_shape, seed)
    volume[np.random.default_rng(seed).random(from_shape) < 0.1] = np.nan
    out = resample_poisoned(volume, matrix, to_shape, fill=-1000)
    np.testing.assert_array_equal(out, resample_poisoned(volume, nearly_oblique(matrix), to_shape, fill=-1000))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [0.37, 1, -1, 2.6, 17])
def test_lines_longer_than_a_segment(order, step):
    """Along each axis of the output in turn."""
    for long in range(3):
        to_shape, from_shape = [5, 18, 7], [6, 5, 4]
        to_shape[2 - long] = 2500
        from_shape[2 - order.index(long)] = int(2600 * abs(step))
        volume = random_volume(from_shape)
        steps = np.where(np.array(order) == long, step, 0.3)
        matrix = between(order, steps, from_shape, to_shape)
        out = resample_poisoned(volume, matrix, to_shape, fill=-1000)
        np.testing.assert_array_equal(out, reference.resample_bits(volume, matrix, to_shape, -1000))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("to_shape", "offset"), [((43, 450, 448), 5), ((61, 401, 371), 3)])
def test_outputs_larger_than_the_caches(order, to_shape, offset):
    volume = random_volume((40, 50, 60))
    matrix = between(
        order, np.array(volume.shape[::-1]) / np.array(to_shape[::-1])[list(order)] * 1.01, (40, 50, 60), to_shape
    )
    out = resample_poisoned(volume, matrix, to_shape, fill=-1000, offset=offset)
    other = resample_poisoned(volume, nearly_oblique(matrix), to_shape, fill=-1000, offset=offset)
    np.testing.assert_array_equal(out, other)
    part = (slice(20, 24), slice(0, 450, 9), slice(None))
    shifted = np.vstack([matrix[:3], [0, 0, 0, 1]]) @ [[1, 0, 0, 0], [0, 9, 0, 0], [0, 0, 1, 20], [0, 0, 0, 1]]
    expected = reference.resample_bits(volume, shifted, out[part].shape, -1000)
    np.testing.assert_allclose(out[part], expected, atol=4e-3)


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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_resample_to_another_orientation_is_exact(order, signs):
    """Array axis 2 - i of the input is axis 2 - order[i] of the output."""
    volume = random_volume((4, 5, 36))
    turned = np.transpose(volume, [2 - order.index(2 - axis) for axis in range(3)])
    expected = np.flip(turned, [2 - order[axis] for axis in range(3) if signs[axis] < 0])
    matrix = between(order, signs, volume.shape, expected.shape)
    np.testing.assert_array_equal(resample_poisoned(volume, matrix, expected.shape), expected)
    np.testing.assert_array_equal(resample_poisoned(volume, nearly_oblique(matrix), expected.shape), expected)


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


@pytest.mark.parametrize("exponent", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_normaliser_multiplies_for_whole_exponents(exponent):
    volume = random_volume(SHAPE)
    plain = ops.resample(volume, IDENTITY, (12, 12, 14), fill=250)
    ratio = np.maximum(plain, 0) / np.float32(700)
    square = ratio * ratio
    factors = [ratio, square, square * square, (square * square) * (square * square)]
    low, high = (
        np.prod([factors[bit] for bit in bits if exponent >> bit & 1] or [np.ones_like(ratio)], axis=0)
        for bits in ((0, 1), (2, 3))
    )
    out = ops.resample(volume, IDENTITY, (12, 12, 14), fill=250, reference=700, exponent=exponent)
    np.testing.assert_array_equal(out, 1 - 2 / (1 + low * high))


@given(
    matrix=separable_maps() | oblique_maps(),
    exponent=st.sampled_from([0.5, 1, 1.7, 2, 3, 8, 9]),
    scale=st.sampled_from([1e-6, 1.0, 1e9]),
    seed=seeds,
)
def test_the_normaliser_is_the_reference(matrix, exponent, scale, seed):
    volume = (random_volume((4, 5, 6), seed) * scale).astype(np.float32)
    out = ops.resample(volume, matrix, (6, 5, 7), fill=200 * scale, reference=700 * scale, exponent=exponent)
    plain = ops.resample(volume, matrix, (6, 5, 7), fill=200 * scale)
    np.testing.assert_allclose(out, reference.normalise(plain, 700 * scale, exponent), atol=2e-6)
    assert out.min() >= -1 and out.max() <= 1


@pytest.mark.parametrize("exponent", [2, 0.7])
def test_the_normaliser_at_its_ends(exponent):
    volume = np.array([np.nan, np.inf, -np.inf, -3, -0.0, 0, 1e-30, 2, 3e38], np.float32).reshape(1, 1, -1)
    out = ops.resample(volume, IDENTITY, (1, 2, 9), fill=np.nan, reference=2, exponent=exponent)
    np.testing.assert_array_equal(out[0, 0], np.float32([np.nan, 1, -1, -1, -1, -1, -1, 0, 1]))
    assert np.isnan(out[0, 1]).all()


@pytest.mark.parametrize(("ref", "exponent"), [(0, 2), (-1, 2), (np.nan, 2), (1e-60, 2), (1, 0), (1, np.inf)])
def test_the_normaliser_refuses_what_has_no_curve(ref, exponent):
    with pytest.raises(ValueError, match="reference and exponent must be positive float32 numbers, got"):
        ops.resample(np.zeros((3, 4, 5), np.float32), IDENTITY, (3, 4, 5), reference=ref, exponent=exponent)


def test_resample_reaches_beyond_2_to_the_31_elements():
    try:
        volume = np.zeros((1300, 1290, 1300), np.float32)  # mapped, hardly touched
    except MemoryError:
        pytest.skip("no 9 GB of address space")
    end = np.array(volume.shape) - (6, 7, 8)
    corner = random_volume((6, 7, 8))
    volume[end[0] :, end[1] :, end[2] :] = corner
    matrix = np.array([[0.5, 0.25, 0.125, 0.25], [-0.125, 0.75, 0.25, 1.5], [0.25, 0.125, 0.5, 0.5]])  # exact
    for small in (
        matrix,
        separable((0, 1, 2), (0.5, 0.75, 0.5), (0.5, 1, 1)),
        separable((2, 0, 1), (0.5, 1, -0.5), (1, 2, 5)),
    ):
        far = small[:3].copy()
        far[:, 3] += end[::-1]
        out = ops.resample(volume, far, (5, 6, 7), fill=-1000)
        np.testing.assert_array_equal(out, reference.resample_bits(corner, small, (5, 6, 7), -1000))


@pytest.mark.parametrize("value", [1e300, -1e300, 1e308, 1e-300])
@pytest.mark.parametrize("base", [IDENTITY[:3], -1e308 * IDENTITY[:3]])
def test_extreme_maps_stay_within_the_volume(value, base):
    """Products and sums overflow to infinity and cancel to NaN: outside."""
    volume = random_volume(SHAPE)
    for place in np.ndindex(3, 4):
        matrix = base.copy()
        matrix[place] = value
        with np.errstate(over="ignore", invalid="ignore"):
            expected = reference.resample_bits(volume, matrix, (3, 4, 70), -1000)
        np.testing.assert_array_equal(resample_poisoned(volume, matrix, (3, 4, 70), fill=-1000), expected)


GPU_MAPS = [
    *[between(order, (0.37, -0.8, 0.45), (9, 40, 21), (35, 37, 70)) for order in ORDERS],
    *[between(order, (-1, 1, 1), (35, 37, 39), (35, 37, 39)) for order in ORDERS],
    *[nearly_oblique(between(order, (0.3, 0.2, -0.25), (12, 11, 40), (35, 37, 70))) for order in ORDERS],
    *[between(order, (2.6, 1.7, 3.1), (60, 61, 62), (20, 19, 21)) + 0.01 for order in ORDERS],
]


@pytest.mark.gpu
@pytest.mark.parametrize("matrix", GPU_MAPS)
def test_resample_on_a_gpu_gives_the_same_bits(gpu, matrix):
    for from_shape, to_shape in [((20, 21, 40), (19, 35, 67)), ((1, 1, 2), (3, 17, 33)), ((60, 61, 62), (33, 9, 16))]:
        volume = random_volume(from_shape)
        volume[0, 0, 0] = np.nan
        for options in ({}, {"reference": 500, "exponent": 3}):
            out = gpu.put(np.full(to_shape, np.nan, np.float32))
            ops.resample(gpu.put(volume), matrix[:3], to_shape, fill=-1000, out=out, **options)
            expected = ops.resample(volume, matrix[:3], to_shape, fill=-1000, **options)
            np.testing.assert_array_equal(gpu.get(out), expected)


@pytest.mark.gpu
def test_resample_on_a_gpu_with_another_exponent(gpu):
    volume = random_volume(SHAPE)
    out = ops.resample(gpu.put(volume), IDENTITY, SHAPE, reference=500, exponent=1.7)
    np.testing.assert_allclose(gpu.get(out), reference.normalise(volume, 500, 1.7), atol=2e-6)
