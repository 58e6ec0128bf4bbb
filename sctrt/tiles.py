"""Slices run in overlapping tiles that are blended, for an engine of the tiles' size. Arrays of any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
Run = Callable[[Array, Array], None]  # fills the second array [N, C', h, w] from the first [N, C, h, w]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along an axis begin: as few as overlap by `overlap` at least, spread evenly from end to end."""
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    return [i * (length - tile) // max(1, count - 1) for i in range(count)]


def blending_weights(length: int, tile: int, overlap: int) -> NDArray[np.float32]:
    """[tiles, tile]: each falls off linearly within `overlap` of the tile's ends; they sum to one at each position."""
    starts = np.array(tile_starts(length, tile, overlap))
    inside = np.arange(tile) + 0.5
    ramp = np.minimum(np.minimum(inside, tile - inside), overlap)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += ramp
    return np.stack([ramp / total[start : start + tile] for start in starts]).astype(np.float32)


class Tiles:
    """Runs slices of one size through an engine for tiles.

    Args:
        size: (height, width) of the slices, at least the tile's.
        overlap: of the tiles [pixels], at least; below half of one.
        tiles: [N, C, h, w], filled with the tiles to be run.
        made: [N, C', h, w], filled by the engine.
        put: a NumPy array -> one of the library, on the device.
    """

    def __init__(
        self,
        size: tuple[int, int],
        overlap: int,
        tiles: Array,
        made: Array,
        put: Callable[[NDArray[np.float32]], Array],
    ) -> None:
        self._tiles, self._made = tiles, made
        lengths = list(zip(size, tiles.shape[2:], strict=True))
        self._rows, self._columns = (tile_starts(length, tile, overlap) for length, tile in lengths)
        rows, columns = (blending_weights(length, tile, overlap) for length, tile in lengths)
        self._row_weights = put(np.ascontiguousarray(rows[:, :, None]))
        self._column_weights = put(columns)

    def __call__(self, run: Run, images: Array, slices: Array) -> None:
        """Fills `slices` [n, C', H, W] from `images` [n, C, H, W], n of N at most; `run` fills a batch of tiles."""
        n = images.shape[0]
        tiles, made = self._tiles[:n], self._made[:n]
        height, width = tiles.shape[2:]
        slices[...] = 0
        for i, top in enumerate(self._rows):
            for j, left in enumerate(self._columns):
                window = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
                tiles[...] = images[window]
                run(tiles, made)
                made *= self._row_weights[i]
                made *= self._column_weights[j]
                target = slices[window]
                target += made
