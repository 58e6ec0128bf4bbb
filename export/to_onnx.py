"""Checkpoint -> bundle NAME.sctrt, which holds the ONNX files of encoder and decoder; as `sctrt export` does.

python export/to_onnx.py CHECKPOINT NAME.sctrt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctrt.model.export import PAPER_SPACING_MM, export_checkpoint


def main(
    checkpoint: Annotated[Path, typer.Argument(help="last.ckpt of a training run, or a published autoencoder.")],
    output: Annotated[Path, typer.Argument(help="NAME.sctrt; an older one is replaced.")],
    spacing_mm: Annotated[float, typer.Option(help="Of a published network's volumes.")] = PAPER_SPACING_MM,
    half_weights: Annotated[bool, typer.Option("--half-weights", help="Store weights in fp16.")] = False,
) -> None:
    bundle = export_checkpoint(checkpoint, output, spacing_mm=spacing_mm, half_weights=half_weights)
    print(f"{bundle.encoder_onnx}\n{bundle.decoder_onnx}\nfingerprint {bundle.fingerprint}")


if __name__ == "__main__":
    typer.run(main)
