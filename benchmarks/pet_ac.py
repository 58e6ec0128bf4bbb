"""What maps do to the PET of a simulated whole body, and how long that takes to find out.

    python benchmarks/pet_ac.py --json benchmarks/results/pet_ac.json

By default the body is simulated at 4 mm and has about 290 x 128 x 128 voxels; the maps are three trivial ones, all made
of the true CT. A synthetic CT joins them where it is given with the case that it belongs to. Simulated: the errors must
not be set beside clinical ones.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from sctrt import nifti
from sctrt.bench.environment import environment
from sctrt.evaluation.pet_ac import Scan, pet_ac
from sctrt.evaluation.pet_regions import find_regions
from sctrt.evaluation.pet_report import pet_markdown
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.phantom import make_body


def main(
    seed: Annotated[int, typer.Option(help="Of the body.")] = 1001,
    voxel_mm: Annotated[float, typer.Option(help="Of the body.")] = 4.0,
    case: Annotated[Path | None, typer.Option(help="Folder of `sctrt simulate`, in place of a new body.")] = None,
    sct: Annotated[Path | None, typer.Option(help="A synthetic CT of that case.")] = None,
    tof_ps: Annotated[float, typer.Option(help="Timing resolution; 0: without time of flight.")] = 385.0,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    if case:
        units = {"activity": "SUV", "ct": "HU", "labels": "1"}
        activity, ct, labels = (nifti.load(case / f"{name}.nii.gz", unit=unit) for name, unit in units.items())
    else:
        body = make_body(seed, voxel_mm)
        activity, ct, labels = body.activity, body.ct, body.labels
    scts = {"synthetic CT": nifti.load(sct, unit="HU")} if sct else {}
    load = os.getloadavg()[0]
    start = time.perf_counter()
    scan, regions = Scan(tof_fwhm_ps=tof_ps or None), find_regions(ct, labels)
    result = pet_ac(activity, ct, scts, regions=regions, scan=scan, progress=print)
    seconds = time.perf_counter() - start
    size = " x ".join(map(str, ct.shape))
    print(f"\n{pet_markdown(result.errors, note=PHANTOM_NOTE)}\n{size} voxels, reference and {len(result.pets)} maps: ")
    print(f"{seconds:.1f} s; load average before: {load:.1f}")
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "note": PHANTOM_NOTE, "load_average_before": load}
        maps = {name: dataclasses.asdict(error) for name, error in result.errors.items()}
        for error in maps.values():
            del error["histogram"]
        facts |= {"shape_zyx": ct.shape, "seconds": seconds, "scan": dataclasses.asdict(scan)}
        write_json(json, {**facts, "maps": maps})


if __name__ == "__main__":
    typer.run(main)
