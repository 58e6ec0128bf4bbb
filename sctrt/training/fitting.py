"""What training and pre-training ask of Lightning alike: checkpoints, the learning rate's course, and few words."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

LAST = "last.ckpt"
LAST_FACTOR = 0.02  # of the learning rate, at the end
EXPECTED_WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # the logger has made it, or the run is resumed
    r"The dirpath has changed",  # the run's folder was moved
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning with PyTorch of its own day
    r"The '\w+' does not have many workers",  # slices and crops are cut from memory maps
)


class _AfterWholeSteps(ModelCheckpoint):
    """Never between two micro-batches of a step: a resumed run would go on with the second as if it were the first."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any, **options: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, *arguments, **options)


def last_checkpoint(output: Path, every: int) -> ModelCheckpoint:
    """Keeps `last.ckpt` alone, every so many steps, under that very name, also where an earlier run has left one."""
    for unfinished in output.glob(".sctrt-*.tmp"):  # of a run that was killed as it wrote
        unfinished.unlink(missing_ok=True)
    return _AfterWholeSteps(output, filename=Path(LAST).stem, every_n_train_steps=every, enable_version_counter=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on what is meant here as it is."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def warm_up_and_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear rise, then half a cosine."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warm_up))
        fall = (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2
        return rise * (LAST_FACTOR + (1 - LAST_FACTOR) * fall)

    return factor
