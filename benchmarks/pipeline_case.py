"""The volume that the whole pipeline is timed on, as files that several processes read."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctrt import Volume
from sctrt.bundle import Manifest
from sctrt.files import write_json
from sctrt.preprocess import network_input

LEVEL = 5000.0  # Bq/ml
OUTSIDE = 0.02  # of the level
WAVES, AMPLITUDE = 6, 0.08


def body(shape: tuple[int, int, int], spacing: float, seed: int) -> Volume:
    """NAC PET [z, y, x] of a smooth elliptical cylinder that touches all faces, so that no slice can be skipped."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    texture = np.ones(shape, np.float32)
    for _ in range(WAVES):
        frequency, phase = rng.uniform(2, 25, 3), rng.uniform(0, 2 * np.pi, 3)
        waves = [
            np.sin(f * axis + p).astype(np.float32) for f, axis, p in zip(frequency, (z, y, x), phase, strict=True)
        ]
        texture += np.einsum("i,j,k->ijk", np.float32(AMPLITUDE) * waves[0], *waves[1:])
    inside = x**2 + (y**2)[:, None] <= 1
    texture *= np.where(inside, np.float32(LEVEL), np.float32(LEVEL * OUTSIDE))
    return Volume(texture, np.diag([spacing, spacing, spacing, 1.0]), "Bq/ml")


@dataclass(frozen=True)
class Case:
    """A PET, and what the network sees of it."""

    folder: Path

    @property
    def pet(self) -> Volume:
        facts = self.facts
        return Volume(np.load(self.folder / "pet.npy"), np.diag([*[facts["spacing_mm"]] * 3, 1.0]), "Bq/ml")

    @property
    def channels(self) -> NDArray[np.float32]:
        """[C, z, y, x], left on disk."""
        return np.load(self.folder / "channels.npy", mmap_mode="r")

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())


def make_case(folder: Path, shape: tuple[int, int, int], manifest: Manifest, seed: int) -> Case:
    """Writes the case; "host_preprocess_s" in its facts is what the PET's way to the network takes on the host."""
    pet = body(shape, manifest.spacing_mm, seed)
    start = time.perf_counter()
    prepared = network_input(pet, manifest.spacing_mm, manifest.normaliser)
    seconds = time.perf_counter() - start
    np.save(folder / "pet.npy", pet.array)
    np.save(folder / "channels.npy", prepared.channels)
    facts = {
        "shape_zyx": list(shape),
        "spacing_mm": manifest.spacing_mm,
        "seed": seed,
        "network_grid_zyx": list(prepared.grid.shape),
        "host_preprocess_s": seconds,
    }
    write_json(folder / "case.json", facts)
    return Case(folder)
