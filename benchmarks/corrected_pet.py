"""What the shipped model's maps do to the PET, on cases it has never seen, beside 4 classes, no bone and water.

    python benchmarks/corrected_pet.py --work build/phantom-small --ct FOLDER_OF_CTS \\
        --json benchmarks/results/corrected_pet.json

Simulates the cases that are missing. One scan a case, without noise, corrected with each map; see docs/physics.md. The
errors are of simulated PET and must not be set beside clinical ones.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from sctrt import Synthesizer, nifti
from sctrt.bench.environment import environment
from sctrt.cases import ACTIVITY, CT, LABELS, NAC
from sctrt.evaluation import pet_case, pet_figures
from sctrt.evaluation.case import evaluate_pair
from sctrt.evaluation.cohort import means
from sctrt.evaluation.pairs import make_pair
from sctrt.evaluation.pet_report import pet_markdown
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.training.simulated import make_cohort, phantom_small_cohort


def main(
    work: Annotated[Path, typer.Option(help="The cases lie, or are made, in WORK/cohort/test.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a picture of each case.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    recipes = [r for r in phantom_small_cohort(work / "cohort", ct) if r.folder.parent.name == "test"]
    make_cohort(recipes)
    synthesizer = Synthesizer(model)
    cases, seconds, warned = {}, {}, {}
    for folder in (recipe.folder for recipe in recipes):
        made = synthesizer(folder / NAC)
        warned[folder.name] = made.report["outside_training"]
        pair = make_pair(made.ct, nifti.load(folder / CT, unit="HU"))
        activity, labels = nifti.load(folder / ACTIVITY, unit="SUV"), nifti.load(folder / LABELS, unit="1")
        start = time.perf_counter()
        pets = pet_case.simulated(pair, activity, labels=labels)
        seconds[folder.name] = time.perf_counter() - start
        cases[folder.name] = evaluate_pair(pair).model_copy(update={"pet_ac": pets.record()})
        print(f"\n### {folder.name}, {seconds[folder.name]:.0f} s\n\n{pet_markdown(pets.errors)}", flush=True)
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{folder.name}.png").write_bytes(pet_figures.differences(pets))
    print(PHANTOM_NOTE)
    if json:
        bodies = means({name: case for name, case in cases.items() if name.startswith("body")})
        write_json(
            json,
            {
                **environment(len(os.sched_getaffinity(0))),
                "note": PHANTOM_NOTE,
                "model": synthesizer.bundle.fingerprint,
                "seconds": seconds,
                "outside_training": warned,
                "cases": {name: _numbers(case.pet_ac) for name, case in cases.items()},
                "lines": {name: case.lines.mean_percent for name, case in cases.items()},
                "contour_mm": {name: case.contour and case.contour.bias_mm for name, case in cases.items()},
                "mean_of_bodies": {name: m.model_dump() for name, m in bodies.items() if name.startswith("pet_ac.")},
            },
        )


def _numbers(record: dict) -> dict:
    """Of each map, without the joint histograms."""
    return {name: {key: x for key, x in one.items() if key != "histogram"} for name, one in record["maps"].items()}


if __name__ == "__main__":
    typer.run(main)
