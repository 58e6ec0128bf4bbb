"""Inside the shipped model on cases it has never seen: codes, fusions, and the errors that the spread lets expect.

    python benchmarks/examine.py --work build/phantom-small --ct FOLDER_OF_CTS --json benchmarks/results/examine.json

The cases are those of held_out.py; those that are missing are simulated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sctrt import Synthesizer, examine
from sctrt.bench.environment import environment
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.training.simulated import make_cohort, phantom_small_cohort


def main(
    work: Annotated[Path, typer.Option(help="The cases lie, or are made, in WORK/cohort/test.")],
    ct: Annotated[
        Path | None, typer.Option(help="Folder of the real CTs; without it, procedural bodies alone.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    recipes = [r for r in phantom_small_cohort(work / "cohort", ct) if r.folder.parent.name == "test"]
    make_cohort(recipes)
    folders = [recipe.folder for recipe in recipes]
    cases = [examine.Files(folder.name, folder / examine.NAC, folder / examine.CT) for folder in folders]
    synthesizer = Synthesizer(model)
    examined, text = examine.run(cases, synthesizer, say=lambda line: print(line, flush=True))
    print(f"\n{text}\n{PHANTOM_NOTE}")
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "note": PHANTOM_NOTE}
        found = {name: case.model_dump() for name, case in examined.cases.items()}
        write_json(json, {**facts, "model": synthesizer.bundle.fingerprint, "cases": found})


if __name__ == "__main__":
    typer.run(main)
