"""Makes the model that ships, in one command: cohort -> training -> bundle.

    python export/phantom_small.py --ct ../shared/data/ct --work build/phantom-small

A second call goes on where the first was stopped. Hours on 2 CPU cores.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from lightning.pytorch.utilities import rank_zero_only

from sctrt.bundle import default_bundle
from sctrt.model.export import export_checkpoint
from sctrt.training.cohort import make_cohort, phantom_small_cohort
from sctrt.training.config import TrainingConfig
from sctrt.training.train import train


def main(
    work: Annotated[Path, typer.Option(help="Cohort, checkpoints and logs go here.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The bundle; default: where sctrt looks for it.")] = None,
    processes: Annotated[int, typer.Option(help="For the cohort and the training.")] = 2,
) -> None:
    cohort = phantom_small_cohort(work / "cohort", ct)
    make_cohort(cohort, processes)
    folders = work / "cohort" / "train", work / "cohort" / "val"
    checkpoint = train(TrainingConfig(), *folders, work / "run", processes=processes, resume=True)
    if rank_zero_only.rank:  # the other processes of the training run this script too
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    provenance = {
        "cohort": sorted(f"{r.folder.name} seed {r.seed}" for r in cohort if r.folder.parent.name == "train"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit,
    }
    bundle = export_checkpoint(checkpoint, output or default_bundle(), provenance=provenance, half_weights=True)
    print(f"{bundle.path}: fingerprint {bundle.fingerprint}")


if __name__ == "__main__":
    typer.run(main)
