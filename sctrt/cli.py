"""The command line: parses, calls the library, prints; no logic of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .errors import BundleError, DeviceError, ReportError, SctrtError, VolumeError

if TYPE_CHECKING:
    from .bundle import Bundle
    from .device import Gpu
    from .engines.cache import Fingerprint
    from .evaluation.cohort import Files as CaseFiles

NIFTI = (".nii.gz", ".nii")
SECONDS_BETWEEN_LINES = 10
FAILED, REFUSED = 1, 3  # exit codes; 2, wrong usage, is the parser's

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
out = Console()
err = Console(stderr=True, soft_wrap=True)
_debug = False

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]


@app.callback(help="Synthetic CT and attenuation map from time-of-flight PET without attenuation correction.")
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks; stands before the command.")] = False,
) -> None:
    global _debug
    _debug = debug


@app.command()
def synthesize(
    pet: Annotated[Path, typer.Argument(help="NAC PET, NIfTI.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the CT goes; not with --plan.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Bundle NAME.sctrt of a model or an ensemble; default: the model that ships.")
    ] = None,
    runtime: Annotated[
        Literal["auto", "native", "openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="What runs the network; on a GPU the last three."),
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="cpu|cuda[:i]", help="Where all of it runs.")] = "cpu",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="Of the network; default: fp32 on a CPU, else fp16.")
    ] = None,
    engine_dir: Annotated[Path | None, typer.Option(help="Of built engines; default: as for build-engine.")] = None,
    vram_gb: Annotated[
        float | None, typer.Option(min=0.1, help="GPU memory that may be used [GB]; default: what is free.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be allocated, and write nothing.")] = False,
    fusion: Annotated[
        Literal["median", "mean", "inverse-nearest", "axial", "coronal", "sagittal"],
        typer.Option(help="Of the planes, or one alone."),
    ] = "median",
    mu_map: Annotated[Path | None, typer.Option(help="Also write the attenuation map [1/cm].")] = None,
    kvp: Annotated[int, typer.Option(help="Tube voltage of the HU to mu conversion [kV].")] = 120,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Also write the spread of the three planes, or of an ensemble's folds [HU].")
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Also draw PET, synthetic CT and spread as PNG.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write versions, times and HU summary as JSON.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print what the time went on, stage by stage.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also write when each stage ran, JSON for Perfetto or chrome://tracing.")
    ] = None,
) -> None:
    """NAC PET in, synthetic CT (HU) out, on the PET's own grid."""
    from .attenuation import CARNEY_2006
    from .bundle import is_ensemble
    from .ensemble import open_model
    from .nifti import load
    from .pipeline import JOINT_FUSIONS

    images = [path for path in (output, mu_map, uncertainty) if path]
    if vram_gb and device == "cpu":
        raise typer.BadParameter("--vram-gb is of a GPU; give --device cuda with it")
    if plan:
        if images or preview or report or profile or trace:
            raise typer.BadParameter("--plan runs and writes nothing; leave out the outputs and --profile")
        _print_plans(pet, model, device=device, precision=precision, fusion=fusion, vram_gb=vram_gb)
        return
    if not output:
        raise typer.BadParameter("expected --output (-o), where the CT goes, or --plan")
    written = [path.resolve() for path in (*images, preview, report, trace) if path]
    if len(set(written)) < len(written):
        raise typer.BadParameter("two outputs have the same name; give each its own")
    endings = {**dict.fromkeys(images, NIFTI), preview: (".png",), report: (".json",), trace: (".json",)}
    _check_outputs(pet, endings)
    if kvp not in CARNEY_2006:
        raise typer.BadParameter(f"expected --kvp {', '.join(map(str, CARNEY_2006))}, got {kvp}")
    of_folds = model is not None and is_ensemble(model)
    if uncertainty and fusion not in JOINT_FUSIONS and not of_folds:
        raise typer.BadParameter(f"--uncertainty is how far three planes lie apart; --fusion {fusion} is one alone")
    volume = load(pet)
    synthesizer = open_model(
        model,
        runtime=runtime,
        device=device,
        precision=precision,
        fusion=fusion,
        engine_dir=engine_dir,
        vram_gb=vram_gb,
    )
    with _PlaneProgress() as progress:
        result = synthesizer(volume, progress=progress)
    result.ct.save(output)
    if mu_map:
        result.mu_map(kvp).save(mu_map)
    if uncertainty:
        result.uncertainty.save(uncertainty)
    if preview:
        from .preview import save_preview

        spread_of = "folds" if of_folds else "three planes"
        save_preview(preview, volume, result.ct, result.uncertainty, spread_of=spread_of)
    if report:
        from .files import write_json

        write_json(report, {**result.report, "input_file": str(pet), "output_file": str(output)})
    if trace:
        result.timeline.save(trace)
    if profile:
        print(f"{result.timeline.text()}\nwithout reading the PET, opening the model and writing the outputs")
    for event in result.report["plan"]["events"]:
        _say(event)
    for warning in result.report["outside_training"]:
        _say(f"warning: {warning}")
    seconds, used = result.report["seconds"]["total"], result.report["runtime"]
    _say(f"{output}: {seconds:.1f} s with {used['name']} ({used['reason']})")
    _say(result.report["model"]["intended_use"])


def _print_plans(pet: Path, model: Path | None, **options: Any) -> None:
    """What would be allocated; of an ensemble for each member, since they run one after another."""
    from . import ensemble_bundle
    from .bundle import is_ensemble
    from .pipeline import memory_plan

    members = ensemble_bundle.load(model).members if model and is_ensemble(model) else ()
    for one in [member.path for member in members] or [model]:
        title = f"{one}:\n" if members else ""
        text = title + memory_plan(pet, model=one, **options).text()
        out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    sct: Annotated[Path, typer.Argument(help="Synthetic CT (HU), a folder of them, or a CSV with columns sct, ct.")],
    ct: Annotated[
        Path | None, typer.Argument(help="True CT (HU), or a folder with files of the same names; not with a CSV.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where all numbers go, JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also one line a case.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also the table that is printed.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also one HTML page with pictures; needs no network.")] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Of the synthetic CT [HU], or a folder of the same names: is it calibrated?")
    ] = None,
    organs: Annotated[
        Path | None,
        typer.Option(help="TotalSegmentator labels: organs of the PET, and BIC-MAC's exclusion at the liver."),
    ] = None,
    pet_ac: Annotated[
        Path | None,
        typer.Option(
            help="Activity, or a corrected PET, or a folder of the same names: a scan with the true CT is simulated, "
            "and corrected with the synthetic CT, 4 classes, no bone and water."
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Of sctrt simulate: organs and lesions; or a folder.")] = None,
    tof_ps: Annotated[
        float, typer.Option(min=0, max=2000, help="Of the simulated scan, FWHM [ps]; 0: no time of flight.")
    ] = 385.0,
    psf_mm: Annotated[
        float, typer.Option(min=0, max=20, help="Blur of the simulated scanner [mm]; 0 for a corrected PET.")
    ] = 4.5,
    noise_seed: Annotated[
        int | None, typer.Option(min=0, help="Of the simulated scan's noise; default: no noise.")
    ] = None,
    pets: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="PET REFERENCE", help="Instead: PETs corrected with the synthetic and with the true CT."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the report's pictures as PNG.")] = None,
    kvp: Annotated[int, typer.Option(help="Tube voltage of HU to mu [kV].")] = 120,
) -> None:
    """Measures synthetic CTs against true ones: HU, mu, line integrals, contour, and what they do to the PET."""
    from .attenuation import line
    from .evaluation import outputs as evaluation
    from .physics.scan import Scan

    try:
        line("carney", kvp)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    wanted = evaluation.Outputs(output, csv, markdown, report, figures)
    endings = {output: (".json",), csv: (".csv",), markdown: (".md", ".txt"), report: (".html", ".htm")}
    _check_outputs(sct, endings)
    if figures:
        _check_folder(figures)
    pet, reference_pet = pets or (None, None)
    others = {"uncertainty": uncertainty, "organs": organs, "activity": pet_ac, "labels": labels}
    cases = _evaluation_cases(sct, ct, {**others, "pet": pet, "reference_pet": reference_pet})
    if any(case.activity for case in cases):
        _need("torch", "simulation", "demo")
    many = sct.is_dir() or sct.suffix.lower() == ".csv"
    scan = Scan(tof_fwhm_ps=tof_ps or None, psf_mm=psf_mm, seed=noise_seed, kvp=kvp)
    say = _say if many or pet_ac else lambda _: None
    found, text = evaluation.run(cases, wanted, version=_version(), scan=scan, go_on=many, say=say)
    print(text)
    if found.failed:
        raise SctrtError(f"{len(found.failed)} of {len(cases)} cases were left out: {', '.join(found.failed)}")


def _evaluation_cases(sct: Path, ct: Path | None, others: dict[str, Path | None]) -> list[CaseFiles]:
    """What `evaluate` was asked to compare; `others` are further files of a case, or folders of them."""
    from .evaluation.cohort import COLUMNS, Files, files_of_csv, files_of_folders

    given = {name: path for name, path in others.items() if path}
    if sct.suffix.lower() == ".csv":
        if ct or given:
            raise typer.BadParameter(f"a CSV names all files (columns {', '.join(COLUMNS)}); give nothing beside it")
        return files_of_csv(sct)
    if ct is None:
        raise typer.BadParameter("expected the true CT after the synthetic one, or a CSV with the columns sct and ct")
    if given.keys() >= {"activity", "pet"}:
        raise typer.BadParameter("expected --pet-ac, to simulate corrected PETs, or --pets, to compare two; got both")
    if "labels" in given and not given.keys() & {"activity", "pet"}:
        raise typer.BadParameter("--labels are of the PET's tissues; give --pet-ac or --pets with it")
    if sct.is_dir():
        if not ct.is_dir() or not all(path.is_dir() for path in given.values()):
            raise typer.BadParameter("expected folders throughout, with files of the same names, or files throughout")
        return files_of_folders(sct, ct=ct, **given)
    return [Files(_stem(sct), sct, ct, **given)]


def _stem(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


@app.command()
def examine(
    nac: Annotated[
        Path, typer.Argument(help="NAC PET, or a folder of sctrt simulate (nac.nii.gz, ct.nii.gz), or of such folders.")
    ],
    ct: Annotated[Path | None, typer.Argument(help="The PET's true CT (HU); not with a folder.")] = None,
    model: Annotated[Path | None, typer.Option(help="Bundle NAME.sctrt; default: the model that ships.")] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda[:i]", help="Where the network runs.")] = "cpu",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where all numbers go, JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also the tables that are printed.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also one HTML page with pictures; needs no network.")] = None,
) -> None:
    """Looks inside a model on PETs with known CT: codebook use, fusions compared, expected errors along lines."""
    from . import examine as inside
    from .pipeline import Synthesizer

    _check_outputs(nac, {output: (".json",), markdown: (".md", ".txt"), report: (".html", ".htm")})
    if nac.is_dir() == (ct is not None):
        raise typer.BadParameter("expected a NAC PET and its true CT, or one folder that has both")
    cases = [inside.Files(_stem(nac), nac, ct)] if ct else inside.files_of_folder(nac)
    wanted = inside.Outputs(output, markdown, report)
    with _PlaneProgress() as progress:
        many = len(cases) > 1
        examined, text = inside.run(
            cases, Synthesizer(model, device=device), wanted, go_on=many, say=_say, progress=progress
        )
    print(text)
    if examined.failed:
        raise SctrtError(f"{len(examined.failed)} of {len(cases)} cases were left out: {', '.join(examined.failed)}")


@app.command()
def mu_map(
    ct: Annotated[Path, typer.Argument(help="CT or synthetic CT in HU, NIfTI.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the map [1/cm] goes: .nii.gz, .nii, or .hv (Interfile, STIR).")
    ],
    convention: Annotated[
        Literal["carney", "stir", "stir-ge", "niftypet"], typer.Option(help="Of HU to mu at 511 keV.")
    ] = "carney",
    kvp: Annotated[int | None, typer.Option(help="Tube voltage of the CT [kV]; carney and stir-ge: 120.")] = None,
    fwhm_mm: Annotated[float, typer.Option(min=0, max=50, help="Gaussian to the PET's resolution [mm].")] = 0.0,
    hardware: Annotated[
        Path | None, typer.Option(help="Map [1/cm] of table and coils that is added, NIfTI, on any grid.")
    ] = None,
) -> None:
    """Attenuation map at 511 keV [1/cm] of a CT, on the CT's grid."""
    from . import interfile
    from .attenuation import line
    from .checks import check_ct
    from .mu_map import mu_map as make
    from .nifti import load

    for source in (ct, hardware):
        if source:
            _check_outputs(source, {output: (*NIFTI, ".hv")})
    try:
        line(convention, kvp)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    volume = load(ct, unit="HU")
    check_ct(volume)
    added = load(hardware, unit="1/cm") if hardware else None
    made = make(volume, convention=convention, kvp=kvp, fwhm_mm=fwhm_mm, hardware=added)
    how = f"linear attenuation at 511 keV in 1/cm by {convention}" + (f" at {kvp} kVp" if kvp else "")
    if output.suffix.lower() == ".hv":
        interfile.save(made, output, what=how)
    else:
        made.save(output)
    _say(f"{output}: {how}, 0 to {float(made.array.max()):.4f}")


@app.command()
def simulate(
    output: OutputOption,
    seed: Annotated[int, typer.Option(min=0, help="Of body, uptake and noise.")] = 0,
    ct: Annotated[Path | None, typer.Option(help="Real CT (HU) whose anatomy is used.")] = None,
    voxel_mm: Annotated[float, typer.Option(min=1, max=12, help="Voxel size of body and PET [mm].")] = 4.0,
    tof_ps: Annotated[
        float, typer.Option(min=0, max=2000, help="Coincidence timing, FWHM [ps]; 0: no time of flight.")
    ] = 385.0,
    counts_per_slice: Annotated[float, typer.Option(min=1, help="True coincidences of a slice, mean.")] = 5e5,
    scatter_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Scatter / (trues + scatter).")] = 0.37,
    region: Annotated[Literal["body", "torso"], typer.Option(help="Of a procedural body.")] = "body",
    arms: Annotated[Literal["up", "down"] | None, typer.Option(help="Of a procedural body; default: drawn.")] = None,
    bmi: Annotated[
        float | None, typer.Option(min=18, max=40, help="Of a procedural body [kg/m2]; default: drawn.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Of the simulation.")] = "cpu",
) -> None:
    """Simulates a case: body, scan, PET without attenuation correction."""
    _need("torch", "simulation", "demo")
    from .cases import save_case, simulate_case
    from .nifti import load

    _check_folder(output)
    if ct and (arms or bmi):
        raise typer.BadParameter("--arms and --bmi are of a procedural body; leave them out with --ct")
    source = load(ct, unit="HU") if ct else None
    phantom, nac = simulate_case(
        seed,
        ct=source,
        voxel_mm=voxel_mm,
        tof_ps=tof_ps or None,
        counts_per_slice=counts_per_slice,
        scatter_fraction=scatter_fraction,
        region=region,
        arms=arms,
        bmi=bmi,
        device=device,
        progress=_say,
    )
    scan = {"tof_ps": tof_ps, "counts_per_slice": counts_per_slice, "scatter_fraction": scatter_fraction}
    meta = {"seed": seed, "ct": str(ct) if ct else None, "voxel_mm": voxel_mm, **scan, "sctrt": _version()}
    save_case(output, phantom, nac, meta)
    _say(f"{output}: nac.nii.gz, ct.nii.gz, activity.nii.gz, labels.nii.gz, meta.json {nac.shape}")


@app.command()
def train(
    cohort: Annotated[
        Path,
        typer.Argument(help="Folder of case folders (nac.nii.gz, ct.nii.gz); or CSV/JSON: patient, pet, ct, scan."),
    ],
    output: OutputOption,
    validation: Annotated[Path | None, typer.Option(help="Cohort that is never trained on.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validation instead, split by patient.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Train this one alone.")] = None,
    mode: Annotated[
        Literal["staged", "scratch", "no-frozen", "enc-frozen", "adapter"] | None,
        typer.Option(help="Default: the recipe's; without one, staged, or no-frozen with --init."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint to fine-tune: sctrt's, a bundle, CompVis's or diffusers'.")
    ] = None,
    config: Annotated[str | None, typer.Option(metavar="NAME|JSON", help="Recipe; see docs/training.md.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the last stage, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the recipe's.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where resampled cases are kept; default: a folder in the output.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs, or processes on a CPU; default: all GPUs, or one process.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines, as Lightning counts them.")] = 1,
    strategy: Annotated[str, typer.Option(help="Of Lightning: auto, or ddp and its kinds.")] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Logs for it, instead of CSV.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output folder's checkpoints.")] = False,
) -> None:
    """Trains a network from PET slices to CT slices, once or a fold at a time."""
    _need("lightning", "training", "train")
    if tensorboard:
        _need("tensorboard", "--tensorboard", "tensorboard")
    if (validation is None) == (folds is None):
        raise typer.BadParameter("expected either --validation COHORT or --folds N")
    if fold is not None and (folds is None or fold >= folds):
        raise typer.BadParameter(f"--fold counts from 0 to --folds - 1, got {fold} of {folds}")
    _check_folder(output)
    if cache:
        _check_folder(cache)
    from .training.run import Machine, Request, RunError, run_training

    machine = Machine(devices, nodes, strategy, tensorboard)
    request = Request(cohort, validation, folds, fold, mode, init, config, steps, seed, cache or output / "cache")
    try:
        checkpoints = run_training(request, output, machine, resume, _say)
    except RunError as error:
        raise typer.BadParameter(str(error)) from error
    for checkpoint in checkpoints:
        _say(f"{checkpoint}: make a bundle of it with sctrt export {checkpoint} -o NAME.sctrt")


@app.command()
def pretrain(
    images: Annotated[Path, typer.Argument(help="Folder of photographs (jpg, png, webp, ...), read recursively.")],
    output: OutputOption,
    config: Annotated[
        str | None, typer.Option(metavar="NAME|JSON", help="Recipe; default: photographs, a small network.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output folder's last.ckpt.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
) -> None:
    """Pre-trains an autoencoder on photographs: RGB in, the same RGB out, through the codebook."""
    _need("lightning", "pre-training", "train")
    _need("PIL", "pre-training", "train")
    from .training.pretrain import pretrain as run
    from .training.pretrain import recipe_for

    _check_folder(output)
    try:
        checkpoint = run(recipe_for(config, output, steps, resume), images, output, resume=resume, say=_say)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    _say(f"{checkpoint}: compare it with others by sctrt select {checkpoint} --cohort FOLDER")


@app.command()
def select(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Of sctrt pretrain or train, bundles, published ones."),
    ],
    cohort: Annotated[Path, typer.Option(help="Folder of CTs (HU): NAME/ct.nii.gz, or NAME.nii.gz.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where all numbers go, JSON.")] = None,
    fine_tune: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="Also measure after fine-tuning on half of the patients.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=1, help="Of the fine-tuning.")] = 1e-5,
    every: Annotated[int, typer.Option(min=1, help="N-th slice that is measured.")] = 8,
    spacing_mm: Annotated[
        float, typer.Option(min=0.3, max=20, help="Voxel size that CTs are resampled to [mm].")
    ] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split by patient, and of the fine-tuning.")] = 0,
) -> None:
    """Compares autoencoders by how well they reconstruct CTs, as they are and fine-tuned: the paper's CT-to-CT test."""
    _need("lightning", "comparing autoencoders", "train")
    from .files import write_json
    from .training import selection

    _check_outputs(cohort, {output: (".json",)})
    options = {"learning_rate": learning_rate, "every": every, "spacing_mm": spacing_mm, "seed": seed}
    report = selection.select(checkpoints, cohort, fine_tune_steps=fine_tune, **options, say=_say)
    out.print(selection.table_of(report))
    if output:
        write_json(output, {"sctrt": _version(), "command": " ".join(sys.argv), **report})
    failed = [one["checkpoint"] for one in report["candidates"] if "failed" in one]
    if failed:
        raise BundleError(f"{len(failed)} of {len(checkpoints)} candidates were left out: {', '.join(failed)}")


@app.command()
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Of sctrt train (or its folder of folds), CompVis (.ckpt) or diffusers (.safetensors)."),
    ],
    output: OutputOption,
    spacing_mm: Annotated[
        float, typer.Option(min=0.3, max=20, help="Voxel size of a published network's volumes [mm].")
    ] = 1.5,
    half_weights: Annotated[bool, typer.Option("--half-weights", help="Store weights in fp16.")] = False,
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="What it was trained on, where the run does not say; synthesize will warn of PETs unlike it."
        ),
    ] = None,
) -> None:
    """Makes a model bundle NAME.sctrt of a checkpoint, or an ensemble of the folds of a cross-validation."""
    _need("onnxscript", "export", "train")
    if cohort and not cohort.exists():
        raise typer.BadParameter(f"--cohort {cohort} is not there")
    _check_bundle_name(output)
    if checkpoint.is_dir() and (checkpoint / "folds.json").is_file():
        if cohort:
            raise typer.BadParameter(
                "--cohort is of a single run, and each fold was trained on patients of its own, which its cases.json "
                "lists; leave it out, or export each fold's last.ckpt with its own; join them by sctrt ensemble"
            )
        from .training.export import export_folds

        made = export_folds(checkpoint, output, half_weights, say=_say)
        _say(f"{made.path}: {len(made.members)} models, {_megabytes(made.path):.1f} MB")
        return
    if checkpoint.is_dir():
        raise BundleError(
            f"expected a checkpoint, or the folder of a run's folds, got the folder {checkpoint}; of a single run, "
            f"pass {checkpoint}/3-joint/last.ckpt"
        )
    from .training.export import export_run

    bundle = export_run(checkpoint, output, cohort=cohort, spacing_mm=spacing_mm, half_weights=half_weights)
    _say(f"{bundle.path}: {_megabytes(bundle.path):.1f} MB, fingerprint {bundle.fingerprint[:16]}")


@app.command()
def ensemble(
    folds: Annotated[list[Path], typer.Argument(metavar="FOLD", help="Bundles NAME.sctrt, one a fold.")],
    output: OutputOption,
) -> None:
    """Joins the models that cross-validation leaves: the CT is their median, the uncertainty their spread."""
    from .ensemble_bundle import write_ensemble

    _check_bundle_name(output)
    made = write_ensemble(folds, output)
    size = _megabytes(made.path)
    _say(f"{made.path}: {len(made.members)} models, {size:.1f} MB, fingerprint {made.fingerprint[:16]}")


@app.command()
def demo(
    output: OutputOption,
    seed: Annotated[int, typer.Option(min=2000, help="Of a body; those below 2000 may have been trained on.")] = 2026,
) -> None:
    """Simulates an unseen body, synthesises its CT, and compares it with the truth and with trivial guesses."""
    _need("torch", "simulation", "demo")
    _check_folder(output)
    from .demo import run_demo

    with _PlaneProgress() as progress:
        result = run_demo(output, seed, say=_say, progress=progress)
    out.print(result.table)
    out.print(result.reading, markup=False, highlight=False)


@app.command()
def build_engine(
    model: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Bundle NAME.sctrt; default: the model that ships.")
    ] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None, typer.Option(help="Default: the first that is installed.")
    ] = None,
    precision: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option(help="Of the network.")] = "fp16",
    shape: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Of the body box on the model's grid [voxels]; default: an adult's."),
    ] = None,
    for_pet: Annotated[Path | None, typer.Option("--for", help="PET whose body box it is.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Slices of one call at most; default: as planned.")
    ] = None,
    vram_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the GPU that runs them; default: that of the one here.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Only say what a synthesis would allocate; build nothing.")
    ] = False,
    compute_capability: Annotated[
        str | None,
        typer.Option(metavar="8.6,...", help="GPUs to build for; default: the one here, else all. TensorRT-RTX only."),
    ] = None,
    engine_dir: Annotated[Path | None, typer.Option(help="Default: $SCTRT_ENGINE_DIR, else the user's cache.")] = None,
) -> None:
    """Builds the TensorRT engines of a model for the GPU that is here, or ahead of time for others."""
    from . import bundle as bundles
    from . import engines
    from .plan import adult_shape, plan_for

    targets = _compute_capabilities(compute_capability)
    if shape and for_pet:
        raise typer.BadParameter("--shape and --for both say how large the body box is; give one of them")
    given = _shape(shape) if shape else None
    if runtime == "tensorrt" and targets:
        raise typer.BadParameter("--compute-capability is of tensorrt-rtx; tensorrt builds for the GPU that is here")
    bundle = bundles.load(model)
    if for_pet:
        given = _body_box(for_pet, bundle)
    manifest = bundle.manifest
    given = given or adult_shape(manifest.spacing_mm)
    budget = _vram(vram_gb)
    if plan_only and budget is None:
        raise typer.BadParameter("--plan needs --vram-gb where no GPU is, to plan for")
    plan = plan_for(bundle, given, precision, budget)
    slices = ", ".join(f"{height} x {width}" for height, width in plan.engines())
    _say(f"{manifest.name} for a body box of {' x '.join(map(str, given))} voxels: slices of {slices} pixels")
    if plan_only:
        print(plan.text())
        return
    chosen = runtime or engines.first_built()
    _need("onnx", "building engines", chosen)
    from .engines import build

    sizes = {size: max_batch or batch for size, batch in plan.engines().items()}
    with _EngineProgress() as progress:
        built = build.build_engines(
            bundle,
            chosen,
            precision,
            sizes,
            targets=targets,
            engine_dir=engine_dir,
            say=_say,
            progress=progress,
        )
    _verify(bundle, [one.entry.fingerprint for one in built], engine_dir)


def _verify(bundle: Bundle, built: list[Fingerprint], engine_dir: Path | None) -> None:
    """Says how far engines lie from a CPU runtime: tried now where that can be, else as their fingerprints say."""
    from .engines.verify import describe, verify_built

    device, reason = _device_for(built[0].targets)
    for one in built[::2]:  # the decoder beside it has the same
        size = one.height, one.width
        found = one.verified
        if device:
            with device:
                found = verify_built(bundle, one.runtime, one.precision, size, engine_dir, device)
        if found:
            _say(f"{size[0]} x {size[1]}: verified on {found.device} against {found.oracle}: {describe(found)}")
        else:
            _say(f"{size[0]} x {size[1]}: not verified, since {reason}; the first run verifies")


def _device_for(targets: tuple[str, ...]) -> tuple[Gpu | None, str]:
    """The GPU here, if it is a target and can be used; else why not."""
    from .device import Gpu
    from .gpus import card

    there = card("cuda")
    if there is None:
        return None, "no GPU is here"
    if there.compute_capability not in targets:
        return None, f"the GPU here, {there.name} ({there.compute_capability}), is none of the targets"
    try:
        return Gpu(0), ""
    except DeviceError as error:
        return None, str(error)


def _vram(given_gb: float | None) -> int | None:
    """Bytes of memory to plan for: as given, else that of the GPU here; None where neither is."""
    from .gpus import card

    there = card("cuda")
    if given_gb is not None:
        return int(given_gb * 1e9)
    return there.memory_bytes if there else None


def _body_box(pet: Path, bundle: Bundle) -> tuple[int, int, int]:
    """(z, y, x) of a PET's body box on the model's grid."""
    from .checks import check_pet
    from .nifti import load
    from .preprocess import network_input

    volume = load(pet)
    check_pet(volume)
    return network_input(volume, bundle.manifest.spacing_mm, bundle.manifest.normaliser).grid.shape


def _shape(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,3},[1-9]\d{0,3},[1-9]\d{0,3}", text):
        raise typer.BadParameter(f"expected --shape Z,Y,X of three numbers of voxels from 1 to 9999, got {text!r}")
    z, y, x = map(int, text.split(","))
    return z, y, x


def _compute_capabilities(text: str | None) -> list[str]:
    names = text.split(",") if text is not None else []
    for name in names:
        if not re.fullmatch(r"\d{1,2}\.\d", name):
            raise typer.BadParameter(f"expected --compute-capability such as 8.6,8.9,12.0, got {text!r}")
    return list(dict.fromkeys(names))


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """What is installed, which GPUs are here, which runtime would be chosen and why, and which engines are built."""
    from .info import facts

    found = facts()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(show_header=False)
    for name, value in found.items():
        lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else value
        table.add_row(name, Text("\n".join(lines) or "none" if isinstance(lines, list) else str(lines)))
    out.print(table)


@app.command()
def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...", help="kernels, engines, build, pipeline (default: these); scaling, roofline."
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda[:i]", help="What is measured.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.1, help="That it may take, about.")] = 9.0,
    sizes: Annotated[
        str | None, typer.Option(metavar="body,S,M,L,XL", help="Of the volumes; default: what there is time for.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every way; default: all cores.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bodies.")] = 1000,
    model: Annotated[Path | None, typer.Option(help="Bundle NAME.sctrt; default: the model that ships.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where all numbers go.")] = None,
    chart: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the syntheses, .png or .svg.")] = None,
    read: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing: show an earlier run's JSON, and draw --chart.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Measure nothing: what differs between two runs' JSON beyond noise."),
    ] = None,
) -> None:
    """Times everything beside what one would use instead, and says whether it is still right."""
    from .bench import command as benchmark

    _check_outputs(read or Path(), {as_json: (".json",), chart: (".png", ".svg")})
    if (compare is not None) + (read is not None) + bool(suites) > 1 or ((compare or read) and as_json):
        raise typer.BadParameter(
            "--compare and --read measure nothing; leave out suites and --json, and give one of them"
        )
    if chart:
        _need("matplotlib", "--chart", "bench")
    if compare:
        benchmark.compare(*compare, out)
        return
    if read:
        benchmark.read(read, chart, out)
        return
    if unknown := [name for name in suites or () if name not in benchmark.SUITES]:
        raise typer.BadParameter(f"expected suites of {', '.join(benchmark.SUITES)}, got {', '.join(unknown)}")
    named = sizes.split(",") if sizes else None
    if unknown := [name for name in named or () if name not in benchmark.SIZES]:
        raise typer.BadParameter(f"expected --sizes of {', '.join(benchmark.SIZES)}, got {', '.join(unknown)}")
    how = {"device": device, "minutes": minutes, "sizes": named, "threads": threads, "seed": seed, "model": model}
    wrong = benchmark.run(suites or (), how, as_json, chart, out, _say)
    if wrong:
        raise SctrtError(
            f"these rows differ from what they are compared with by more than they may: {'; '.join(wrong)}"
        )


class _PlaneProgress:
    """A bar a stage on a terminal, plain lines elsewhere; called with (stage, done, total)."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=err, transient=True) if err.is_terminal else None
        self._tasks: dict = {}

    def __enter__(self) -> _PlaneProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif done in (0, total):
            _say(f"{stage}: {'started' if done == 0 else 'done'} ({total} batches)")


class _EngineProgress(_PlaneProgress):
    """The same in per cent; where there is no terminal, a line now and then of a build that takes long."""

    def __init__(self) -> None:
        super().__init__()
        self._said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            super().__call__(stage, done, total)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            _say(f"{stage}: {done} of {total} %")


def _say(line: str) -> None:
    err.print(line, markup=False, highlight=False)


def _check_bundle_name(path: Path) -> None:
    if path.suffix != ".sctrt":
        raise typer.BadParameter(f"expected a name that ends in .sctrt, got {path}")


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _version() -> str:
    from .pipeline import package_version

    return package_version()


def _need(module: str, purpose: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise SctrtError(f"{purpose} needs the package {module}, which is not installed; pip install 'sctrt[{extra}]'")


def _check_outputs(source: Path, outputs: dict[Path | None, tuple[str, ...]]) -> None:
    """Refuses what could not be written, before any work is done: path -> the endings that its name may have."""
    for path, endings in outputs.items():
        if path is None:
            continue
        if not path.name.lower().endswith(endings):
            raise typer.BadParameter(f"expected a name that ends in {' or '.join(endings)}, got {path}")
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise typer.BadParameter(f"{path} cannot be written: its folder does not exist, or it is a folder itself")
        if path.exists() and source.exists() and path.samefile(source):
            raise typer.BadParameter(f"{path} is the input; choose another name for the output")


def _check_folder(path: Path) -> None:
    """Refuses a folder that cannot be made, since a file has its name, or that of a folder above it."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists() or one.is_symlink())
    if not there.is_dir():
        raise typer.BadParameter(f"expected a folder, got the file {there}; choose another name")


def main() -> None:
    """Entry point of the command `sctrt`."""
    try:
        app()
    except (VolumeError, BundleError, ReportError) as error:
        _fail(error, REFUSED)
    except Exception as error:
        _fail(error, FAILED)


def _fail(error: BaseException, code: int) -> None:
    if _debug:
        raise error
    err.print(f"sctrt: {error or type(error).__name__}", style="red", markup=False, highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
