"""Pairs, networks, bundles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import BundleError
from .common import (
    OutputOption,
    check_bundle_name,
    check_folder,
    check_not_input,
    check_outputs,
    megabytes,
    need,
    out,
    say,
    version,
)


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
    need("torch", "simulation", "demo")
    from ..cases import FILES, save_case, simulate_case
    from ..nifti import load

    check_folder(output)
    if ct and (arms or bmi):
        raise typer.BadParameter("--arms and --bmi are of a procedural body; leave them out with --ct")
    if ct:
        for name in FILES:
            check_not_input(output / name, ct)
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
        progress=say,
    )
    scan = {"tof_ps": tof_ps, "counts_per_slice": counts_per_slice, "scatter_fraction": scatter_fraction}
    meta = {"seed": seed, "ct": str(ct) if ct else None, "voxel_mm": voxel_mm, **scan, "sctrt": version()}
    save_case(output, phantom, nac, meta)
    say(f"{output}: {', '.join(FILES)} {nac.shape}")


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
    need("lightning", "training", "train")
    if tensorboard:
        need("tensorboard", "--tensorboard", "tensorboard")
    if (validation is None) == (folds is None):
        raise typer.BadParameter("expected either --validation COHORT or --folds N")
    if fold is not None and (folds is None or fold >= folds):
        raise typer.BadParameter(f"--fold counts from 0 to --folds - 1, got {fold} of {folds}")
    check_folder(output)
    if cache:
        check_folder(cache)
    from ..training.run import Machine, Request, RunError, run_training

    machine = Machine(devices, nodes, strategy, tensorboard)
    request = Request(cohort, validation, folds, fold, mode, init, config, steps, seed, cache or output / "cache")
    try:
        checkpoints = run_training(request, output, machine, resume, say)
    except RunError as error:
        raise typer.BadParameter(str(error)) from error
    for checkpoint in checkpoints:
        say(f"{checkpoint}: make a bundle of it with sctrt export {checkpoint} -o NAME.sctrt")


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
    need("lightning", "pre-training", "train")
    need("PIL", "pre-training", "train")
    from ..training.pretrain import pretrain as run
    from ..training.pretrain import recipe_for

    check_folder(output)
    try:
        checkpoint = run(recipe_for(config, output, steps, resume), images, output, resume=resume, say=say)
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    say(f"{checkpoint}: compare it with others by sctrt select {checkpoint} --cohort FOLDER")


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
    need("lightning", "comparing autoencoders", "train")
    from ..files import write_json
    from ..training import selection

    check_outputs(cohort, {output: (".json",)})
    options = {"learning_rate": learning_rate, "every": every, "spacing_mm": spacing_mm, "seed": seed}
    report = selection.select(checkpoints, cohort, fine_tune_steps=fine_tune, **options, say=say)
    out.print(selection.table_of(report))
    if output:
        write_json(output, {"sctrt": version(), "command": " ".join(sys.argv), **report})
    failed = [one["checkpoint"] for one in report["candidates"] if "failed" in one]
    if failed:
        raise BundleError(f"{len(failed)} of {len(checkpoints)} candidates were left out: {', '.join(failed)}")


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
    need("onnxscript", "export", "train")
    if cohort and not cohort.exists():
        raise typer.BadParameter(f"--cohort {cohort} is not there")
    check_bundle_name(output)
    if checkpoint.is_dir() and (checkpoint / "folds.json").is_file():
        if cohort:
            raise typer.BadParameter(
                "--cohort is of a single run, and each fold was trained on patients of its own, which its cases.json "
                "lists; leave it out, or export each fold's last.ckpt with its own; join them by sctrt ensemble"
            )
        from ..training.export import export_folds

        made = export_folds(checkpoint, output, half_weights, say=say)
        say(f"{made.path}: {len(made.members)} models, {megabytes(made.path):.1f} MB")
        return
    if checkpoint.is_dir():
        raise BundleError(
            f"expected a checkpoint, or the folder of a run's folds, got the folder {checkpoint}; of a single run, "
            f"pass {checkpoint}/3-joint/last.ckpt"
        )
    from ..training.export import export_run

    bundle = export_run(checkpoint, output, cohort=cohort, spacing_mm=spacing_mm, half_weights=half_weights)
    say(f"{bundle.path}: {megabytes(bundle.path):.1f} MB, fingerprint {bundle.fingerprint[:16]}")


def ensemble(
    folds: Annotated[list[Path], typer.Argument(metavar="FOLD", help="Bundles NAME.sctrt, one a fold.")],
    output: OutputOption,
) -> None:
    """Joins the models that cross-validation leaves: the CT is their median, the uncertainty their spread."""
    from ..ensemble_bundle import write_ensemble

    check_bundle_name(output)
    made = write_ensemble(folds, output)
    size = megabytes(made.path)
    say(f"{made.path}: {len(made.members)} models, {size:.1f} MB, fingerprint {made.fingerprint[:16]}")
