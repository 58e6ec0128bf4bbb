"""How much memory TensorRT-RTX reports for engines of several sizes; they are built, not run, so no GPU is needed.

python export/random_bundle.py build/vq-f4.sctrt --vq-f4
python benchmarks/engine_memory.py --model build/vq-f4.sctrt --json benchmarks/results/engine_memory.json
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import tensorrt_rtx
import typer

from sctrt import bundle as bundles
from sctrt.bench.environment import environment
from sctrt.bundle import Bundle
from sctrt.engines.memory import workspace_bytes
from sctrt.engines.network import fixed_network
from sctrt.engines.tensorrt import build
from sctrt.files import write_json

SIZES = (
    (96, 144, 1),
    (96, 144, 8),
    (160, 160, 8),
    (400, 400, 1),
    (400, 400, 4),
    (704, 400, 1),
    (704, 400, 8),
    (1024, 416, 4),
)
TARGETS = ("8.6", "8.9", "12.0")


def main(
    model: Annotated[list[Path], typer.Option(help="More bundles beside the one that ships.")],
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    rows: list[dict[str, Any]] = []
    for bundle in (bundles.load(), *map(bundles.load, model)):
        for height, width, batch in SIZES:
            for part in ("encoder", "decoder"):
                for precision in ("fp16", "fp32"):
                    rows.append(_row(bundle, part, height, width, batch, precision))
                    print(rows[-1], flush=True)
    if json:
        write_json(
            json, {**environment(len(os.sched_getaffinity(0))), "tensorrt_rtx": tensorrt_rtx.__version__, "rows": rows}
        )


def _row(bundle: Bundle, part: Any, height: int, width: int, batch: int, precision: str) -> dict[str, Any]:
    path, a = bundle.onnx(part), bundle.manifest.architecture
    network = fixed_network(path, part, a, height, width, precision)
    _, reported = build(tensorrt_rtx, network, max_batch=batch, targets=TARGETS)
    return {
        "model": bundle.manifest.name,
        "architecture": a.model_dump(),
        "part": part,
        "precision": precision,
        "height": height,
        "width": width,
        "batch": batch,
        "bytes": reported,
        "estimate": workspace_bytes(a, height, width, batch, precision),
    }


if __name__ == "__main__":
    typer.run(main)
