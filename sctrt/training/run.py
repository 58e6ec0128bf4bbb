"""What `sctrt train` was asked for -> recipe, cases, and one run or one a fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bundle as bundles
from ..bundle import MANIFEST, WEIGHTS, Normaliser
from ..model.autoencoder import VQAutoencoder
from ..model.checkpoint import load_autoencoder
from ..model.checkpoint import recipe_of as recipe_of_run
from . import recipes
from .cache import CachedCase, Seen, cache_cohort
from .cohort import CohortError
from .config import FROM_CHECKPOINT, Mode, TrainingConfig, fine_tuning
from .folds import cross_validate
from .train import LAST_STAGE, Machine, RunError, alone_in, check_fit, train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    cohort: Path
    validation: Path | None  # this or folds
    folds: int | None
    fold: int | None
    mode: Mode | None
    init: Path | None
    config: str | None  # recipe or JSON file
    steps: int | None
    seed: int | None
    cache: Path


def run_training(request: Request, output: Path, machine: Machine, resume: bool, say: Say) -> list[Path]:
    """Reads and checks all cases, then trains.

    Returns:
        The checkpoint, or one a fold.

    Raises:
        CohortError: cases are unfit; all are listed, and nothing was trained.
        BundleError: the checkpoint to begin with is unreadable or does not fit.
        RunError: the recipe is not valid, or does not fit what else was asked for, or another run writes there.
    """
    pretrained = load_autoencoder(request.init) if request.init else None
    config = recipe_of(request, pretrained)
    check_fit(config, machine, pretrained)
    cases, validation = _cases(request, config, say)

    def train_fold(training: list[CachedCase], held_out: list[CachedCase], place: Path) -> Path:
        say(f"{place}: {len(training)} cases to train on, {len(held_out)} to validate on")
        return train(config, training, held_out, place, pretrained=pretrained, machine=machine, resume=resume)

    if request.folds is None:
        with alone_in(output):
            return [train_fold(cases, validation, output)]
    return cross_validate(config, cases, request.folds, output, train_fold, request.fold, resume)


def recipe_of(request: Request, pretrained: VQAutoencoder | None) -> TrainingConfig:
    """The recipe that was named, or that of the mode, with what was said besides it."""
    try:
        return _recipe_of(request, pretrained)
    except (ValueError, OSError) as error:
        raise RunError(str(error)) from error


def _recipe_of(request: Request, pretrained: VQAutoencoder | None) -> TrainingConfig:
    if request.config:
        config = recipes.load_config(request.config, TrainingConfig)
        config = _changed(config, {"mode": request.mode} if request.mode else {})
    elif pretrained is not None:
        mode = request.mode or "no-frozen"
        if mode not in FROM_CHECKPOINT:
            raise ValueError(f"expected a mode that begins with --init ({', '.join(FROM_CHECKPOINT)}), got {mode}")
        config = fine_tuning(mode, pretrained.architecture, **_seen_by(request.init))
    else:
        config = TrainingConfig(mode=request.mode or "staged")
    if request.steps is not None:
        config = _changed(config, {"joint": config.joint.model_copy(update={"steps": request.steps})})
    return config if request.seed is None else _changed(config, {"seed": request.seed})


def _seen_by(checkpoint: Path | None) -> dict[str, Any]:
    """Normaliser and spacing that a bundle or a run was trained with; nothing where it has seen no PET."""
    if checkpoint is None:
        return {}
    manifest = checkpoint.parent if checkpoint.name == WEIGHTS else checkpoint
    if (manifest / MANIFEST).is_file():
        found = bundles.load(manifest).manifest
        return {"normaliser": found.normaliser, "spacing_mm": found.spacing_mm}
    recipe = recipe_of_run(checkpoint) or {}
    if "normaliser" not in recipe or checkpoint.absolute().parent.name != LAST_STAGE:
        return {}
    return {"normaliser": Normaliser.model_validate(recipe["normaliser"]), "spacing_mm": recipe["spacing_mm"]}


def _changed(config: TrainingConfig, values: dict) -> TrainingConfig:
    """With other values, validated anew."""
    return TrainingConfig.model_validate({**dict(config), **values})


def _cases(request: Request, config: TrainingConfig, say: Say) -> tuple[list[CachedCase], list[CachedCase]]:
    """The cases to train on and those to validate on; what is wrong with either is said at once."""
    found: list[list[CachedCase]] = []
    errors: list[CohortError] = []
    seen: Seen = {}
    cohorts = [request.cohort] if request.validation is None else [request.cohort, request.validation]
    for cohort in cohorts:
        try:
            found.append(cache_cohort(cohort, request.cache, config.spacing_mm, say, seen))
        except CohortError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [f"{error.cohort}: {problem}" for error in errors for problem in error.problems]
        raise CohortError(" and ".join(str(error.cohort) for error in errors), problems)
    if request.validation is None:
        return found[0], []
    shared = {case.patient for case in found[0]} & {case.patient for case in found[1]}
    if shared:
        listed = [f"patient {patient} stands in both cohorts" for patient in sorted(shared)]
        raise CohortError(request.validation, listed)
    return found[0], found[1]
