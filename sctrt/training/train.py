"""One training run: cohort in, checkpoint and metrics out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from .config import TrainingConfig
from .data import CaseData, case_folders
from .module import PetToCt

VALIDATE_EVERY_STEPS = 1500
SAVE_EVERY_STEPS = 500
# oneDNN compiles a primitive for each layer and slice size and keeps 1024 by default: fewer than one set of sizes.
ONEDNN_CACHE = "20000"


def train(
    config: TrainingConfig,
    cohort: Path,
    validation: Path,
    output: Path,
    *,
    processes: int = 1,
    init: Path | None = None,
    resume: bool = False,
) -> Path:
    """Trains a network.

    Args:
        cohort: folder of case folders with nac.nii.gz and ct.nii.gz.
        validation: likewise; never trained on.
        output: receives `last.ckpt`, `config.json` and `logs/`.
        processes: data-parallel processes of one thread each on a CPU; must divide `config.micro_batches`.
        init: a checkpoint of this function whose weights and codebook are the start.
        resume: go on from `output/last.ckpt` where there is one.

    Returns:
        The path of `last.ckpt`.

    Raises:
        VolumeError: the cohort is empty or a file is unfit.
        ValueError: the processes do not divide the micro-batches.
    """
    if config.micro_batches % processes:
        raise ValueError(f"expected processes that divide {config.micro_batches} micro-batches, got {processes}")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    torch.set_num_threads(1 if processes > 1 else torch.get_num_threads())
    lightning.seed_everything(config.seed, verbose=False)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    module = PetToCt(config)
    if init is not None:
        module.load_state_dict(torch.load(init, map_location="cpu", weights_only=True)["state_dict"])
    last = output / "last.ckpt"
    trainer = _trainer(config, output, processes)
    data = CaseData(case_folders(cohort), case_folders(validation), config)
    trainer.fit(module, data, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return last


def _trainer(config: TrainingConfig, output: Path, processes: int) -> lightning.Trainer:
    accumulate = config.micro_batches // processes
    return lightning.Trainer(
        accelerator="cpu" if processes > 1 else "auto",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=config.steps,
        precision=config.precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        val_check_interval=VALIDATE_EVERY_STEPS * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=CSVLogger(output, name="logs"),
        callbacks=[ModelCheckpoint(output, save_last=True, every_n_train_steps=SAVE_EVERY_STEPS)],
        enable_model_summary=False,
    )
