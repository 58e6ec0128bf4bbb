"""ops.extract_planes and ops.insert_planes: against np.moveaxis, and inverse to each other."""

import math
import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
from sctrt import ops

PLANES = ["axial", "coronal", "sagittal"]
SIZES = {"axial": (1, 2, 3), "coronal": (2, 1, 3), "sagittal": (3, 1, 2)}  # axes of [c, z, y, x]: slices, rows, columns
DTYPES = ["float32", "float16", "bfloat16"]
EDGES = [1, 4, 8, 16, 32, 64, 128, 256, 512]  # elements of the tiles that are turned, and of vectors
POISON = 0x7F  # of every byte: a NaN in bfloat16 and in float16, and no number that a test uses in float32
STREAMED = (5, 1024, 1031)  # more than 16 MiB of float32: written past the caches


@st.composite
def batches(draw):
    """A volume with one axis around the sizes of tiles, a plane, a range of its slices and a padded size."""
    edge = st.builds(lambda size, more: max(1, size + more), st.sampled_from(EDGES), st.integers(-1, 1))
    shape = (
        draw(st.integers(1, 2)),
        *draw(st.permutations([draw(edge), draw(st.integers(1, 20)), draw(st.integers(1, 5))])),
    )
    plane = draw(st.sampled_from(PLANES))
    slices, rows, columns = (shape[axis] for axis in SIZES[plane])
    start = draw(st.integers(0, slices - 1))
    count = draw(st.integers(1, slices - start))
    height, width = rows + draw(st.integers(0, 3)), columns + draw(st.integers(0, 70))
    volume = np.random.default_rng(draw(st.integers(0, 999))).normal(size=shape).astype(np.float32)
    return volume, plane, start, count, height, width


def numpy_dtype(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def guarded(shape, dtype, shift):
    """An array inside a larger one, `shift` elements from its start, all bytes poisoned; and its surroundings."""
    size, dtype, guard = int(np.prod(shape)), numpy_dtype(dtype), 64
    everything = np.full((size + 2 * guard + shift) * dtype.itemsize, POISON, np.uint8).view(dtype)
    around = [everything[: guard + shift], everything[guard + shift + size :]]
    return everything[guard + shift : guard + shift + size].reshape(shape), around


def as_torch(array):
    """A tensor that shares the memory of an array, which may be bfloat16."""
    torch = pytest.importorskip("torch")
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def expect_untouched(around):
    for part in around:
        assert (part.view(np.uint8) == POISON).all()


@given(
    batch=batches(),
    dtype=st.sampled_from(DTYPES),
    fill=st.sampled_from([0.0, -1.0, 0.1]),
    linear=st.sampled_from([(1.0, 0.0), (0.3, -1.7), (-2.0, 0.5)]),
    shift=st.integers(0, 16),
)
def test_extract_planes_is_moveaxis_scale_and_pad(batch, dtype, fill, linear, shift):
    volume, plane, start, count, height, width = batch
    scale, offset = linear
    out, around = guarded((count, len(volume), height, width), dtype, shift)
    ops.extract_planes(
        as_torch(volume), plane, start, count, height=height, width=width, fill=fill, scale=scale, offset=offset,
        out=as_torch(out),
    )  # fmt: skip
    expected = reference.extract_planes(
        volume, plane, start, count, height, width, np.float32(fill), numpy_dtype(dtype), scale, offset
    )
    np.testing.assert_array_equal(out, expected)
    expect_untouched(around)


@given(
    batch=batches(),
    dtypes=st.sampled_from([("float32", "float32"), *((d, v) for d in DTYPES[1:] for v in ("float32", d))]),
    shift=st.integers(0, 16),
)
def test_insert_planes_is_the_reference(batch, dtypes, shift):
    volume, plane, start, count, height, width = batch
    dtype, volume_dtype = map(numpy_dtype, dtypes)
    planes = np.random.default_rng(1).normal(size=(count, len(volume), height, width)).astype(dtype)
    into, around = guarded(volume.shape, dtypes[1], shift)
    into[:] = volume.astype(volume_dtype)
    expected = reference.insert_planes(planes, into, plane, start)
    tensor = as_torch(into)
    assert ops.insert_planes(as_torch(planes), tensor, plane, start) is tensor
    np.testing.assert_array_equal(into, expected)
    expect_untouched(around)


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


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("plane", PLANES)
def test_large_arrays_are_written_like_small_ones(plane, shift):
    shape = np.roll(STREAMED, shift)
    volume = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    count, height, width = (volume.shape[axis] for axis in SIZES[plane])
    out, around = guarded((count, 1, height + 1, width + 3), "float32", shift)
    ops.extract_planes(volume, plane, 0, count, height=height + 1, width=width + 3, fill=-1, out=out)
    expected = reference.extract_planes(volume, plane, 0, count, height + 1, width + 3, -1)
    np.testing.assert_array_equal(out, expected)
    expect_untouched(around)
    into, around = guarded(volume.shape, "float32", shift)
    half = count // 2
    ops.insert_planes(out[:half], into, plane, 0)
    ops.insert_planes(out[half:], into, plane, half)
    np.testing.assert_array_equal(into, volume)
    expect_untouched(around)


@given(value=hnp.arrays(np.float32, (1, 1, 64), elements=st.floats(width=32)))
def test_extract_planes_rounds_to_float16_as_numpy_does(value):
    with np.errstate(over="ignore", under="ignore"):
        expected = value.astype(np.float16)
    np.testing.assert_array_equal(ops.extract_planes(value, "axial", 0, 1, dtype=np.float16)[0], expected)


@given(value=hnp.arrays(np.float32, (1, 1, 64), elements=st.floats(width=32)))
@example(value=np.array([[[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.3961775e38, np.inf, np.nan, 1e-45]]], np.float32))
def test_extract_planes_rounds_to_bfloat16_as_torch_does(value):
    torch = pytest.importorskip("torch")
    volume = torch.from_numpy(value)
    planes = ops.extract_planes(volume, "axial", 0, 1, dtype=torch.bfloat16)
    assert planes.dtype == torch.bfloat16
    np.testing.assert_array_equal(planes.float().numpy()[0], volume.bfloat16().float().numpy())


@pytest.mark.parametrize("plane", PLANES)
def test_every_float16_survives_the_round_trip(plane):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    shape = np.ones(3, int)
    shape[[axis - 1 for axis in SIZES[plane][1:]]] = 256
    volume = ops.insert_planes(every, np.empty(shape, np.float32), plane, 0)
    np.testing.assert_array_equal(volume.reshape(256, 256), every[0, 0].astype(np.float32))
    np.testing.assert_array_equal(ops.extract_planes(volume, plane, 0, 1, dtype="float16"), every)
    same = ops.insert_planes(every, np.zeros(shape, np.float16), plane, 0)  # NaN too, bit by bit
    np.testing.assert_array_equal(same.reshape(256, 256).view(np.uint16), every[0, 0].view(np.uint16))


def test_planes_of_numpy_bfloat16(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    volume = rng.normal(size=(4, 5, 6)).astype(np.float32)
    planes = ops.extract_planes(volume, "sagittal", 1, 5, dtype=bfloat16)
    np.testing.assert_array_equal(planes, reference.extract_planes(volume[None], "sagittal", 1, 5, 4, 5, 0, bfloat16))
    into = ops.insert_planes(planes, np.zeros((4, 5, 6), bfloat16), "sagittal", 1)
    np.testing.assert_array_equal(into[..., 1:], volume[..., 1:].astype(bfloat16))


def untouched(shape):
    """A float32 array of zeros that occupies no memory until it is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, 4 * math.prod(shape), flags=flags)
    except OSError as error:
        pytest.skip(f"this system does not give out {4 * math.prod(shape)} bytes that will not be used: {error}")
    return np.frombuffer(memory, np.float32).reshape(shape)


def resident_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell how much memory a process occupies")
    return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE)[1])


@pytest.mark.parametrize(
    ("plane", "shape"),
    [
        ("axial", (1, 2**29 + 1, 2, 2)),
        ("axial", (3, 2**30, 1, 1)),
        ("coronal", (1, 1, 2**29 + 1, 4)),
        ("coronal", (1, 3, 2**30, 1)),
        ("sagittal", (1, 1, 1, 2**31 + 2)),
        ("sagittal", (1, 1, 3, 2**30)),
        ("sagittal", (1, 3, 1, 2**30)),
        ("sagittal", (3, 1, 1, 2**30)),
    ],
)
def test_offsets_in_a_volume_of_more_than_two_to_the_31_elements(plane, shape):
    volume, before = untouched(shape), resident_bytes()
    slices = np.moveaxis(volume, SIZES[plane][0], 0)
    values = np.arange(1, slices[-2:].size + 1, dtype=np.float32).reshape(slices[-2:].shape)
    slices[-2:] = values
    np.testing.assert_array_equal(ops.extract_planes(volume, plane, len(slices) - 3, 3), [0 * values[0], *values])
    ops.insert_planes(-values, volume, plane, len(slices) - 2)
    np.testing.assert_array_equal(slices[-3:], [0 * values[0], *-values])
    assert resident_bytes() - before < 2**26


@pytest.mark.parametrize("shape", [(3, 1, 2, 2**29), (1, 3, 2, 2**29), (1, 1, 3, 2**30), (1, 1, 2, 2**31)])
@pytest.mark.parametrize("plane", PLANES)
def test_offsets_in_planes_of_more_than_two_to_the_31_elements(plane, shape):
    planes, before = untouched(shape), resident_bytes()
    values = np.arange(1, 2 * math.prod(shape[:3]) + 1, dtype=np.float32).reshape(*shape[:3], 2)
    planes[..., :2] = values
    slices, rows, columns = SIZES[plane]
    sizes = {0: shape[1], slices: shape[0], rows: shape[2], columns: 2}
    volume = ops.insert_planes(planes, np.zeros([sizes[axis] for axis in range(4)], np.float32), plane, 0)
    np.testing.assert_array_equal(np.moveaxis(volume, slices, 0), values)
    assert resident_bytes() - before < 2**26


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
    with pytest.raises(ValueError, match="planes must be float32, float16 or bfloat16, got float64"):
        ops.extract_planes(volume, "axial", 0, 1, dtype=np.float64)
    with pytest.raises(ValueError, match=r"planes must have the shape \(1, 1, 5, 6\) to match the channels"):
        ops.insert_planes(np.zeros((1, 2, 5, 6), np.float32), volume, "axial", 0)
    with pytest.raises(ValueError, match=r"volume must be float32 \[c, z, y, x\] or \[z, y, x\], got float16"):
        ops.insert_planes(np.zeros((1, 1, 5, 6), np.float32), volume.astype(np.float16), "axial", 0)
    with pytest.raises(ValueError, match="out must not overlap volume"):
        ops.extract_planes(volume, "axial", 0, 4, out=volume.reshape(4, 1, 5, 6))


# Sizes at which a GPU's packs are aligned in the volume, in the planes, in both or in neither; few slices and many.
GPU_SHAPES = [(2, 37, 70, 45), (1, 36, 64, 48), (1, 3, 5, 133), (1, 130, 9, 70), (1, 1, 1, 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("shape", GPU_SHAPES)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_on_a_gpu(gpu, plane, shape, dtype, few, rng):
    volume = rng.normal(size=shape).astype(np.float32)
    slices, rows, columns = (shape[axis] for axis in SIZES[plane])
    start = min(3, slices - 1)
    count = min(7 if few else slices, slices - start)
    height, width = rows + 5, (columns + 15) // 16 * 16 if few else columns + 1
    dtype = numpy_dtype(dtype)
    planes = ops.extract_planes(
        gpu.put(volume), plane, start, count, height=height, width=width, fill=-1, scale=0.3, offset=-1.7, dtype=dtype
    )
    expected = reference.extract_planes(volume, plane, start, count, height, width, -1, dtype, 0.3, -1.7)
    np.testing.assert_array_equal(gpu.get(planes), expected)
    for into in {np.dtype(np.float32), dtype}:
        blank = np.zeros(shape, into)
        filled = ops.insert_planes(planes, gpu.put(blank), plane, start)
        np.testing.assert_array_equal(gpu.get(filled), reference.insert_planes(expected, blank, plane, start))


@pytest.mark.gpu
@pytest.mark.parametrize("plane", PLANES)
def test_a_gpu_writes_one_slice_and_nothing_else(gpu, plane):
    volume = np.arange(1, 6 * 7 * 9 + 1, dtype=np.float32).reshape(1, 6, 7, 9)
    _, rows, columns = SIZES[plane]
    planes = np.full((1, 1, volume.shape[rows], volume.shape[columns]), -1, np.float32)
    into = ops.insert_planes(gpu.put(planes), gpu.put(volume), plane, 2)
    np.testing.assert_array_equal(gpu.get(into), reference.insert_planes(planes, volume, plane, 2))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("plane", "shape"), [("axial", (1100, 2, 3)), ("coronal", (2, 1100, 3)), ("sagittal", (1100, 2, 3))]
)
def test_a_gpu_takes_more_slices_and_rows_than_a_grid_has_blocks_for(gpu, plane, shape):
    volume = np.arange(math.prod(shape), dtype=np.float32).reshape(1, *shape)
    slices, rows, columns = (volume.shape[axis] for axis in SIZES[plane])
    planes = ops.extract_planes(gpu.put(volume), plane, 0, slices)
    np.testing.assert_array_equal(gpu.get(planes), reference.extract_planes(volume, plane, 0, slices, rows, columns, 0))
    blank = ops.insert_planes(planes, gpu.put(np.zeros_like(volume)), plane, 0)
    np.testing.assert_array_equal(gpu.get(blank), volume)
