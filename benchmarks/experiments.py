"""The paper's experiments on a simulated cohort, by cross-validation: ways of training, with and without photographs.

    python benchmarks/experiments.py --work build/experiments --cohort build/phantom-small/cohort/train \\
        --photographs build/photographs/run/1-photographs/last.ckpt --minutes 60

Trains and measures one fold of one experiment after another until the time is up; a second call goes on, from what lies
in --work and from the folds that --json holds. Numbers of simulated PET: they must not be set beside clinical ones, the
paper's 74.49 HU among them.
"""

from __future__ import annotations

import csv
import hashlib
import json as json_module
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from voxel_mlp import VoxelMlp

from sctrt import Synthesizer, Volume, nifti
from sctrt.bench.environment import environment
from sctrt.evaluation import report
from sctrt.evaluation.case import evaluate
from sctrt.files import write_json
from sctrt.model.autoencoder import VQAutoencoder
from sctrt.model.checkpoint import load_autoencoder
from sctrt.model.export import export_checkpoint
from sctrt.training.cache import CachedCase, cache_cohort
from sctrt.training.config import TrainingConfig
from sctrt.training.folds import split
from sctrt.training.recipes import load_config
from sctrt.training.simulated import TRAINING_CTS
from sctrt.training.train import train

BODIES = 29  # procedural, beside one draw of each real CT that may be trained on
FOLDS = 5
SPACING_MM = 4.0
NOT_BONE = "chest"  # contrast in the heart counts as bone there


@dataclass(frozen=True)
class Experiment:
    """One row of the table."""

    recipe: str | None  # None: the per-voxel network
    start: str = "nothing"  # "photographs", "random"

    @property
    def config(self) -> TrainingConfig | None:
        """Of the recipe."""
        return None if self.recipe is None else load_config(self.recipe, TrainingConfig)


EXPERIMENTS = {
    "per-voxel MLP": Experiment(None),
    "scratch": Experiment("scratch"),
    "no-frozen, photographs": Experiment("no-frozen", "photographs"),
    "enc-frozen, photographs": Experiment("enc-frozen", "photographs"),
    "adapter, photographs": Experiment("adapter", "photographs"),
    "staged": Experiment("staged"),
    "enc-frozen, random weights": Experiment("enc-frozen", "random"),
    "scratch, bone 3": Experiment("scratch-bone"),
    "no-frozen, photographs, bone 3": Experiment("no-frozen-bone", "photographs"),
    "enc-frozen, photographs, bone 3": Experiment("enc-frozen-bone", "photographs"),
    "no-frozen, photographs, three scales": Experiment("no-frozen-scales", "photographs"),
    "no-frozen, photographs, codebook fixed": Experiment("no-frozen-codebook", "photographs"),
    "scratch, squared error first": Experiment("scratch-squared"),
    "scratch, mu loss": Experiment("scratch-mu"),
    "scratch, 256 codes": Experiment("scratch-256-codes"),
}


def main(
    work: Annotated[Path, typer.Option(help="Runs and the cache of cases lie here.")],
    cohort: Annotated[Path, typer.Option(help="As of sctrt train; of phantom-small's training cases, 35 are taken.")],
    photographs: Annotated[Path, typer.Option(help="Checkpoint of sctrt pretrain with the recipe photographs.")],
    minutes: Annotated[float, typer.Option(help="After these no other fold is begun.")] = 60.0,
    only: Annotated[list[str] | None, typer.Option(help="Names of experiments; default: all.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go; folds in it are not trained again.")] = None,
) -> None:
    until = time.monotonic() + 60 * minutes
    is_ours = (cohort / "body_000").is_dir()
    cases = cache_cohort(listed(cohort, work) if is_ours else cohort, work / "cache", SPACING_MM, print)
    held_out = split([case.patient for case in cases], FOLDS, seed=0)
    earlier = recorded(json)
    for fold in range(FOLDS):
        for name in only or EXPERIMENTS:
            place = folder_of(work, name) / f"fold-{fold}"
            if fold in earlier[name] or (place / "measures.json").exists() or time.monotonic() > until:
                continue
            place.mkdir(parents=True, exist_ok=True)
            print(f"{name}, fold {fold}", flush=True)
            parts = [[case for case in cases if (case.patient in held_out[fold]) == held] for held in (False, True)]
            predict = trained(EXPERIMENTS[name], parts[0], parts[1], place, photographs)
            rows = {case.name: measures(predict(nifti.load(case.source)), case) for case in parts[1]}
            write_json(place / "measures.json", {"cases": rows})
    if json:
        facts = environment(torch.get_num_threads())
        found = collected(work, earlier)
        write_json(json, {**facts, "note": report.PHANTOM_NOTE, "folds": FOLDS, "experiments": found})


def recipe_hash(name: str) -> str:
    """Of an experiment's configuration."""
    config = EXPERIMENTS[name].config
    return hashlib.sha256(b"" if config is None else config.model_dump_json().encode()).hexdigest()[:8]


def folder_of(work: Path, name: str) -> Path:
    """Of an experiment; with another configuration, another one."""
    return work / f"{name.replace(',', '').replace(' ', '-')}-{recipe_hash(name)}"


def recorded(json: Path | None) -> dict[str, dict[int, dict[str, float]]]:
    """The means of each experiment's folds in a file of results, of those whose configuration is still the same."""
    rows = json_module.loads(json.read_bytes())["experiments"] if json and json.exists() else {}
    return {
        name: {
            fold: {key: measure["folds"][i] for key, measure in rows[name]["measures"].items()}
            for i, fold in enumerate(rows[name]["folds"])
        }
        if name in rows and rows[name]["recipe"] == recipe_hash(name)
        else {}
        for name in EXPERIMENTS
    }


def listed(cohort: Path, work: Path) -> Path:
    """The table of the 35 patients."""
    names = [f"body_{seed:03d}" for seed in range(BODIES)] + [f"{name}_00" for name in TRAINING_CTS]
    work.mkdir(parents=True, exist_ok=True)
    table = work / "cohort.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "pet", "ct"])
        for name in names:
            writer.writerow([name, *((cohort / name / image).resolve() for image in ("nac.nii.gz", "ct.nii.gz"))])
    return table


def trained(
    experiment: Experiment, training: list[CachedCase], validation: list[CachedCase], place: Path, photographs: Path
) -> Callable[[Volume], Volume]:
    """Trains, or goes on, and returns what makes a CT of a PET."""
    config = experiment.config
    if config is None:
        return VoxelMlp.trained(training, SPACING_MM)
    torch.manual_seed(0)
    start = {"nothing": lambda: None, "random": lambda: VQAutoencoder(config.architecture)}.get(
        experiment.start, lambda: load_autoencoder(photographs)
    )()
    checkpoint = train(config, training, validation, place, pretrained=start, resume=True)
    bundle = export_checkpoint(checkpoint, place / "model.sctrt", half_weights=True)
    synthesizer = Synthesizer(bundle.path)
    return lambda pet: synthesizer(pet).ct


def measures(sct: Volume, case: CachedCase) -> dict[str, float | None]:
    """Of one held-out case, after fusion."""
    found = evaluate(sct, nifti.load(case.ct_source, unit="HU"))
    tissues = {name: one.mae_hu if one else None for name, one in found.body.tissues.items()}
    return {
        "MAE body [HU]": found.body.mae_hu,
        "MAE body + 12 mm [HU]": found.dilated_12mm.mae_hu,
        "PSNR body [dB]": found.body.psnr_db_range_4000,
        "SSIM body": found.body.ssim,
        "MAE lung [HU]": tissues.get("lung"),
        "MAE bone [HU]": tissues.get("bone"),
        "bone Dice": None if NOT_BONE in case.name else found.dice["bone_above_200"],
    }


def collected(work: Path, earlier: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Of each experiment that has folds: each measure's mean over the cases of a fold, their mean and spread.

    Args:
        earlier: as of `recorded`; a fold that lies in `work` too is read there.
    """
    found = {}
    for name in EXPERIMENTS:
        folds = dict(earlier[name])
        for file in folder_of(work, name).glob("fold-*/measures.json"):
            cases = list(json_module.loads(file.read_bytes())["cases"].values())
            folds[int(file.parent.name.split("-")[1])] = {
                key: float(np.mean([case[key] for case in cases if case[key] is not None])) for key in cases[0]
            }
        if not folds:
            continue
        order = sorted(folds)
        values = {key: [folds[fold][key] for fold in order] for key in folds[order[0]]}
        found[name] = {
            "recipe": recipe_hash(name),
            "folds": order,
            "measures": {
                key: {"folds": v, "mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else None}
                for key, v in values.items()
            },
        }
    return found


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    typer.run(main)
