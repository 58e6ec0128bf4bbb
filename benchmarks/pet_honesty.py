"""Map errors whose effect on the PET is known (docs/physics.md): what comes out of the simulator, body by body.

    python benchmarks/pet_honesty.py --json benchmarks/results/pet_honesty.json

Torsos at 8 mm, as tests/test_pet_ac.py holds one of them to the same, with and without time of flight, and one whole
body at 4 mm. Without noise. Simulated: the errors must not be set beside clinical ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sctrt.bench.environment import environment
from sctrt.evaluation.metrics import body_mask, dilate
from sctrt.evaluation.pet_ac import pet_ac, reconstruct_with_maps
from sctrt.evaluation.pet_regions import find_regions
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.phantom import Phantom, make_body
from sctrt.physics.scan import Scan
from sctrt.units import HU_AIR
from sctrt.volume import Volume

SOFT_HU = 42.0
WIDER_MM = 4.0
# As it is resolved: no blur of the scanner, no filter, and iterations until thin layers of fat have converged.
EXACT = Scan(psf_mm=0, post_filter_mm=0, n_iterations=16)


def main(
    torsos: Annotated[int, typer.Option(help="Number of torsos, seeds from 1.")] = 5,
    whole_body: Annotated[int, typer.Option(help="Seed of the whole body at 4 mm.")] = 1001,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    rows = {}
    for seed in range(1, torsos + 1):
        body = make_body(seed, 8.0, region="torso")
        rows[f"torso {seed}"] = {
            "385 ps": errors(body, Scan()),
            "no TOF": errors(body, Scan(tof_fwhm_ps=None)),
            "recovery_percent": recovery(body),
        }
        print(rows[f"torso {seed}"], flush=True)
    rows[f"body {whole_body}"] = {"385 ps": errors(make_body(whole_body, 4.0), Scan())}
    print(rows[f"body {whole_body}"])
    if json:
        write_json(json, {**environment(len(os.sched_getaffinity(0))), "note": PHANTOM_NOTE, "rows": rows})


def errors(body: Phantom, scan: Scan) -> dict[str, Any]:
    """Mean SUV errors [%] of each map's tissues."""
    regions = find_regions(body.ct, body.labels)
    hu = body.ct.array
    maps = {
        "truth": hu.copy(),
        "lungs 100 HU too dense": np.where(regions.tissues["lung"], hu + 100, hu),
        "contour 4 mm too wide": wider(body),
    }
    volumes = {name: Volume(array.astype(np.float32), body.ct.affine, "HU") for name, array in maps.items()}
    result = pet_ac(body.activity, body.ct, volumes, regions=regions, scan=scan)
    return {
        name: {tissue: one.mean_percent for tissue, one in error.tissues.items()}
        for name, error in result.errors.items()
    }


def wider(body: Phantom) -> np.ndarray:
    """[z, y, x] HU with 4 mm of soft tissue around the body: of larger voxels that touch it, a part."""
    voxel_mm = body.ct.spacing[0]
    inside = body_mask(body.ct)
    shell = dilate(inside, body.ct.spacing, max(WIDER_MM, voxel_mm)) & ~inside
    share = min(1.0, WIDER_MM / voxel_mm)
    return np.where(shell, np.maximum(body.ct.array, HU_AIR + share * (SOFT_HU - HU_AIR)), body.ct.array)


def recovery(body: Phantom) -> dict[str, float]:
    """Error [%] of each tissue's mean, corrected with the true map, against the true activity."""
    recovered, _ = reconstruct_with_maps(body.activity, body.ct, {}, EXACT)
    masks = find_regions(body.ct, body.labels).tissues
    return {
        name: 100 * float(recovered.array[mask].mean() / body.activity.array[mask].mean() - 1)
        for name, mask in masks.items()
    }


if __name__ == "__main__":
    typer.run(main)
