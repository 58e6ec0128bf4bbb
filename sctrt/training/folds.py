"""Cross-validation: the cohort is split by patient, never by slice or scan, and a network is trained a fold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from ..files import write_json
from .cache import CachedCase
from .config import TrainingConfig
from .fitting import LAST, METRICS
from .train import LAST_STAGE, RunError

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
) -> list[Path]:
    """Trains a network a fold on the patients of the others.

    Args:
        config: the recipe; its seed deals the patients.
        cases: of the cohort.
        folds: how many.
        output: receives `fold-0`, ... and the summary `folds.json` of those that are done.
        train_fold: called with the cases to train on, those to validate on and the fold's folder; returns a checkpoint.
        only: the one fold to train, for machines that share the work.

    Returns:
        The checkpoints.
    """
    held_out = split([case.patient for case in cases], folds, config.seed)
    checkpoints = []
    for fold in range(folds) if only is None else [only]:
        place = output / f"fold-{fold}"
        training = [case for case in cases if case.patient not in held_out[fold]]
        validation = [case for case in cases if case.patient in held_out[fold]]
        checkpoints.append(train_fold(training, validation, place))
        if rank_zero_only.rank == 0:  # which alone has written its measures
            write_json(output / SUMMARY, summary(output, folds))
    return checkpoints


def fold_checkpoints(run: Path) -> list[Path]:
    """Of the folds that are done, wherever they were trained, in their order."""
    done = [file.parent / LAST for file in run.glob(f"fold-*/{LAST_STAGE}/{METRICS}")]
    return sorted(done, key=lambda checkpoint: int(checkpoint.parents[1].name.removeprefix("fold-")))


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
