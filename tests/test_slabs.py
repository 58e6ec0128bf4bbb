"""Slabs of slices: nothing depends on how the slices are grouped, and torch's threads are left as they were."""

import pytest
import torch

from sctrt.physics.geometry import TofGeometry
from sctrt.physics.osem import osem
from sctrt.physics.projector import TofProjector
from sctrt.physics.slabs import SLAB, by_slab

CPU = torch.device("cpu")


@pytest.mark.parametrize("n_slices", [1, SLAB, SLAB + 1, 3 * SLAB + 5])
def test_slabs_cover_every_slice_once_in_order(n_slices):
    parts = by_slab(n_slices, CPU, lambda part: list(range(n_slices))[part])
    assert [z for part in parts for z in part] == list(range(n_slices))
    assert max(map(len, parts)) <= SLAB


def test_a_gpu_takes_all_slices_at_once():
    assert by_slab(1000, torch.device("cuda"), lambda part: part) == [slice(0, 1000)]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_threads_are_restored_even_after_a_failure(n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert by_slab(2 * SLAB, CPU, lambda part: torch.get_num_threads()) == [1, 1]
        assert torch.get_num_threads() == n_threads
        with pytest.raises(ZeroDivisionError):
            by_slab(2 * SLAB, CPU, lambda part: 1 / 0)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def test_projections_and_images_of_many_slices_are_those_of_each():
    projector = TofProjector(TofGeometry(12, 12, 16.0, 16.0, n_views=6))
    image = torch.rand(2 * SLAB + 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    data = projector.forward(image)
    attenuation = projector.attenuation_factors(0.05 * image)
    many = osem(projector, data, attenuation=attenuation, additive=data / 2, n_subsets=3)
    for z in (0, SLAB - 1, SLAB, 2 * SLAB + 2):
        one = slice(z, z + 1)
        torch.testing.assert_close(data[..., one], projector.forward(image[one]))
        alone = osem(
            projector, data[..., one], attenuation=attenuation[..., one], additive=data[..., one] / 2, n_subsets=3
        )
        torch.testing.assert_close(many[one], alone, rtol=1e-4, atol=1e-5)
