"""Case folders -> batches of slices, cut as inference will cut them: whole slices of the body box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .. import nifti
from ..cases import CT, NAC
from ..checks import check_pet
from ..errors import VolumeError
from ..planes import PLANES, SIZE_STEP, Plane, padded_size, slice_axis
from ..preprocess import AIR_INPUT, network_input, to_grid
from ..units import HU_AIR, hu_to_network
from ..volume import Volume
from .config import TrainingConfig

# Coronal and sagittal slices are shortened to a random axial field of view.
MIN_WINDOW, WINDOW_STEP = 48, 16  # voxels
# Of tall cases a part is trained on as well, as if no more had been scanned: its normaliser, edges and body box differ.
TALL, MIN_PART = 110, 48  # voxels
VALIDATE_EVERY = 8  # slices
PADDED_SHARE = 0.5  # of the micro-batches that are padded as for engines of fixed size, some a step further
GAIN_JITTER = 0.12  # standard deviation of the log of the PET's scale, as augmentation


@dataclass(frozen=True)
class Case:
    """One PET/CT pair on the model grid, within the body box."""

    name: str
    pet: NDArray[np.float32]  # [C, Z, Y, X] the network's input
    ct: NDArray[np.float32]  # [Z, Y, X] network units


def load_case(folder: Path, config: TrainingConfig, rows: slice = slice(None)) -> Case:
    """Reads `nac.nii.gz` and `ct.nii.gz` of a case folder as the network will see them.

    Args:
        rows: the part [z] of the PET that has been scanned.

    Raises:
        VolumeError: a file is missing or unfit.
    """
    pet = nifti.load(folder / NAC)
    check_pet(pet)
    prepared = network_input(part(pet, rows), config.spacing_mm, config.normaliser)
    ct = to_grid(nifti.load(folder / CT, unit="HU"), prepared.grid, fill=HU_AIR)
    return Case(folder.name, prepared.channels, hu_to_network(ct))


def load_training_cases(folders: list[Path], config: TrainingConfig) -> list[Case]:
    """All cases, and of each tall one a random part as another case."""
    rng = np.random.default_rng(config.seed)
    cases = []
    for folder in folders:
        case = load_case(folder, config)
        cases.append(case)
        rows = random_part(case.ct.shape[0], rng)
        if rows is not None:
            cases.append(load_case(folder, config, rows))
    return cases


def random_part(z: int, rng: np.random.Generator) -> slice | None:
    """The rows of a case of `z` slices that are trained on as a case of their own; None where it is not tall."""
    if z < TALL:
        return None
    length = int(rng.integers(MIN_PART, z // 2 + 1))
    start = int(rng.integers(z - length + 1))
    return slice(start, start + length)


def part(volume: Volume, rows: slice) -> Volume:
    """The slices `rows` [z] of a volume, as if no more had been scanned."""
    first, last, _ = rows.indices(volume.shape[0])
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    return Volume(volume.array[first:last], affine, volume.unit)


def case_folders(cohort: Path) -> list[Path]:
    """The folders below `cohort` that hold a PET and a CT, by name.

    Raises:
        VolumeError: there are none.
    """
    folders = sorted(p.parent for p in cohort.glob(f"*/{NAC}") if (p.parent / CT).exists())
    if not folders:
        raise VolumeError(f"expected case folders with {NAC} and {CT} in {cohort}, found none")
    return folders


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


def scale_pet(pet: Tensor, gain: float, exponent: float) -> Tensor:
    """Network input of the PET multiplied by `gain`: undoes and redoes the compressive curve."""
    power = gain**exponent * (1 + pet) / (1 - pet).clamp_min(1e-6)
    return 1 - 2 / (1 + power)


class RandomSlices(IterableDataset):
    """Endless micro-batches: a random case, a random plane, random slices of about `pixels` pixels in all."""

    def __init__(self, cases: list[Case], config: TrainingConfig, seed: int | tuple[int, ...]) -> None:
        self.cases, self.config, self.seed = cases, config, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(self.seed)
        weights = np.array([case.ct.size for case in self.cases], dtype=float) ** 0.5
        while True:
            case = self.cases[rng.choice(len(self.cases), p=weights / weights.sum())]
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
            gain = float(np.exp(GAIN_JITTER * rng.standard_normal()))
            scales = len(self.config.normaliser.scales)
            pet[:, :scales] = scale_pet(pet[:, :scales], gain, self.config.normaliser.exponent)
            yield pet, ct

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
    """Training and validation cases in memory."""

    def __init__(self, train: list[Path], validation: list[Path], config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.train = load_training_cases(train, config)
        self.validation = [load_case(folder, config) for folder in validation]

    def train_dataloader(self) -> DataLoader:
        step = self.trainer.global_step if self.trainer else 0
        # A resumed run must not see again what it has been trained on.
        seed = (self.config.seed * 1000 + self._rank_of()[0], step)
        return DataLoader(RandomSlices(self.train, self.config, seed), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        rank, processes = self._rank_of()
        every = VALIDATE_EVERY * processes
        first = (every // 2 - VALIDATE_EVERY * rank) % every
        return DataLoader(EverySlices(self.validation, self.config, first, every), batch_size=None)

    def _rank_of(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
