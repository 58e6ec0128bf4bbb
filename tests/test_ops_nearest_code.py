"""ops.nearest_code against brute force, and its rule for ties and for values that are no numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from sctrt import ops


def case(seed, n, d, h, w, k):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d, h, w)).astype(np.float32), rng.normal(size=(k, d)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 3),
    d=st.sampled_from([1, 2, 3, 4, 5, 8, 64]),
    h=st.integers(1, 9),
    w=st.integers(1, 40),
    k=st.integers(1, 50),
)
def test_nearest_code_rounds_as_documented(seed, n, d, h, w, k):
    latent, codebook = case(seed, n, d, h, w, k)
    index, quantised = ops.nearest_code(latent, codebook)
    expected_index, expected = reference.nearest_code(latent, codebook)
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(quantised, expected)


@pytest.mark.parametrize("d", [3, 4, 7])
def test_nearest_code_is_the_nearest_in_float64(d):
    latent, codebook = case(d, 2, d, 20, 30, 500)
    index, _ = ops.nearest_code(latent, codebook)
    distances = reference.squared_distances(latent, codebook, np.float64)
    chosen = np.take_along_axis(distances, index[:, None].astype(int), axis=1)[:, 0]
    least = distances.min(axis=1)
    # The rounding of d squares, sums and differences of numbers below 10.
    assert (chosen - least <= 4 * d * np.finfo(np.float32).eps * (least + 1e-6)).all()
    assert (index == distances.argmin(axis=1)).mean() > 0.999


def test_nearest_code_gives_equal_codes_the_lowest_index():
    latent, codebook = case(0, 1, 3, 16, 16, 40)
    doubled = np.concatenate([codebook, codebook[::-1], codebook])
    index, _ = ops.nearest_code(latent, doubled)
    np.testing.assert_array_equal(index, ops.nearest_code(latent, codebook)[0])
    halfway = np.zeros((1, 1, 1, 1), np.float32)
    assert ops.nearest_code(halfway, np.array([[1], [-1]], np.float32))[0].item() == 0


def test_nearest_code_of_a_code_is_itself():
    _, codebook = case(1, 1, 3, 1, 1, 600)
    latent = np.ascontiguousarray(codebook.T.reshape(1, 3, 20, 30))
    index, quantised = ops.nearest_code(latent, codebook)
    np.testing.assert_array_equal(index.ravel(), np.arange(600))
    np.testing.assert_array_equal(quantised, latent)


def test_nearest_code_gives_nan_and_infinity_index_0():
    latent, codebook = case(2, 1, 3, 2, 40, 9)
    latent[0, 1, 0, :20] = np.nan
    latent[0, 2, 1, 5] = np.inf
    index, quantised = ops.nearest_code(latent, codebook)
    expected, _ = reference.nearest_code(latent, codebook)
    np.testing.assert_array_equal(index, expected)
    assert (index[0, 0, :20] == 0).all()
    assert index[0, 1, 5] == 0
    np.testing.assert_array_equal(quantised[0, :, 0, 3], codebook[0])


def test_nearest_code_fills_what_it_is_given():
    latent, codebook = case(3, 2, 3, 5, 7, 20)
    index, quantised = np.full((2, 5, 7), -1, np.int32), np.zeros_like(latent)
    returned = ops.nearest_code(latent, codebook, index=index, quantised=quantised)
    assert returned[0] is index
    assert returned[1] is quantised
    np.testing.assert_array_equal(index, reference.nearest_code(latent, codebook)[0])


def test_nearest_code_refuses_what_does_not_belong_together():
    latent, codebook = case(4, 2, 3, 5, 7, 20)
    with pytest.raises(ValueError, match=r"codebook must have the shape \(20, 3\) to match .* got \(20, 2\)"):
        ops.nearest_code(latent, np.ascontiguousarray(codebook[:, :2]))
    with pytest.raises(ValueError, match=r"latent must be float32 \[n, d, h, w\], got float32 \(3, 5, 7\)"):
        ops.nearest_code(latent[0], codebook)
    with pytest.raises(ValueError, match=r"codebook must be float32 \[k, d\], got float64 \(20, 3\); convert"):
        ops.nearest_code(latent, codebook.astype(np.float64))
    with pytest.raises(ValueError, match="1 to 64 channels, got 65"):
        ops.nearest_code(np.zeros((1, 65, 2, 2), np.float32), np.zeros((4, 65), np.float32))
    with pytest.raises(ValueError, match="index must be int32"):
        ops.nearest_code(latent, codebook, index=np.zeros((2, 5, 7), np.int64))
    with pytest.raises(ValueError, match="quantised must not overlap latent"):
        ops.nearest_code(latent, codebook, quantised=latent)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [3, 4, 7])
def test_nearest_code_on_a_gpu(gpu, d):
    latent, codebook = case(d, 2, d, 33, 41, 700)
    index, quantised = ops.nearest_code(gpu.put(latent), gpu.put(codebook))
    expected_index, expected = reference.nearest_code(latent, codebook)
    np.testing.assert_array_equal(gpu.get(index), expected_index)
    np.testing.assert_array_equal(gpu.get(quantised), expected)
