"""The memory plan: it fits its budget or says why not, and gives up batches, whole slices and residence in turn."""

from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sctrt.bundle import Architecture
from sctrt.errors import OutOfMemory
from sctrt.plan import (
    GB,
    GPU_BATCH_PIXELS,
    TILE,
    Grids,
    Network,
    any_size,
    cpu_plan,
    engine_size,
    gpu_plan,
    plan_for,
)
from sctrt.planes import PLANES, slice_axis

VQ_F4 = Architecture(input_channels=1, output_channels=1)
SMALL = Architecture(channels=32, multipliers=(1, 2, 4), blocks=1, input_channels=7, output_channels=1)
WHOLE_BODY = (1000, 400, 400)  # z, y, x at 1.5 mm
shapes = st.tuples(*[st.integers(20, 1200)] * 3)
networks = st.builds(
    Network,
    st.sampled_from([VQ_F4, SMALL]),
    st.sampled_from(["fp32", "fp16", "bf16"]),
    st.sampled_from([any_size, engine_size]),
)


def bundle_of(architecture):
    return SimpleNamespace(manifest=SimpleNamespace(architecture=architecture))


@settings(max_examples=300)
@given(pet=shapes, box=shapes, network=networks, budget=st.floats(0.3, 100), samples=st.sampled_from([1, 1, 8, 27]))
def test_a_plan_fits_its_budget_or_is_refused(pet, box, network, budget, samples):
    grids = Grids(pet, box, box, samples)
    try:
        plan = gpu_plan(grids, network, int(budget * GB))
    except OutOfMemory as error:
        assert "--device cpu" in str(error)
        return
    assert plan.peak <= plan.budget == int(budget * GB)
    for plane in plan.planes:
        slices = box[slice_axis(plane.plane)]
        size = [n for axis, n in enumerate(box) if axis != slice_axis(plane.plane)]
        assert plane.slices == slices and 1 <= plane.batch <= slices
        assert plane.height >= size[0] and plane.width >= size[1]
        assert all(n % network.architecture.factor == 0 for n in (*plane.engine, plane.height, plane.width))
        assert plane.batch == 1 or plane.batch * plane.engine[0] * plane.engine[1] <= GPU_BATCH_PIXELS
        assert plane.engine == ((TILE, TILE) if plane.tiled else (plane.height, plane.width))
    assert [plane.plane for plane in plan.planes] == list(PLANES)


@settings(max_examples=100)
@given(box=shapes, network=networks, budget=st.floats(0.3, 20), more=st.floats(1, 4))
def test_more_memory_is_never_worse(box, network, budget, more):
    grids = Grids(box, box, box)
    try:
        less = gpu_plan(grids, network, int(budget * GB))
    except OutOfMemory:
        assume(False)
        return
    plan = gpu_plan(grids, network, int(budget * more * GB))
    assert (plan.volumes == "device") >= (less.volumes == "device")
    if plan.volumes == less.volumes and not any(plane.tiled for plane in less.planes):
        assert all(a.batch >= b.batch for a, b in zip(plan.planes, less.planes, strict=True))


@pytest.mark.parametrize("gigabytes", [8, 16, 24, 80])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_whole_body_at_full_resolution_fits_a_card(gigabytes, precision):
    plan = plan_for(bundle_of(VQ_F4), WHOLE_BODY, precision, int(gigabytes * GB))
    assert plan.peak <= gigabytes * GB and plan.volumes == "device"
    assert not any(plane.tiled for plane in plan.planes)
    assert f"of {gigabytes}.00 GB" in plan.text() and "whole" not in plan.text()


def test_what_is_given_up_in_turn():
    def planned(gigabytes):
        return plan_for(bundle_of(VQ_F4), WHOLE_BODY, "fp16", int(gigabytes * GB))

    large, less, tiles, least = (planned(g) for g in (16, 6, 3.5, 2))
    assert [p.batch for p in less.planes] < [p.batch for p in large.planes]
    assert not any(p.tiled for p in less.planes) and any(p.tiled for p in tiles.planes)
    assert tiles.volumes == "device" and least.volumes == "host"
    with pytest.raises(OutOfMemory, match=r"expected at least 0\.\d+ GB .* got 0\.7 GB"):
        planned(0.7)


def test_a_volume_that_does_not_fit_stays_on_the_host():
    huge = Grids((1500, 900, 900), WHOLE_BODY, WHOLE_BODY)
    plan = gpu_plan(huge, Network(VQ_F4, "fp16", engine_size), int(5 * GB))
    assert plan.volumes == "host" and plan.peak <= 5 * GB


def test_a_cpu_has_no_budget():
    plan = cpu_plan(Grids((100, 80, 70), (100, 80, 70), (100, 80, 70)), Network(VQ_F4, "fp32", any_size))
    assert plan.budget is None and [p.engine for p in plan.planes] == [(80, 72), (100, 72), (100, 80)]
    assert [p.batch for p in plan.planes] == [10, 8, 7]
    assert "GB" not in plan.text()
    assert "peak_gb" not in plan.facts()


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_with_slices_of_their_own_have_equally_many(threads):
    """Of the whole body at 4 mm; where there are enough."""
    box = (290, 80, 128)
    alone, shared = (cpu_plan(Grids(box, box, box), Network(SMALL, "fp32", any_size, n)) for n in (1, threads))
    for one, other in zip(alone.planes, shared.planes, strict=True):
        assert one.engine == other.engine and one.batch <= other.batch <= other.slices
        assert other.batch % threads == 0
