"""Bundle NAME.sctrt -> built engines, ahead of time where the runtime can; as `sctrt build-engine` does, unverified.

python export/to_engine.py NAME.sctrt --shape 700,400,400 --targets 8.6,8.9,12.0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sctrt import bundle as bundles
from sctrt.engines.build import build_engines
from sctrt.plan import adult_shape, plan_for


def main(
    model: Annotated[Path | None, typer.Argument(help="Bundle; default: the model that ships.")] = None,
    runtime: Annotated[Literal["tensorrt", "tensorrt-rtx"], typer.Option()] = "tensorrt-rtx",
    precision: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option()] = "fp16",
    shape: Annotated[str, typer.Option(help="z,y,x of the body on the model's grid; default: an adult's.")] = "",
    targets: Annotated[str, typer.Option(help="Compute capabilities; default: the GPU here, else all.")] = "",
    engine_dir: Annotated[Path | None, typer.Option(help="Default: the user's cache.")] = None,
) -> None:
    bundle = bundles.load(model)
    z, y, x = (int(n) for n in shape.split(",")) if shape else adult_shape(bundle.manifest.spacing_mm)
    built = build_engines(
        bundle,
        runtime,
        precision,
        plan_for(bundle, (z, y, x), precision).engines(),
        targets=targets.split(",") if targets else (),
        engine_dir=engine_dir,
        say=print,
    )
    for entry, fresh in built:
        print(f"{entry.plan}: {'built' if fresh else 'was there'}")


if __name__ == "__main__":
    typer.run(main)
