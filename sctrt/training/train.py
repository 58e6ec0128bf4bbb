"""One training run: cohort in, checkpoints and metrics out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from ..files import write_json
from .config import TrainingConfig
from .data import CaseData, case_folders
from .module import Autoencoder, Encoder, PetToCt, Stage

VALIDATE_EVERY_STEPS = 1500
SAVE_EVERY_STEPS = 250
# oneDNN compiles a primitive for each layer and slice size and keeps 1024 by default: fewer than one set of sizes.
ONEDNN_CACHE = "20000"
EXPECTED_WARNINGS = (
    r"Checkpoint directory .* exists and is not empty",  # the logger has made it, or the run is resumed
    r"The dirpath has changed",  # the run's folder was moved
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning with PyTorch of its own day
    r"The '\w+' does not have many workers",  # the cases are in memory
)


def train(
    config: TrainingConfig,
    cohort: Path,
    validation: Path,
    output: Path,
    *,
    processes: int = 1,
    resume: bool = False,
) -> Path:
    """Trains a network in three stages, see `module`.

    Args:
        cohort: folder of case folders with nac.nii.gz and ct.nii.gz.
        validation: likewise; never trained on.
        output: receives `config.json` and a folder a stage with `last.ckpt`, `metrics.json` and `logs/`.
        processes: data-parallel processes of one thread each on a CPU; must divide `config.micro_batches`.
        resume: go on from the checkpoints in `output`.

    Returns:
        The path of the last stage's `last.ckpt`.

    Raises:
        VolumeError: the cohort is empty or a file is unfit.
        ValueError: the processes do not divide the micro-batches.
    """
    if config.micro_batches % processes:
        raise ValueError(f"expected processes that divide {config.micro_batches} micro-batches, got {processes}")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    if processes > 1:
        torch.set_num_threads(1)
    data = CaseData(case_folders(cohort), case_folders(validation), config)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", config.model_dump())
    lightning.seed_everything(config.seed, verbose=False)
    autoencoder = Autoencoder(config)
    _fit(autoencoder, data, output / "1-autoencoder", processes, resume)
    encoder = Encoder(config, autoencoder)
    _fit(encoder, data, output / "2-encoder", processes, resume)
    joint = PetToCt(config, encoder)
    return _fit(joint, data, output / "3-joint", processes, resume)


def _checkpoints(output: Path) -> ModelCheckpoint:
    """Keeps `last.ckpt`, under that very name, also where an earlier run has left one."""
    return ModelCheckpoint(output, save_last=True, every_n_train_steps=SAVE_EVERY_STEPS, enable_version_counter=False)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on what is meant here as it is."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


@_quiet_lightning()
def _fit(stage: Stage, data: CaseData, output: Path, processes: int, resume: bool) -> Path:
    accumulate = stage.config.micro_batches // processes
    trainer = lightning.Trainer(
        accelerator="cpu" if processes > 1 else "auto",
        devices=processes if processes > 1 else "auto",
        strategy="ddp" if processes > 1 else "auto",
        max_steps=stage.stage.steps,
        precision=stage.config.precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        val_check_interval=VALIDATE_EVERY_STEPS * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=CSVLogger(output, name="logs"),
        callbacks=[_checkpoints(output)],
        enable_model_summary=False,
    )
    last = output / "last.ckpt"
    trainer.fit(stage, data, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
    trainer.save_checkpoint(last, weights_only=False)  # with what a resumption needs
    trainer.validate(stage, data, verbose=False)
    if trainer.is_global_zero:
        write_json(output / "metrics.json", {name: float(value) for name, value in trainer.callback_metrics.items()})
    return last
