"""The memory plan of vq-f4 for a whole body at 1.5 mm on cards of several sizes; arithmetic, no GPU.

python benchmarks/plans.py --json benchmarks/results/plans.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctrt.bench.environment import commit
from sctrt.bundle import Architecture
from sctrt.files import write_json
from sctrt.plan import Grids, Network, engine_size, gpu_plan

SHAPE = (1000, 400, 400)
CARDS_GB = (4, 6, 8, 16, 24, 80)
PRECISION = "fp16"


def main(json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None) -> None:
    network = Network(Architecture(input_channels=1, output_channels=1), PRECISION, engine_size)
    grids = Grids(SHAPE, SHAPE, SHAPE)
    rows = {f"{gb}": gpu_plan(grids, network, int(gb * 1e9)) for gb in CARDS_GB}
    for gb, plan in rows.items():
        print(f"{gb} GB\n{plan.text()}\n")
    if json:
        facts = {"command": "python benchmarks/plans.py --json benchmarks/results/plans.json", "commit": commit()}
        shape = {"shape_zyx": SHAPE, "precision": PRECISION}
        write_json(json, {**facts, **shape, "rows": {gb: plan.facts() for gb, plan in rows.items()}})


if __name__ == "__main__":
    typer.run(main)
