"""The slice plan: each slice once, whole batches within the limit, sizes that the network accepts."""

from hypothesis import given
from hypothesis import strategies as st

from sctrt.planes import PLANES, Batch, batches, padded_size, slice_axis

shapes = st.tuples(*[st.integers(1, 400)] * 3)
planes = st.sampled_from(PLANES)
multiples = st.sampled_from([1, 2, 4, 8, 16])


@given(shape=shapes, plane=planes, multiple=multiples, max_pixels=st.integers(1, 10**6))
def test_each_slice_is_in_one_batch_and_batches_keep_the_limit(shape, plane, multiple, max_pixels):
    plan = list(batches(shape, plane, multiple, max_pixels))
    covered = [i for batch in plan for i in range(batch.start, batch.start + batch.count)]
    assert covered == list(range(shape[slice_axis(plane)]))
    for batch in plan:
        assert batch.plane == plane and batch.count >= 1
        assert (batch.height, batch.width) == padded_size(shape, plane, multiple)
        assert batch.count * batch.height * batch.width <= max_pixels or batch.count == 1
    # No batch but the last has room for one slice more.
    assert all((b.count + 1) * b.height * b.width > max_pixels for b in plan[:-1])


@given(shape=shapes, plane=planes, multiple=multiples)
def test_padding_is_the_least_that_fits(shape, plane, multiple):
    rows, columns = (n for axis, n in enumerate(shape) if axis != slice_axis(plane))
    for size, padded in zip((rows, columns), padded_size(shape, plane, multiple), strict=True):
        assert padded % multiple == 0 and size <= padded < size + multiple


def test_an_example():
    assert list(batches((5, 6, 7), "axial", 4, 130)) == [
        Batch("axial", 0, 2, 8, 8),
        Batch("axial", 2, 2, 8, 8),
        Batch("axial", 4, 1, 8, 8),
    ]
    assert list(batches((5, 6, 7), "coronal", 1, 1000)) == [Batch("coronal", 0, 6, 5, 7)]
    assert [slice_axis(plane) for plane in ("axial", "coronal", "sagittal")] == [0, 1, 2]
