"""ops.fuse_planes: median and range of three, scaled."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from sctrt import ops

finite = st.floats(-1e4, 1e4, width=32)


@given(
    stack=hnp.arrays(np.float32, st.tuples(st.just(3), *[st.integers(1, 6)] * 3), elements=finite),
    scale=st.sampled_from([1.0, 2000.0, -0.5]),
    offset=st.sampled_from([0.0, 976.0]),
)
def test_fuse_planes_is_median_and_range(stack, scale, offset):
    fused, spread = ops.fuse_planes(*stack, scale=scale, offset=offset)
    expected_fused, expected_spread = reference.fuse_planes(*stack, scale, offset)
    np.testing.assert_array_equal(fused, expected_fused)
    np.testing.assert_array_equal(spread, expected_spread)


def test_fuse_planes_does_not_depend_on_the_order(rng):
    stack = rng.normal(size=(3, 30, 31, 32)).astype(np.float32)
    results = [np.stack(ops.fuse_planes(*permuted)) for permuted in itertools.permutations(stack)]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_array_equal(results[0], np.stack(reference.fuse_planes(*stack, 1, 0)))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_fuse_planes_propagates_nan(which, rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    stack[which, 1, 2, 3] = np.nan
    for result in ops.fuse_planes(*stack):
        assert np.isnan(result[1, 2, 3])
        assert np.isnan(result).sum() == 1


def test_fuse_planes_outvotes_one_infinity():
    planes = [np.full((1, 1, 1), value, np.float32) for value in (np.inf, 2, 1)]
    fused, spread = ops.fuse_planes(*planes)
    assert fused.item() == 2
    assert spread.item() == np.inf


def test_fuse_planes_may_write_over_an_input(rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    expected = reference.fuse_planes(*stack, 1, 0)
    fused, spread = ops.fuse_planes(*stack, fused=stack[2], spread=stack[0])
    np.testing.assert_array_equal(fused, expected[0])
    np.testing.assert_array_equal(spread, expected[1])
    with pytest.raises(ValueError, match="spread must not overlap fused"):
        ops.fuse_planes(*stack, fused=stack[2], spread=stack[2])


def test_fuse_planes_refuses_unequal_shapes():
    axial, other = np.zeros((3, 4, 5), np.float32), np.zeros((3, 5, 4), np.float32)
    with pytest.raises(ValueError, match=r"coronal must have the shape \(3, 4, 5\) of axial, got \(3, 5, 4\)"):
        ops.fuse_planes(axial, other, axial)
    with pytest.raises(ValueError, match=r"fused must have the shape \(3, 4, 5\) to hold the result, got \(3, 5, 4\)"):
        ops.fuse_planes(axial, axial, axial, fused=other)


@pytest.mark.gpu
def test_fuse_planes_on_a_gpu(gpu, rng):
    stack = rng.normal(size=(3, 33, 34, 35)).astype(np.float32)
    stack[1, 2, 3, 4] = np.nan
    results = ops.fuse_planes(*[gpu.put(plane) for plane in stack], scale=2000, offset=976)
    for result, expected in zip(results, reference.fuse_planes(*stack, 2000, 976), strict=True):
        np.testing.assert_array_equal(gpu.get(result), expected)
