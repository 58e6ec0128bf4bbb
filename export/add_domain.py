"""Writes into an exported bundle what PETs it was trained on, by which a synthesis warns of others.

python export/add_domain.py sctrt/models/phantom-small.sctrt build/phantom-small/cohort/train
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctrt import bundle as bundles
from sctrt.training.cohort import read_cohort
from sctrt.training.domain import add_domain


def main(
    bundle: Annotated[Path, typer.Argument(help="NAME.sctrt; its manifest is replaced.")],
    cohort: Annotated[Path, typer.Argument(help="Of the cases that it was trained on: a folder, or a table.")],
) -> None:
    made = add_domain(bundles.load(bundle), [pair.pet for pair in read_cohort(cohort)])
    print(f"{made.path}: fingerprint {made.fingerprint}")
    print(made.manifest.training["domain"])


if __name__ == "__main__":
    typer.run(main)
