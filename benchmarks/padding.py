"""What does padding slices to an engine's size cost? MAE of the shipped model when slices are padded with air further.

Normalisation and attention see all of a slice, so padding changes the result; engines of fixed size need some.

python benchmarks/padding.py --case build/phantom-small/cohort/test/body_1000 --json benchmarks/results/padding.json
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sctrt import Synthesizer, engines, nifti
from sctrt.bench.environment import environment
from sctrt.evaluation.metrics import body_mask
from sctrt.files import write_json

# Sizes are rounded up to multiples of so many pixels, and so many added: the network's own, an engine's, larger ones.
SIZES = ((4, 0), (16, 0), (32, 0), (32, 32), (32, 64), (32, 96))


def main(
    case: Annotated[list[Path], typer.Option(help="Folders with nac.nii.gz and ct.nii.gz.")],
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    synthesizer = Synthesizer(model)
    cases: dict[str, list[dict[str, Any]]] = {}
    for folder in case:
        nac, ct = nifti.load(folder / "nac.nii.gz"), nifti.load(folder / "ct.nii.gz", unit="HU")
        body = body_mask(ct)
        exact = None
        for step, wider in SIZES:
            engines.slice_size = _sizes(step, wider)
            hu = synthesizer(nac).ct.array
            exact = hu if exact is None else exact
            row = {
                "step": step,
                "wider": wider,
                "mae_body": _mean(hu - ct.array, body),
                "change": _mean(hu - exact, body),
            }
            cases.setdefault(folder.name, []).append(row)
            print(folder.name, row, flush=True)
    if json:
        facts = environment(len(os.sched_getaffinity(0)))
        write_json(json, {**facts, "model": synthesizer.bundle.fingerprint, "cases": cases})


def _sizes(step: int, wider: int) -> Any:
    def slice_size(bundle: Any, runtime: Any, height: int, width: int, **_: Any) -> tuple[int, int]:
        return -(-height // step) * step + wider, -(-width // step) * step + wider

    return slice_size


def _mean(difference: np.ndarray, body: np.ndarray) -> float:
    return float(np.abs(difference[body], dtype=np.float64).mean())


if __name__ == "__main__":
    typer.run(main)
