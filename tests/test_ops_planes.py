"""ops.extract_planes and ops.insert_planes: against np.moveaxis, and inverse to each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from sctrt import ops

PLANES = ["axial", "coronal", "sagittal"]
SIZES = {"axial": (1, 2, 3), "coronal": (2, 1, 3), "sagittal": (3, 1, 2)}  # axes of [c, z, y, x]: slices, rows, columns


@st.composite
def batches(draw):
    """A volume, a plane, a range of its slices and a padded size."""
    shape = draw(st.tuples(st.integers(1, 2), *[st.integers(1, 9)] * 2, st.integers(1, 80)))
    shape = shape[:1] + tuple(draw(st.permutations(shape[1:])))
    plane = draw(st.sampled_from(PLANES))
    slices, rows, columns = (shape[axis] for axis in SIZES[plane])
    start = draw(st.integers(0, slices - 1))
    count = draw(st.integers(1, slices - start))
    height, width = rows + draw(st.integers(0, 3)), columns + draw(st.integers(0, 70))
    volume = np.random.default_rng(draw(st.integers(0, 999))).normal(size=shape).astype(np.float32)
    return volume, plane, start, count, height, width


@given(batch=batches(), dtype=st.sampled_from(["float32", "float16"]), fill=st.sampled_from([0.0, -1.0, 0.1]))
def test_extract_planes_is_moveaxis_and_pad(batch, dtype, fill):
    volume, plane, start, count, height, width = batch
    planes = ops.extract_planes(volume, plane, start, count, height=height, width=width, fill=fill, dtype=dtype)
    expected = reference.extract_planes(volume, plane, start, count, height, width, np.float32(fill), dtype)
    assert planes.dtype == dtype
    np.testing.assert_array_equal(planes, expected)


@given(batch=batches(), dtype=st.sampled_from(["float32", "float16"]))
def test_insert_planes_is_the_reference(batch, dtype):
    volume, plane, start, count, height, width = batch
    planes = np.random.default_rng(1).normal(size=(count, len(volume), height, width)).astype(dtype)
    expected = reference.insert_planes(planes, volume, plane, start)
    assert ops.insert_planes(planes, volume, plane, start) is volume
    np.testing.assert_array_equal(volume, expected)


@given(batch=batches())
def test_insert_planes_undoes_extract_planes(batch):
    volume, plane, start, count, height, width = batch
    planes = ops.extract_planes(volume, plane, start, count, height=height, width=width, fill=7)
    restored = ops.insert_planes(planes, volume.copy(), plane, start)
    np.testing.assert_array_equal(restored, volume)
    blank = ops.insert_planes(planes, np.zeros_like(volume), plane, start)
    taken = np.moveaxis(blank, SIZES[plane][0], 0)
    np.testing.assert_array_equal(taken[start : start + count], np.moveaxis(volume, SIZES[plane][0], 0)[start:][:count])
    assert not taken[:start].any()
    assert not taken[start + count :].any()


@given(value=hnp.arrays(np.float32, (1, 1, 64), elements=st.floats(width=32)))
def test_extract_planes_rounds_to_float16_as_numpy_does(value):
    with np.errstate(over="ignore", under="ignore"):
        expected = value.astype(np.float16)
    np.testing.assert_array_equal(ops.extract_planes(value, "axial", 0, 1, dtype=np.float16)[0], expected)


def test_every_float16_survives_the_round_trip():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    volume = ops.insert_planes(every, np.empty((1, 256, 256), np.float32), "axial", 0)
    np.testing.assert_array_equal(volume[0], every[0, 0].astype(np.float32))
    np.testing.assert_array_equal(ops.extract_planes(volume, "axial", 0, 1, dtype="float16"), every)


def test_planes_of_a_volume_without_channel_axis(rng):
    volume = rng.normal(size=(4, 5, 6)).astype(np.float32)
    planes = ops.extract_planes(volume, "coronal", 1, 3)
    np.testing.assert_array_equal(planes, ops.extract_planes(volume[None], "coronal", 1, 3))
    np.testing.assert_array_equal(ops.insert_planes(planes, volume.copy(), "coronal", 1), volume)


def test_extract_planes_takes_the_dtype_of_out(rng):
    volume = rng.normal(size=(4, 5, 6)).astype(np.float32)
    out = np.empty((2, 1, 8, 8), np.float16)
    assert ops.extract_planes(volume, "axial", 2, 2, height=8, width=8, out=out) is out
    np.testing.assert_array_equal(out[:, :, :5, :6], volume[2:, None].astype(np.float16))
    with pytest.raises(ValueError, match=r"out must be float32 \(2, 1, 8, 8\), got float16"):
        ops.extract_planes(volume, "axial", 2, 2, height=8, width=8, dtype="float32", out=out)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (3, 2), (0, 0), (4, 1), (0, 5), (2**62, 2**62)])
def test_planes_refuse_slices_outside_the_volume(start, count):
    volume = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match="must name slices 0 to 3 of the axial plane, got start"):
        ops.extract_planes(volume, "axial", start, count)
    if count in (1, 2, 5):
        with pytest.raises(ValueError, match="must name slices 0 to 3 of the axial plane, got start"):
            ops.insert_planes(np.zeros((count, 1, 5, 6), np.float32), volume, "axial", start)


def test_planes_refuse_to_crop():
    volume = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match=r"at least those of the sagittal slices, \(4, 5\), got \(4, 4\)"):
        ops.extract_planes(volume, "sagittal", 0, 1, width=4)
    with pytest.raises(ValueError, match=r"at least those of the sagittal slices, \(4, 5\), got \(3, 5\)"):
        ops.insert_planes(np.zeros((1, 1, 3, 5), np.float32), volume, "sagittal", 0)


def test_planes_refuse_other_arguments():
    volume = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match="plane must be 'axial', 'coronal' or 'sagittal', got 'oblique'"):
        ops.extract_planes(volume, "oblique", 0, 1)
    with pytest.raises(ValueError, match="planes must be float32 or float16, got float64"):
        ops.extract_planes(volume, "axial", 0, 1, dtype=np.float64)
    with pytest.raises(ValueError, match=r"planes must have the shape \(1, 1, 5, 6\) to match the channels"):
        ops.insert_planes(np.zeros((1, 2, 5, 6), np.float32), volume, "axial", 0)
    with pytest.raises(ValueError, match="out must not overlap volume"):
        ops.extract_planes(volume, "axial", 0, 4, out=volume.reshape(4, 1, 5, 6))


@pytest.mark.gpu
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_planes_on_a_gpu(gpu, plane, dtype, rng):
    volume = rng.normal(size=(2, 37, 70, 45)).astype(np.float32)
    planes = ops.extract_planes(gpu.put(volume), plane, 3, 19, height=80, width=90, fill=-1, dtype=dtype)
    expected = reference.extract_planes(volume, plane, 3, 19, 80, 90, -1, dtype)
    np.testing.assert_array_equal(gpu.get(planes), expected)
    blank = ops.insert_planes(planes, gpu.put(np.zeros_like(volume)), plane, 3)
    np.testing.assert_array_equal(
        gpu.get(blank), reference.insert_planes(expected, np.zeros_like(volume), plane, 3).astype(np.float32)
    )
