"""Makes the model that ships, in one command: cohort -> training -> bundle.

    python export/phantom_small.py --ct FOLDER_OF_CTS --work build/phantom-small

A second call goes on where the first was stopped. Hours on 2 CPU cores.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer
from lightning.pytorch.utilities import rank_zero_only

from sctrt.bundle import DEFAULT_MODEL
from sctrt.model.export import export_checkpoint
from sctrt.training.cache import cache_cohort
from sctrt.training.cohort import read_cohort
from sctrt.training.config import TrainingConfig
from sctrt.training.domain import add_domain
from sctrt.training.simulated import make_cohort, phantom_small_cohort
from sctrt.training.train import Machine, train

INTENDED_USE = "Research only: trained on simulated data. Not a medical device and not for clinical use."
MODELS = Path(__file__).parents[1] / "sctrt" / "models"


def main(
    work: Annotated[Path, typer.Option(help="Cohort, checkpoints and logs go here.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The bundle.")] = MODELS / f"{DEFAULT_MODEL}.sctrt",
    processes: Annotated[int, typer.Option(help="For the cohort and the training.")] = 2,
) -> None:
    cohort = phantom_small_cohort(work / "cohort", ct)
    make_cohort(cohort, processes)
    spacing_mm = TrainingConfig().spacing_mm
    cases, validation = (cache_cohort(work / "cohort" / n, work / "cache", spacing_mm, print) for n in ("train", "val"))
    checkpoint = train(TrainingConfig(), cases, validation, work / "run", machine=Machine(processes), resume=True)
    if rank_zero_only.rank:  # the other processes of the training run this script too
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    provenance = {
        "cohort": sorted(f"{r.folder.name} seed {r.seed}" for r in cohort if r.folder.parent.name == "train"),
        "command": "python export/phantom_small.py --ct FOLDER_OF_CTS --work build/phantom-small",
        "commit": commit,
    }
    bundle = export_checkpoint(
        checkpoint,
        output,
        half_weights=True,
        provenance=provenance,
        licence="Apache-2.0",
        intended_use=INTENDED_USE,
    )
    bundle = add_domain(bundle, [pair.pet for pair in read_cohort(work / "cohort" / "train")])
    print(f"{bundle.path}: fingerprint {bundle.fingerprint}")


if __name__ == "__main__":
    typer.run(main)
