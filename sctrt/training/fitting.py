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
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ..errors import BundleError, SctrtError
from ..files import write_json
from ..model.autoencoder import VQAutoencoder
from ..model.checkpoint import not_finite, read_tensors
from .checkpoint_io import WholeCheckpointIO

LAST, METRICS = "last.ckpt", "metrics.json"
LOG_EVERY_STEPS = 50
MAX_GRADIENT = 1.0  # norm
RESUMED = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "pytorch-lightning_version"}
LAST_FACTOR = 0.02  # of the learning rate, at the end
EXPECTED_WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # the logger has made it, or the run is resumed
    r"The dirpath has changed",  # the run's folder was moved
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning with PyTorch of its own day
    r"The '\w+' does not have many workers",  # slices and crops are cut from memory maps
)


class _WholeAndFinite(ModelCheckpoint):
    """Never between two micro-batches of a step: a resumed run would go on with the second as if it were the first.

    And never of weights that are no numbers: the last good ones would be lost.
    """

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any, **options: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, *arguments, **options)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        broken = not_finite(checkpoint["state_dict"])
        if broken:
            raise SctrtError(
                f"the training has diverged: at step {trainer.global_step} the weights {broken} hold NaN or infinity; "
                f"they were not saved. Begin another run with a lower learning rate"
            )


def last_checkpoint(output: Path, every: int) -> ModelCheckpoint:
    """Keeps `last.ckpt` alone, every so many steps, under that very name, also where an earlier run has left one."""
    for unfinished in output.glob(".sctrt-*.tmp"):  # of a run that was killed as it wrote
        unfinished.unlink(missing_ok=True)
    return _WholeAndFinite(output, filename=Path(LAST).stem, every_n_train_steps=every, enable_version_counter=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on what is meant here as it is."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def fit(
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    output: Path,
    *,
    steps: int,
    precision: str,
    micro_batches: int,
    save_every: int,
    validate_every: int,
    previews: Callback,
    resume: bool,
    logger: Logger | None = None,
    **machine: Any,
) -> Path:
    """Trains, validates and measures.

    Args:
        module: to be trained.
        data: to be trained and validated on.
        output: receives `last.ckpt`, `metrics.json` and `logs/`.
        steps: of the optimiser.
        precision: as Lightning names it.
        micro_batches: of a step, in this process.
        save_every: steps.
        validate_every: steps.
        previews: draws at each validation.
        resume: go on from `last.ckpt`, if it is there.
        logger: None means CSV.
        machine: what else Lightning's Trainer is told: devices, strategy.

    Returns:
        The path of `last.ckpt`.
    """
    last = output / LAST
    with quiet_lightning():
        trainer = lightning.Trainer(
            max_steps=steps,
            precision=precision,  # pyright: ignore[reportArgumentType]
            accumulate_grad_batches=micro_batches,
            gradient_clip_val=MAX_GRADIENT,
            val_check_interval=validate_every * micro_batches,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=LOG_EVERY_STEPS,
            logger=logger or CSVLogger(output, "logs"),
            callbacks=[last_checkpoint(output, save_every), previews],
            plugins=[WholeCheckpointIO()],
            enable_model_summary=False,
            **machine,
        )
        begun = resume and last.exists()
        if begun:
            _check_resumable(last)
        try:
            trainer.fit(module, data, ckpt_path=str(last) if begun else None, weights_only=True)
        except SIGTERMException as error:  # which would end the process as if all were done
            raise SctrtError(f"stopped by SIGTERM at step {trainer.global_step}; go on with --resume") from error
        trainer.save_checkpoint(last, weights_only=False)  # with what a resumption needs
        trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        write_json(output / METRICS, {name: float(value) for name, value in trainer.callback_metrics.items()})
    return last


def _check_resumable(last: Path) -> None:
    """
    Raises:
        BundleError: it is damaged, or holds less than a training needs to go on.
    """
    content = read_tensors(last)
    missing = RESUMED - content.keys() if isinstance(content, dict) else RESUMED
    if missing:
        raise BundleError(
            f"{last} holds no training to go on with (it has no {', '.join(sorted(missing))}); put the run's own file "
            "back, or remove it to begin this stage anew"
        )


@torch.no_grad()
def move_average(average: VQAutoencoder, model: VQAutoencoder, decay: float, step: int) -> None:
    """Moves the running mean of the weights a step on, sooner at first; the codebook is taken as it is."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, current in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(current, 1 - decay)
    average.quantize.load_state_dict(model.quantize.state_dict())


def perplexity(uses: Tensor) -> Tensor:
    """Of codes that were used so often [K]: as many codes used evenly say as much."""
    share = uses / uses.sum().clamp_min(1)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum())


def warm_up_and_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear rise, then half a cosine."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warm_up))
        fall = (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2
        return rise * (LAST_FACTOR + (1 - LAST_FACTOR) * fall)

    return factor
