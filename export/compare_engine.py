"""Built engines against PyTorch in fp32 on a CPU, on one sample slice of each size: HU and flipped codes.

python export/compare_engine.py NAME.sctrt --shape 700,400,400 --runtime tensorrt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sctrt import bundle as bundles
from sctrt import engines
from sctrt.device import open_device
from sctrt.engines.verify import describe, verify
from sctrt.plan import adult_shape, plan_for


def main(
    model: Annotated[Path | None, typer.Argument(help="Bundle; default: the model that ships.")] = None,
    runtime: Annotated[Literal["tensorrt", "tensorrt-rtx"], typer.Option()] = "tensorrt-rtx",
    precision: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option()] = "fp16",
    shape: Annotated[str, typer.Option(help="z,y,x that the engines were built for; default: an adult's.")] = "",
    engine_dir: Annotated[Path | None, typer.Option(help="Default: the user's cache.")] = None,
) -> None:
    bundle, device = bundles.load(model), open_device("cuda")
    z, y, x = (int(n) for n in shape.split(",")) if shape else adult_shape(bundle.manifest.spacing_mm)
    options = {"device": device.name, "precision": precision, "engine_dir": engine_dir}
    for size in plan_for(bundle, (z, y, x), precision).engines():
        encoder, decoder = (
            engines.load(bundle, part, runtime, size=size, **options) for part in ("encoder", "decoder")
        )
        with device:
            found = verify(bundle, encoder, decoder, device, oracle="torch")
        print(f"{size[0]} x {size[1]}: {describe(found)}; against {found.oracle}")


if __name__ == "__main__":
    typer.run(main)
