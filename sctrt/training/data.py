"""Cached cases -> batches of slices, cut as inference will cut them: whole slices of the body box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..errors import VolumeError
from ..planes import PLANES, SIZE_STEP, Plane, padded_size, slice_axis
from ..preprocess import AIR_INPUT
from .augment import MIN_PART, changed, network_case, random_rows
from .cache import CachedCase
from .config import TrainingConfig

# Coronal and sagittal slices are shortened to a random axial field of view.
MIN_WINDOW, WINDOW_STEP = 48, 16  # voxels
VALIDATE_EVERY = 8  # slices
PADDED_SHARE = 0.5  # of the micro-batches that are padded as for engines of fixed size, some a step further
VISITED = 3  # cases that slices are drawn from at a time, for each of a step's micro-batches
VISIT_STEPS = 128  # after so many steps they are left for others
TRIES = 8  # of a visit, until a part of a scan holds a body

VISIT_STREAM, SLICE_STREAM = 1, 2  # of random numbers


@dataclass(frozen=True)
class Case:
    """One PET/CT pair on the model grid, within the body box."""

    name: str
    pet: NDArray[np.float32]  # [C, Z, Y, X] the network's input
    ct: NDArray[np.float32]  # [Z, Y, X] network units


def whole_case(cached: CachedCase, config: TrainingConfig) -> Case:
    """A cached case as it is, as inference will see it."""
    ct = cached.ct.astype(np.float32)
    return Case(cached.name, *network_case(cached.volume(), ct, config.spacing_mm, config.normaliser))


def visited_case(cached: CachedCase, config: TrainingConfig, rng: np.random.Generator) -> Case:
    """A cached case as another patient in another scan, see `augment`."""
    z = cached.pet.shape[0]
    truncated = z > MIN_PART and rng.random() < config.augmentation.truncated
    for _ in range(TRIES if truncated else 1):
        rows = random_rows(z, rng) if truncated else slice(None)
        pet, ct = changed(cached, rows, config.augmentation, config.spacing_mm, rng)
        try:
            return Case(cached.name, *network_case(pet, ct, config.spacing_mm, config.normaliser))
        except VolumeError:  # the part holds too little of a body to be a scan of its own
            continue
    return whole_case(cached, config)


def take_slices(
    case: Case, plane: Plane, index: NDArray[np.int64], rows: slice, multiple: int, wider: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Tensor]:
    """Slices of one plane, padded with air at the end to multiples of `multiple`, and by `wider` (height, width).

    Args:
        rows: part of z that coronal and sagittal slices keep.

    Returns:
        PET [N, C, H, W] and CT [N, 1, H, W].
    """
    axis = slice_axis(plane)
    pet, ct = (case.pet, case.ct) if axis == 0 else (case.pet[:, rows], case.ct[rows])
    pet = np.moveaxis(np.take(pet, index, axis=axis + 1), axis + 1, 0)
    ct = np.moveaxis(np.take(ct, index, axis=axis), axis, 0)[:, None]
    pad = [(0, 0), (0, 0)] + [(0, -n % multiple + more) for n, more in zip(ct.shape[2:], wider, strict=True)]
    padded_pet, padded_ct = (torch.from_numpy(np.pad(a, pad, constant_values=AIR_INPUT)) for a in (pet, ct))
    return padded_pet, padded_ct


def as_channels(image: Tensor, channels: int) -> Tensor:
    """A grey image [N, 1, H, W] repeated over the network's channels; other images as they are."""
    return image.expand(-1, channels, -1, -1) if image.shape[1] == 1 else image


def scale_pet(pet: Tensor, gain: float, exponent: float) -> Tensor:
    """Network input of the PET multiplied by `gain`: undoes and redoes the compressive curve."""
    power = gain**exponent * (1 + pet) / (1 - pet).clamp_min(1e-6)
    return 1 - 2 / (1 + power)


class RandomSlices(IterableDataset):
    """Endless micro-batches: a random case, a random plane, random slices of about `pixels` pixels in all.

    Micro-batch i of a run is a function of the recipe's seed and of i alone. So a resumed run goes on with what it
    would have seen, and processes that share the micro-batches of a step see together what one process sees.

    Args:
        cases: to draw from.
        config: the recipe.
        step: that the run has reached.
        rank: of this process.
        processes: that share the micro-batches of each step.
    """

    def __init__(
        self, cases: list[CachedCase], config: TrainingConfig, step: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.cases, self.config = cases, config
        self.step, self.rank, self.processes = step, rank, processes
        weights = np.array([np.prod(case.body_shape) for case in cases], dtype=float) ** 0.5
        self._weights = weights / weights.sum()
        self._visits: dict[tuple[int, int, int], Case] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.step
        while True:
            for part in range(self.rank, self.config.micro_batches, self.processes):
                yield self.micro_batch(step, part)
            step += 1

    def micro_batch(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Micro-batch `part` of a step: PET [N, C, H, W] and CT [N, 1, H, W] of one case and plane."""
        rng = np.random.default_rng((self.config.seed, SLICE_STREAM, step, part))
        case = self._visit(step // VISIT_STEPS, part, int(rng.integers(VISITED)))
        plane = PLANES[rng.integers(3)]
        axis = slice_axis(plane)
        z = case.ct.shape[0]
        length = z if axis == 0 else self._window(z, rng)
        start = int(rng.integers(z - length + 1))
        multiple, wider = self._padding(rng)
        height, width = padded_size((length, *case.ct.shape[1:]), plane, multiple)
        count = max(1, round(self.config.pixels / ((height + wider[0]) * (width + wider[1]))))
        index = rng.integers(0, case.ct.shape[axis], count)
        pet, ct = take_slices(case, plane, index, slice(start, start + length), multiple, wider)
        gain = float(np.exp(self.config.augmentation.gain * rng.standard_normal()))
        scales = len(self.config.normaliser.scales)
        pet[:, :scales] = scale_pet(pet[:, :scales], gain, self.config.normaliser.exponent)
        return pet, ct

    def _visit(self, block: int, part: int, slot: int) -> Case:
        """One of the cases that are open for a part of a step; those of other times are let go."""
        key = (block, part, slot)
        if key not in self._visits:
            self._visits = {k: case for k, case in self._visits.items() if k[0] == block}
            rng = np.random.default_rng((self.config.seed, VISIT_STREAM, *key))
            cached = self.cases[rng.choice(len(self.cases), p=self._weights)]
            self._visits[key] = visited_case(cached, self.config, rng)
        return self._visits[key]

    def _padding(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """As for a runtime that takes any size, or for an engine: multiple, and how much wider."""
        if rng.random() >= PADDED_SHARE:
            return self.config.architecture.factor, (0, 0)
        height, width = SIZE_STEP * rng.integers(2, size=2)
        return SIZE_STEP, (int(height), int(width))

    @staticmethod
    def _window(z: int, rng: np.random.Generator) -> int:
        """A random axial field of view; few distinct sizes, since the CPU compiles its kernels for each."""
        shortest, longest = MIN_WINDOW // WINDOW_STEP, max(MIN_WINDOW, z + WINDOW_STEP - 1) // WINDOW_STEP
        return min(z, WINDOW_STEP * int(rng.integers(shortest, longest + 1)))


class EverySlices(IterableDataset):
    """Every n-th whole slice of every plane of every case, once, from the `first`-th on: for validation."""

    def __init__(self, cases: list[Case], config: TrainingConfig, first: int, every: int) -> None:
        self.cases, self.config, self.first, self.every = cases, config, first, every

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for case in self.cases:
            for plane in PLANES:
                for i in range(self.first, case.ct.shape[slice_axis(plane)], self.every):
                    yield take_slices(case, plane, np.array([i]), slice(None), self.config.architecture.factor)


class CaseData(lightning.LightningDataModule):
    """Training and validation cases; those to validate on are kept in memory, whole and as they are."""

    def __init__(self, train: list[CachedCase], validation: list[CachedCase], config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.train = train
        self.validation = [whole_case(case, config) for case in validation]

    def train_dataloader(self) -> DataLoader:
        step = self.trainer.global_step if self.trainer else 0
        return DataLoader(RandomSlices(self.train, self.config, step, *self._rank_of()), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        rank, processes = self._rank_of()
        every = VALIDATE_EVERY * processes
        first = VALIDATE_EVERY // 2 + VALIDATE_EVERY * rank
        return DataLoader(EverySlices(self.validation, self.config, first, every), batch_size=None)

    def _rank_of(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
