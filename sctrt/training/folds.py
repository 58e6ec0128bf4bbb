"""Cross-validation: the cohort is split by patient, never by slice or scan, and a network is trained a fold."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from ..files import write_json
from .cache import CachedCase
from .config import TrainingConfig
from .fitting import LAST, METRICS
from .records import read_record
from .train import LAST_STAGE, RunError, alone_in, check_place, fixed

SUMMARY = "folds.json"


def split(patients: list[str], folds: int, seed: int) -> list[list[str]]:
    """The patients of each fold; every one stands in just one, and sizes differ by one at most.

    Args:
        patients: of the cases, with repetitions.
        folds: 2 or more.
        seed: of the order in which patients are dealt.

    Raises:
        RunError: there are fewer patients than folds.
    """
    different = sorted(set(patients))
    if not 2 <= folds <= len(different):
        raise RunError(f"expected 2 folds or more, and no more than the {len(different)} patients, got {folds}")
    order = np.random.default_rng(seed).permutation(len(different))
    return [sorted(different[i] for i in order[fold::folds]) for fold in range(folds)]


def cross_validate(
    config: TrainingConfig,
    cases: list[CachedCase],
    folds: int,
    output: Path,
    train_fold: Callable[[list[CachedCase], list[CachedCase], Path], Path],
    only: int | None = None,
    resume: bool = False,
) -> list[Path]:
    """Trains a network a fold on the patients of the others.

    Args:
        config: the recipe; its seed deals the patients.
        cases: of the cohort.
        folds: how many.
        output: receives `fold-0`, ... and `folds.json`: recipe, patients, and a summary of the folds that are done.
        train_fold: called with the cases to train on, those to validate on and the fold's folder; returns a checkpoint.
        only: the one fold to train, for machines that share the work.
        resume: go on with the folds that are there.

    Returns:
        The checkpoints.

    Raises:
        RunError: `output` holds folds of another split or recipe, or one of those asked for that is not to be resumed;
            or that another run is training; nothing was trained.
        BundleError, VolumeError: see `train.check_place`.
    """
    held_out = split([case.patient for case in cases], folds, config.seed)
    _check_begun(output / SUMMARY, config, held_out, resume)
    begun = {"recipe": config.model_dump(mode="json"), "patients": held_out}
    parts, checkpoints = [], []
    with ExitStack() as locks:  # of all folds from the start: none is found taken after hours of another
        for fold in range(folds) if only is None else [only]:
            training = [case for case in cases if case.patient not in held_out[fold]]
            validation = [case for case in cases if case.patient in held_out[fold]]
            place = output / f"fold-{fold}"
            parts.append((training, validation, place))
            locks.enter_context(alone_in(place))
            check_place(config, training, place, resume)
        _summarise(output, folds, begun)
        for part in parts:
            checkpoints.append(train_fold(*part))
            _summarise(output, folds, begun)
    return checkpoints


def _check_begun(listed: Path, config: TrainingConfig, held_out: list[list[str]], resume: bool) -> None:
    """Refuses folds of another split or recipe than those that the folder holds; older ones kept their number alone."""
    if not listed.exists():
        return

    def understand(begun: Any) -> tuple[int, list[list[str]], TrainingConfig]:
        recipe = TrainingConfig.model_validate(begun["recipe"]) if "recipe" in begun else config
        return begun["folds"], begun.get("patients", held_out), recipe

    folds, patients, recipe = read_record(listed, understand, "choose another folder")
    if folds != len(held_out):
        raise RunError(f"expected the folds of {listed} (--folds {folds}), got {len(held_out)}; choose another folder")
    before, now = (fixed(one) if resume else dict(one) for one in (recipe, config))
    other = [name for name in now if before[name] != now[name]] or ["patients"] * (patients != held_out)
    if other:
        raise RunError(f"expected the folds' own {', '.join(other)}, as in {listed}; choose another folder")


def _summarise(output: Path, folds: int, begun: dict[str, Any]) -> None:
    if rank_zero_only.rank == 0:  # which alone has written the measures
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / SUMMARY, {**begun, **summary(output, folds)})


def fold_checkpoints(run: Path) -> list[Path]:
    """Of the folds that are done, wherever they were trained, in their order."""
    done = {}
    for file in run.glob(f"fold-*/{LAST_STAGE}/{METRICS}"):
        if number := re.fullmatch(r"fold-(\d+)", file.parents[1].name):  # and no copy
            done[int(number[1])] = file.parent / LAST
    return [done[number] for number in sorted(done)]


def summary(output: Path, folds: int) -> dict[str, Any]:
    """Of each measure of the folds that are done: their values, mean and standard deviation."""
    done, values = [], defaultdict(list)
    for fold in range(folds):
        metrics = output / f"fold-{fold}" / LAST_STAGE / METRICS
        if not metrics.exists():
            continue
        done.append(fold)
        for name, value in json.loads(metrics.read_bytes()).items():
            values[name].append(value)
    measures = {
        name: {
            "folds": each,
            "mean": float(np.mean(each)),
            "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        }
        for name, each in sorted(values.items())
    }
    return {"folds": folds, "done": done, "measures": measures}
