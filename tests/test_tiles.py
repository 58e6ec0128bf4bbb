"""Tiles of a slice: they cover it, blend without a seam, and leave what no network changes as it was."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt.tiles import Tiles, blending_weights, tile_starts


@st.composite
def axes(draw):
    """(length, tile, overlap)"""
    tile = draw(st.integers(4, 64))
    return draw(st.integers(tile, 300)), tile, draw(st.integers(1, tile // 2 - 1))


@given(axis=axes())
def test_tiles_cover_the_axis_and_overlap(axis):
    length, tile, overlap = axis
    starts = tile_starts(*axis)
    assert starts[0] == 0 and starts[-1] == length - tile
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))
    assert len(starts) == max(1, -(-(length - overlap) // (tile - overlap)))


@given(axis=axes())
def test_weights_sum_to_one_and_fall_off_linearly(axis):
    length, tile, _ = axis
    total = np.zeros(length)
    for start, weights in zip(tile_starts(*axis), blending_weights(*axis), strict=True):
        assert (weights > 0).all()
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_two_tiles_are_blended_linearly():
    first, second = blending_weights(12, 8, 4)
    np.testing.assert_allclose(first, [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second, first[::-1])


def tiled(run, images, outputs, tile, overlap, batch=3):
    n, c, height, width = images.shape
    buffers = np.full((batch, c, tile, tile), np.nan, np.float32), np.full((batch, outputs, tile, tile), np.nan)
    tiles = Tiles((height, width), overlap, buffers[0], buffers[1].astype(np.float32), lambda array: array)
    slices = np.full((n, outputs, height, width), np.nan, np.float32)
    tiles(run, images, slices)
    return slices


@given(height=st.integers(16, 70), width=st.integers(16, 70), n=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_network_that_changes_nothing_changes_nothing(height, width, n, seed):
    images = np.random.default_rng(seed).uniform(-1, 1, (n, 2, height, width)).astype(np.float32)

    def identity(inputs, outputs):
        assert inputs.shape == (n, 2, 16, 16) and inputs.flags.c_contiguous and outputs.flags.c_contiguous
        outputs[...] = inputs

    np.testing.assert_allclose(tiled(identity, images, 2, 16, 4), images, atol=3e-7)


def test_a_local_network_is_the_same_in_tiles(rng):
    """One whose pixels depend on their neighbours is the same away from the slice's edge, if tiles overlap enough."""
    images = rng.uniform(-1, 1, (2, 1, 50, 40)).astype(np.float32)

    def double(inputs, outputs):
        outputs[...] = 2 * inputs + 1

    np.testing.assert_allclose(tiled(double, images, 1, 16, 4), 2 * images + 1, atol=1e-6)


@pytest.mark.parametrize("library", ["torch"])
def test_arrays_of_another_library_are_tiled(library, rng):
    torch = pytest.importorskip(library)
    images = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 40, 24)).astype(np.float32))
    buffers = torch.empty(2, 1, 16, 16), torch.empty(2, 1, 16, 16)
    slices = torch.full((1, 1, 40, 24), torch.nan)
    tiles = Tiles((40, 24), 4, *buffers, torch.from_numpy)
    tiles(lambda inputs, outputs: outputs.copy_(inputs), images, slices)
    torch.testing.assert_close(slices, images)
