"""A run, or the folds of a cross-validation -> a bundle that says what PETs it was trained on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import ensemble_bundle
from ..bundle import Bundle
from ..ensemble_bundle import EnsembleBundle
from ..errors import BundleError
from ..model.export import PAPER_SPACING_MM, export_checkpoint
from .cohort import read_cohort
from .domain import with_domain
from .folds import fold_checkpoints
from .train import CASES


def export_run(
    checkpoint: Path,
    output: Path,
    *,
    cohort: Path | None = None,
    spacing_mm: float = PAPER_SPACING_MM,
    half_weights: bool = False,
) -> Bundle:
    """Makes a bundle of a checkpoint.

    Args:
        checkpoint: of a training run, or a published autoencoder.
        output: NAME.sctrt.
        cohort: that it was trained on; None means the cases that the run lists, as far as their files are still there.
        spacing_mm: of a published network's volumes.
        half_weights: store weights in fp16.

    Raises:
        BundleError: the checkpoint is unreadable or holds no autoencoder.
        VolumeError: a PET of the cohort is unfit. In either case an older bundle stays as it is.
    """
    pets = [pair.pet for pair in read_cohort(cohort)] if cohort else trained_on(checkpoint)
    complete = partial(with_domain, pets=pets)
    return export_checkpoint(checkpoint, output, spacing_mm=spacing_mm, half_weights=half_weights, complete=complete)


def trained_on(checkpoint: Path) -> list[Path]:
    """The PETs that a training run lists as trained on and that are there; none for other checkpoints."""
    listed = checkpoint.absolute().parent.parent / CASES
    if not listed.is_file():
        return []
    try:
        pets = [Path(case["pet"]) for case in json.loads(listed.read_bytes())["training"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{listed} is damaged: {error!r}; name the cohort by --cohort") from error
    return [pet for pet in pets if pet.is_file()]


def export_folds(
    run: Path, output: Path, half_weights: bool, say: Callable[[str], None] = lambda _: None
) -> EnsembleBundle:
    """Makes an ensemble of the folds of a cross-validation.

    Args:
        run: output folder of `sctrt train --folds`.
        output: NAME.sctrt.
        half_weights: store weights in fp16.
        say: is told of each fold.

    Raises:
        BundleError: fewer than two folds are done, or a checkpoint is unreadable.
    """
    checkpoints = fold_checkpoints(run)
    if len(checkpoints) < 2:
        raise BundleError(f"expected at least two finished folds in {run}, found {len(checkpoints)}; train the others")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".folds-", dir=output.parent) as folder:
        members = []
        for checkpoint in checkpoints:
            name = checkpoint.parent.parent.name
            say(f"exporting {name}")
            member = Path(folder) / f"{name}.sctrt"
            members.append(export_run(checkpoint, member, half_weights=half_weights).path)
        return ensemble_bundle.write_ensemble(members, output)
