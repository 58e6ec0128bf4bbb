"""One training run: cases in, checkpoints and metrics out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from ..errors import VolumeError
from ..files import locked, write_json
from ..model.autoencoder import VQAutoencoder
from .cache import CachedCase
from .config import FROM_CHECKPOINT, TrainingConfig
from .data import CaseData
from .fitting import LAST, fit
from .module import Autoencoder, Encoder, PetToCt, Stage, initial_network
from .previews import Previews
from .records import ANEW, read_record

StageT = TypeVar("StageT", bound=Stage)

LAST_STAGE, CONFIG, CASES = "3-joint", "config.json", "cases.json"
# oneDNN compiles a primitive for each layer and slice size and keeps 1024 by default: fewer than one set of sizes.
ONEDNN_CACHE = "20000"


class RunError(ValueError):
    """A run that cannot be as it was asked for."""


@dataclass(frozen=True)
class Machine:
    """Where a run is computed, in Lightning's terms."""

    devices: int | None = None  # processes: GPUs, or on a CPU of one thread each; None: all GPUs, or one process
    nodes: int = 1
    strategy: str = "auto"  # or "ddp" and its kinds
    tensorboard: bool = False  # logs for it, instead of CSV

    @property
    def processes(self) -> int:
        """That share the micro-batches of a step."""
        gpus = torch.cuda.device_count()
        return self.nodes * (self.devices or max(1, gpus))


def train(
    config: TrainingConfig,
    training: list[CachedCase],
    validation: list[CachedCase],
    output: Path,
    *,
    pretrained: VQAutoencoder | None = None,
    machine: Machine = Machine(),
    resume: bool = False,
) -> Path:
    """Trains a network, see `module`.

    Args:
        config: the recipe.
        training: cases to train on.
        validation: cases that are never trained on.
        output: receives `config.json`, `cases.json`, and a folder a stage with `last.ckpt`, `metrics.json`,
            `previews/` and `logs/`.
        pretrained: to begin with, in the modes that need one.
        machine: what computes.
        resume: go on from the checkpoints in `output`; the result is that of an uninterrupted run.

    Returns:
        The path of the last stage's `last.ckpt`.

    Raises:
        BundleError: the pre-trained network does not fit the recipe, or what the resumed run was told is damaged.
        RunError: the processes do not divide the micro-batches, a pre-trained network is missing or unused, or
            `output` holds a run that is not to be resumed, or one of other cases or another network.
        VolumeError: files were replaced since the resumed run began.
    """
    check_fit(config, machine, pretrained)
    check_place(config, training, output, resume)
    start = None if pretrained is None else initial_network(config, pretrained)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CACHE)
    if machine.processes > 1 and not torch.cuda.is_available():
        torch.set_num_threads(1)
    data = CaseData(training, validation, config)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / CONFIG, config.model_dump(mode="json"))
    write_json(output / CASES, listed(training, validation))
    if config.mode != "staged":
        return _fit(_seeded(lambda: PetToCt(config, start), config), data, output / LAST_STAGE, machine, resume)
    autoencoder = _seeded(lambda: Autoencoder(config), config)
    _fit(autoencoder, data, output / "1-autoencoder", machine, resume)
    encoder = _seeded(lambda: Encoder(config, autoencoder), config)
    _fit(encoder, data, output / "2-encoder", machine, resume)
    joint = PetToCt(config, encoder.average, encoder.follower.state_dict())
    return _fit(joint, data, output / LAST_STAGE, machine, resume)


def check_fit(config: TrainingConfig, machine: Machine, pretrained: VQAutoencoder | None) -> None:
    """Refuses what cannot be trained, before any case is read.

    Raises:
        BundleError, RunError: see `train`.
    """
    if config.micro_batches % machine.processes:
        raise RunError(
            f"expected processes that divide {config.micro_batches} micro-batches, got {machine.processes}; use "
            "--devices, or other micro_batches in --config"
        )
    known = ["auto", *(name for name in StrategyRegistry.available_strategies() if name.startswith("ddp"))]
    if machine.strategy not in known:
        raise RunError(f"expected the strategy {', '.join(known)}, got {machine.strategy}")
    if (config.mode in FROM_CHECKPOINT) != (pretrained is not None):
        need = "needs one to begin with" if pretrained is None else "begins with none"
        raise RunError(
            f"expected a checkpoint in the modes {', '.join(FROM_CHECKPOINT)}: the mode {config.mode} {need}"
        )
    if pretrained is not None:
        initial_network(config, pretrained)


def check_place(config: TrainingConfig, training: list[CachedCase], output: Path, resume: bool) -> None:
    """Refuses to overwrite a run, or to go on with it as another.

    Raises:
        BundleError, RunError, VolumeError: see `train`.
    """
    if not list(output.glob(f"*/{LAST}")):
        return
    if not resume:
        raise RunError(f"{output} holds a run already; go on with it by --resume, or choose another folder")
    begun, now = (fixed(c) for c in (read_record(output / CONFIG, TrainingConfig.model_validate, ANEW), config))
    other = [name for name in now if begun[name] != now[name]]
    if other:
        raise RunError(f"expected the run's own {', '.join(other)}, as in {output / CONFIG}; start another run")
    if (output / CASES).exists():
        cases = read_record(output / CASES, _hashes_by_name, ANEW)
        if cases.keys() != {case.name for case in training}:
            raise RunError(f"expected the {len(cases)} cases of {output / CASES} to train on; start another run")
        _check_files(cases, training, output)


def _hashes_by_name(content: Any) -> dict[str, tuple[str, str] | None]:
    """Of PET and CT of the cases that were trained on; older runs did not keep them."""
    return {
        case["name"]: (case["sha256"]["pet"], case["sha256"]["ct"]) if "sha256" in case else None
        for case in content["training"]
    }


def alone_in(output: Path) -> AbstractContextManager:
    """Keeps other runs out of a folder; of a run's own processes the first does, for all.

    Raises:
        RunError: another run writes to it.
    """
    if rank_zero_only.rank != 0 or os.environ.get("NODE_RANK", "0") != "0":  # a later node's first has no rank yet
        return nullcontext()
    try:
        return locked(output)
    except ValueError as error:
        raise RunError(str(error)) from error


def _check_files(begun: dict[str, tuple[str, str] | None], training: list[CachedCase], output: Path) -> None:
    """Refuses files that are others than those of that name were."""
    other = []
    for case in training:
        now = case.pet_sha256, case.ct_sha256
        before = begun[case.name] or now
        other += [file for file, a, b in zip((case.source, case.ct_source), before, now, strict=True) if a != b]
    if other:
        more = f" and {len(other) - 1} more" if other[1:] else ""
        raise VolumeError(
            f"expected the files that the run began with, as listed in {output / CASES}, got other content in "
            f"{other[0]}{more}; put the files back, or start another run"
        )


def fixed(config: TrainingConfig) -> dict[str, Any]:
    """What a run cannot change on its way: all but how long it goes on, and how often it looks up."""
    stages = {
        name: getattr(config, name).model_copy(update={"steps": 0}) for name in ("autoencoder", "encoder", "joint")
    }
    return dict(config.model_copy(update={**stages, "save_every": 1, "validate_every": 1}))


def listed(training: list[CachedCase], validation: list[CachedCase]) -> dict[str, list[dict[str, Any]]]:
    """The content of `cases.json`: who was trained on, and on which files."""
    parts = {"training": training, "validation": validation}
    return {
        name: [
            {
                "patient": case.patient,
                "name": case.name,
                "pet": str(case.source),
                "sha256": {"pet": case.pet_sha256, "ct": case.ct_sha256},
            }
            for case in part
        ]
        for name, part in parts.items()
    }


def _seeded(make: Callable[[], StageT], config: TrainingConfig) -> StageT:
    """A stage whose random weights do not depend on what was done before, perhaps in another process."""
    lightning.seed_everything(config.seed, verbose=False)
    return make()


def _fit(stage: Stage, data: CaseData, output: Path, machine: Machine, resume: bool) -> Path:
    config = stage.config
    on_cpu = machine.devices is not None and not torch.cuda.is_available()
    return fit(
        stage,
        data,
        output,
        steps=stage.stage.steps,
        precision=config.precision,
        micro_batches=config.micro_batches // machine.processes,
        save_every=config.save_every,
        validate_every=config.validate_every,
        previews=Previews(output / "previews"),
        resume=resume,
        logger=TensorBoardLogger(output, "logs") if machine.tensorboard else None,
        accelerator="cpu" if on_cpu else "auto",
        devices=machine.devices or "auto",
        num_nodes=machine.nodes,
        strategy="ddp" if machine.strategy == "auto" and machine.processes > 1 else machine.strategy,
    )
