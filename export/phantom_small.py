"""Makes the model that ships, in one command: cohort -> training -> bundle.

    python export/phantom_small.py --ct FOLDER_OF_CTS --labels XCAT_LABELS --work build/phantom-small

A second call goes on where the first was stopped. Hours on 2 CPU cores.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer
from lightning.pytorch.utilities import rank_zero_only

from sctrt.bundle import DEFAULT_MODEL
from sctrt.model.autoencoder import VQAutoencoder
from sctrt.model.checkpoint import load_autoencoder
from sctrt.model.export import export_bundle
from sctrt.training.cache import cache_cohort
from sctrt.training.cohort import read_cohort
from sctrt.training.config import TrainingConfig
from sctrt.training.domain import add_domain
from sctrt.training.recipes import load_config
from sctrt.training.simulated import make_cohort, phantom_small_cohort
from sctrt.training.train import Machine, train

INTENDED_USE = "Research only: trained on simulated data. Not a medical device and not for clinical use."
MODELS = Path(__file__).parents[1] / "sctrt" / "models"


def main(
    work: Annotated[Path, typer.Option(help="Cohort, checkpoints and logs go here.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="mesh50_XCAT_WholeBody_2mm_labels.nii.gz; without it, none.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The bundle.")] = MODELS / f"{DEFAULT_MODEL}.sctrt",
    processes: Annotated[int, typer.Option(help="For the cohort and the training.")] = 2,
) -> None:
    cohort = phantom_small_cohort(work / "cohort", ct, labels)
    make_cohort(cohort, processes)
    spacing_mm = TrainingConfig().spacing_mm
    cases, validation = (cache_cohort(work / "cohort" / n, work / "cache", spacing_mm, print) for n in ("train", "val"))
    machine = Machine(processes)
    staged = train(TrainingConfig(), cases, validation, work / "run", machine=machine, resume=True)
    tuned, start = load_config("phantom-small-tuned", TrainingConfig), load_autoencoder(staged)
    checkpoint = train(tuned, cases, validation, work / "tuned", pretrained=start, machine=machine, resume=True)
    if rank_zero_only.rank:  # the other processes of the training run this script too
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    provenance = {
        "cohort": sorted(f"{r.folder.name} seed {r.seed}" for r in cohort if r.folder.parent.name == "train"),
        "command": "python export/phantom_small.py --ct FOLDER_OF_CTS --labels XCAT_LABELS --work build/phantom-small",
        "commit": commit,
    }
    bundle = export_bundle(
        half_way(start, load_autoencoder(checkpoint)),
        output,
        spacing_mm=tuned.spacing_mm,
        normaliser=tuned.normaliser,
        training={"config": tuned.model_dump(mode="json"), **provenance},
        half_weights=True,
        licence="Apache-2.0",
        intended_use=INTENDED_USE,
    )
    bundle = add_domain(bundle, [pair.pet for pair in read_cohort(work / "cohort" / "train")])
    print(f"{bundle.path}: fingerprint {bundle.fingerprint}")


def half_way(start: VQAutoencoder, tuned: VQAutoencoder) -> VQAutoencoder:
    """The mean of the weights before and after fine-tuning, which keeps more of both than either does.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv 2109.01903.
    """
    mean = VQAutoencoder(tuned.architecture)
    after = tuned.state_dict()
    mean.load_state_dict({name: (value + after[name]) / 2 for name, value in start.state_dict().items()})
    return mean


if __name__ == "__main__":
    typer.run(main)
