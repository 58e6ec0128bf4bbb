"""A bundle of seeded random weights, for speed and for trying engines; what it makes is no CT.

python export/random_bundle.py build/vq-f4.sctrt --vq-f4    # 55 million parameters, one grey channel in
python export/random_bundle.py build/small.sctrt            # the architecture of the model that ships
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from sctrt import bundle as bundles
from sctrt.bundle import Architecture, Normaliser
from sctrt.model.export import PAPER_SPACING_MM, export_bundle
from sctrt.model.untrained import untrained

# A random decoder makes far more of a flipped code than a trained one, 3 HU for each per cent of them and not 0.2: with
# its last layer scaled down, engines are held to the limits that they are held to with trained weights.
QUIET = 0.1
INTENDED_USE = "None: the weights are random. For measuring speed."


def main(
    output: Annotated[Path, typer.Argument(help="NAME.sctrt; an older one is replaced.")],
    vq_f4: Annotated[bool, typer.Option("--vq-f4", help="Full vq-f4, for 1.5 mm.")] = False,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    if vq_f4:
        architecture, normaliser, spacing_mm = Architecture(), Normaliser(), PAPER_SPACING_MM
    else:
        shipped = bundles.load().manifest
        architecture, normaliser, spacing_mm = shipped.architecture, shipped.normaliser, shipped.spacing_mm
    model = untrained(architecture, seed)
    with torch.no_grad():
        for parameter in model.decoder.conv_out.parameters():
            parameter.mul_(QUIET)
    bundle = export_bundle(
        model,
        output,
        spacing_mm=spacing_mm,
        normaliser=normaliser,
        training={"random_weights_seed": seed},
        half_weights=True,
        licence="Apache-2.0",
        intended_use=INTENDED_USE,
    )
    size = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    print(f"{bundle.path}: {size:.0f} MB, fingerprint {bundle.fingerprint}")


if __name__ == "__main__":
    typer.run(main)
