"""ops.fuse_planes: median or mean and range of three, scaled, clamped, masked."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from sctrt import ops

METHODS = ["median", "mean", "inverse-nearest"]
DTYPES = ["float32", "float16", "bfloat16"]
MANIFEST = {"scale": 2000.0, "offset": 976.0, "limits": (-1024.0, 2976.0)}
POISON = 0x7F  # of every byte
finite = st.floats(-1e4, 1e4, width=32)
anything = st.floats(width=32)


def options():
    """Arguments of fuse_planes and of its reference."""
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.0])
    return st.fixed_dictionaries(
        {
            "scale": st.sampled_from([1.0, 2000.0, -0.5]),
            "offset": st.sampled_from([0.0, 976.0]),
            "method": st.sampled_from(METHODS),
            "weights": st.tuples(weight, st.just(1.0), weight),
            "limits": st.sampled_from([(-np.inf, np.inf), (-1024.0, 2976.0), (5.0, 5.0)]),
            "background": st.sampled_from([-1000.0, 0.0]),
            "dtype": st.sampled_from(["float32", "int16"]),
        }
    )


def stacks(elements):
    """Three predictions [z, y, x]: around the widths of vectors, and a mask."""
    shape = st.tuples(
        st.integers(1, 2), st.integers(1, 5), st.integers(1, 20) | st.sampled_from([63, 64, 65, 1023, 1025])
    )
    return shape.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float32, (3, *shape), elements=elements),
            st.none() | hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 2, 255])),
        )
    )


def expect_fused(stack, mask, given, results):
    with np.errstate(all="ignore"):
        expected = reference.fuse_planes(*stack, mask=mask, **given)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


@given(stack=stacks(finite), given=options())
def test_fuse_planes_is_the_reference(stack, given):
    predictions, mask = stack
    expect_fused(predictions, mask, given, ops.fuse_planes(*predictions, mask=mask, **given))


@given(stack=stacks(anything), given=options())
def test_fuse_planes_is_the_reference_for_infinities_and_nan(stack, given):
    predictions, mask = stack
    expect_fused(predictions, mask, given, ops.fuse_planes(*predictions, mask=mask, **given))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("method", METHODS)
def test_fuse_planes_of_half_precision(dtype, method, rng):
    torch = pytest.importorskip("torch")
    stack = torch.from_numpy(rng.normal(size=(3, 5, 6, 67)).astype(np.float32)).to(getattr(torch, dtype))
    mask = torch.from_numpy(rng.random((5, 6, 67)) < 0.8)
    fused, spread = ops.fuse_planes(*stack, method=method, mask=mask, **MANIFEST)
    given = {**MANIFEST, "method": method}
    expect_fused(stack.float().numpy(), mask.numpy(), given, (fused.numpy(), spread.numpy()))


def test_fuse_planes_of_numpy_bfloat16(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    stack = rng.normal(size=(3, 5, 6, 67)).astype(bfloat16)
    expect_fused(stack, None, MANIFEST, ops.fuse_planes(*stack, **MANIFEST))


@pytest.mark.parametrize("shift", [0, 1, 5])
@pytest.mark.parametrize(
    ("voxels", "dtype"),
    [(3, "float32"), (70_001, "float32"), (70_001, "int16"), (2**22 + 1, "float32")],  # the last: past the caches
)
def test_fuse_planes_fills_its_outputs_and_nothing_else(voxels, shift, dtype, rng):
    stack = rng.normal(size=(3, 1, 1, voxels)).astype(np.float32)
    guard = 64
    everything = np.full(((voxels + 2 * guard) * 2, 4), POISON, np.uint8)[:, : np.dtype(dtype).itemsize]
    whole = np.ascontiguousarray(everything).view(dtype).reshape(2, -1)
    first, second = guard + shift, guard - shift
    fused, spread = whole[0, first : first + voxels], whole[1, second : second + voxels]
    ops.fuse_planes(*stack, **MANIFEST, fused=fused.reshape(1, 1, -1), spread=spread.reshape(1, 1, -1))
    expect_fused(stack, None, {**MANIFEST, "dtype": dtype}, (fused.reshape(1, 1, -1), spread.reshape(1, 1, -1)))
    for out, start in zip(whole, (first, second), strict=True):
        around = np.concatenate([out[:start], out[start + voxels :]])
        assert (around.view(np.uint8) == POISON).all()


def test_fuse_planes_does_not_depend_on_the_order(rng):
    stack = rng.normal(size=(3, 30, 31, 32)).astype(np.float32)
    results = [np.stack(ops.fuse_planes(*permuted)) for permuted in itertools.permutations(stack)]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_array_equal(results[0], np.stack(reference.fuse_planes(*stack, 1, 0)))


def test_the_mean_of_equal_weights_is_numpys(rng):
    stack = rng.normal(size=(3, 7, 8, 9)).astype(np.float32)
    fused, _ = ops.fuse_planes(*stack, method="mean")
    np.testing.assert_array_equal(fused, np.mean(stack, axis=0))


def test_weights_choose_a_plane(rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    for plane, weights in zip(stack, np.eye(3).tolist(), strict=True):
        np.testing.assert_array_equal(ops.fuse_planes(*stack, method="mean", weights=weights)[0], plane)


def test_two_that_agree_outvote_the_third_and_are_averaged(rng):
    """inverse-nearest: near the mean of two that agree; the mean where all do; between the extremes always."""
    one = rng.uniform(-500, 500, (3, 4, 5)).astype(np.float32)
    fused, _ = ops.fuse_planes(one, one + 4, one + 4000, method="inverse-nearest")
    np.testing.assert_allclose(fused, one + 2, atol=10)  # the plain mean lies 1335 above
    close = [one, one + np.float32(0.5), one + np.float32(1)]
    fused, _ = ops.fuse_planes(*close, method="inverse-nearest", agreement=1e4)
    np.testing.assert_allclose(fused, np.mean(close, axis=0), atol=1e-3)
    apart = rng.uniform(-1000, 3000, (3, 2, 3, 4)).astype(np.float32)
    fused, _ = ops.fuse_planes(*apart, method="inverse-nearest")
    assert (fused >= apart.min(axis=0) - 1e-2).all() and (fused <= apart.max(axis=0) + 1e-2).all()


@pytest.mark.parametrize("agreement", [0.0, -1.0, np.nan, np.inf])
def test_fuse_planes_refuses_an_agreement_that_cannot_be(agreement):
    plane = np.zeros((1, 1, 1), np.float32)
    with pytest.raises(ValueError, match="agreement must be a finite number above 0"):
        ops.fuse_planes(plane, plane, plane, method="inverse-nearest", agreement=agreement)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_fuse_planes_propagates_nan(which, method, rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    stack[which, 1, 2, 3] = np.nan
    for result in ops.fuse_planes(*stack, method=method, limits=(-1, 1)):
        assert np.isnan(result[1, 2, 3])
        assert np.isnan(result).sum() == 1
    for result in ops.fuse_planes(*stack, method=method, limits=(-1, 1), dtype=np.int16):
        assert result[1, 2, 3] == -32768
        assert (result == -32768).sum() == 1


def test_a_mask_hides_nan(rng):
    stack = np.full((3, 1, 1, 3), np.nan, np.float32)
    fused, spread = ops.fuse_planes(*stack, mask=np.array([[[False, True, False]]]), background=-1000)
    np.testing.assert_array_equal(fused, [[[-1000, np.nan, -1000]]])
    np.testing.assert_array_equal(spread, [[[0, np.nan, 0]]])


def test_limits_clamp_the_fused_value_not_the_spread():
    planes = [np.full((1, 1, 1), value, np.float32) for value in (-9, 5, 9)]
    fused, spread = ops.fuse_planes(*planes, limits=(-1, 1))
    assert fused.item() == 1
    assert spread.item() == 18


@given(value=hnp.arrays(np.float32, (1, 1, 70), elements=anything))
@example(value=np.array([[[0.5, 1.5, 2.5, -0.5, -1.5, 32766.5, 32767.4, 32767.6, -32768.5, -32769, 1e30]]], np.float32))
def test_int16_is_rounded_half_to_even_and_saturated(value):
    fused, _ = ops.fuse_planes(value, value, value, dtype="int16")
    np.testing.assert_array_equal(fused, reference.to_dtype(value, np.int16))


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


def test_fuse_planes_may_write_over_large_inputs(rng):
    stack = rng.normal(size=(3, 30, 400, 401)).astype(np.float32)
    expected = reference.fuse_planes(*stack, 1, 0)
    fused, spread = ops.fuse_planes(*stack, fused=stack[0], spread=stack[1])
    np.testing.assert_array_equal(fused, expected[0])
    np.testing.assert_array_equal(spread, expected[1])


def test_fuse_planes_may_not_write_elements_of_another_size_over_an_input(rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    with pytest.raises(ValueError, match="fused must not overlap axial"):
        ops.fuse_planes(*stack, fused=stack[0].reshape(-1).view(np.int16)[:60].reshape(3, 4, 5))


def test_fuse_planes_takes_the_dtype_of_its_outputs(rng):
    stack = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    for name in ("fused", "spread"):
        results = ops.fuse_planes(*stack, scale=2000, **{name: np.zeros((3, 4, 5), np.int16)})
        expect_fused(stack, None, {"scale": 2000, "offset": 0, "dtype": "int16"}, results)
    with pytest.raises(ValueError, match=r"spread must be int16 \(3, 4, 5\), got float32"):
        ops.fuse_planes(*stack, fused=np.zeros((3, 4, 5), np.int16), spread=np.zeros((3, 4, 5), np.float32))


def test_fuse_planes_refuses_unequal_shapes():
    axial, other = np.zeros((3, 4, 5), np.float32), np.zeros((3, 5, 4), np.float32)
    with pytest.raises(ValueError, match=r"coronal must have the shape \(3, 4, 5\) of axial, got \(3, 5, 4\)"):
        ops.fuse_planes(axial, other, axial)
    with pytest.raises(ValueError, match=r"fused must have the shape \(3, 4, 5\) to hold the result, got \(3, 5, 4\)"):
        ops.fuse_planes(axial, axial, axial, fused=other)
    with pytest.raises(ValueError, match=r"mask must have the shape \(3, 4, 5\) of axial, got \(3, 5, 4\)"):
        ops.fuse_planes(axial, axial, axial, mask=other.astype(bool))


def test_fuse_planes_refuses_other_arguments():
    axial = np.zeros((3, 4, 5), np.float32)
    with pytest.raises(ValueError, match=r"sagittal must be float32 \[z, y, x\], as axial is, got float16"):
        ops.fuse_planes(axial, axial, axial.astype(np.float16))
    with pytest.raises(ValueError, match=r"mask must be bool or uint8 \[z, y, x\], got float32"):
        ops.fuse_planes(axial, axial, axial, mask=axial)
    with pytest.raises(ValueError, match="fused and spread must be float32 or int16, got float16"):
        ops.fuse_planes(axial, axial, axial, dtype=np.float16)
    with pytest.raises(ValueError, match="method must be 'median', 'mean' or 'inverse-nearest', got 'mode'"):
        ops.fuse_planes(axial, axial, axial, method="mode")
    with pytest.raises(ValueError, match=r"limits must be \(low, high\), low at most high, got \(1.0, 0.0\)"):
        ops.fuse_planes(axial, axial, axial, limits=(1, 0))
    for weights in [(0, 0, 0), (1, -1, 1), (np.nan, 1, 1), (np.inf, 1, 1)]:
        with pytest.raises(ValueError, match="weights must be three finite numbers, none below 0 and not all 0"):
            ops.fuse_planes(axial, axial, axial, method="mean", weights=weights)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(33, 34, 35), (1, 1, 1), (1, 1, 3), (4, 5, 8), (1, 7, 37)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", ["float32", "int16"])
def test_fuse_planes_on_a_gpu(gpu, shape, dtype, out, rng):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    stack = rng.normal(size=(3, *shape)).astype(dtype)
    stack[1, 0, 0, 0] = np.nan
    mask = rng.random(shape) < 0.8
    for method, given_mask in itertools.product(METHODS, [None, mask, mask.astype(np.uint8)]):
        given = {**MANIFEST, "method": method, "weights": (1, 2, 0.5), "dtype": out}
        put = None if given_mask is None else gpu.put(given_mask)
        results = ops.fuse_planes(*[gpu.put(plane) for plane in stack], mask=put, **given)
        expect_fused(stack, given_mask, given, [gpu.get(result) for result in results])


@pytest.mark.gpu
@pytest.mark.parametrize("start", [0, 1, 2, 4])
def test_a_gpu_fuses_arrays_that_are_not_aligned_to_vectors(gpu, start, rng):
    stack = rng.normal(size=(3, 1, 1, 216)).astype(np.float32)
    results = ops.fuse_planes(*[gpu.put(plane)[:, :, start:] for plane in stack])
    expect_fused(stack[..., start:], None, {"scale": 1, "offset": 0}, [gpu.get(result) for result in results])


@pytest.mark.gpu
def test_a_gpu_fuses_in_place(gpu, rng):
    stack = rng.normal(size=(3, 5, 9, 24)).astype(np.float32)
    put = [gpu.put(plane) for plane in stack]
    ops.fuse_planes(*put, fused=put[1], spread=put[2])
    expect_fused(stack, None, {"scale": 1, "offset": 0}, [gpu.get(put[1]), gpu.get(put[2])])
