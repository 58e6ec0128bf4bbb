"""The slice plan: each occupied slice once, whole batches within the limit, sizes that the network accepts."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sctrt.planes import PLANES, Batch, batches, padded_size, slice_axis

shapes = st.tuples(*[st.integers(1, 400)] * 3)
planes = st.sampled_from(PLANES)
multiples = st.sampled_from([1, 2, 4, 8, 16])


@given(occupied=st.lists(st.booleans(), max_size=60), plane=planes, count=st.integers(1, 12), first=st.integers(0, 60))
def test_each_occupied_slice_is_in_one_batch(occupied, plane, count, first):
    plan = list(batches(plane, occupied, count, first))
    covered = [i for batch in plan for i in range(batch.start, batch.start + batch.count)]
    assert covered == [i for i in range(first, len(occupied)) if occupied[i]]
    assert all(batch.plane == plane and 1 <= batch.count <= count for batch in plan)
    # A batch that is not full is followed by a gap.
    assert all(b.count == count or c.start > b.start + b.count for b, c in pairwise(plan))


@given(shape=shapes, plane=planes, multiple=multiples)
def test_padding_is_the_least_that_fits(shape, plane, multiple):
    rows, columns = (n for axis, n in enumerate(shape) if axis != slice_axis(plane))
    for size, padded in zip((rows, columns), padded_size(shape, plane, multiple), strict=True):
        assert padded % multiple == 0 and size <= padded < size + multiple


def test_an_example():
    assert list(batches("axial", [True] * 5, 2)) == [
        Batch("axial", 0, 2),
        Batch("axial", 2, 2),
        Batch("axial", 4, 1),
    ]
    legs = [False, True, True, False, True, True, True]
    assert list(batches("sagittal", legs, 2)) == [
        Batch("sagittal", 1, 2),
        Batch("sagittal", 4, 2),
        Batch("sagittal", 6, 1),
    ]
    assert list(batches("sagittal", legs, 2, first=5)) == [Batch("sagittal", 5, 2)]
    assert [slice_axis(plane) for plane in ("axial", "coronal", "sagittal")] == [0, 1, 2]
