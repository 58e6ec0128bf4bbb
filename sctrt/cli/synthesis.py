"""PET in, synthetic CT or attenuation map out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import NIFTI, OutputOption, check_folder, check_outputs, check_where, need, out, say
from .progress import PlaneProgress


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
        float | None, typer.Option(min=0.1, max=10_000, help="GPU memory that may be used [GB]; default: what is free.")
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
    from ..attenuation import CARNEY_2006
    from ..bundle import is_ensemble
    from ..ensemble import open_model
    from ..nifti import load
    from ..pipeline import JOINT_FUSIONS

    check_where(device, runtime, precision)
    images = [path for path in (output, mu_map, uncertainty) if path]
    if vram_gb and device == "cpu":
        raise typer.BadParameter("--vram-gb is of a GPU; give --device cuda with it")
    if plan:
        if images or preview or report or profile or trace:
            raise typer.BadParameter("--plan runs and writes nothing; leave out the outputs and --profile")
        _print_plans(pet, model, device=device, runtime=runtime, precision=precision, fusion=fusion, vram_gb=vram_gb)
        return
    if not output:
        raise typer.BadParameter("expected --output (-o), where the CT goes, or --plan")
    written = [path.resolve() for path in (*images, preview, report, trace) if path]
    if len(set(written)) < len(written):
        raise typer.BadParameter("two outputs have the same name; give each its own")
    endings = {**dict.fromkeys(images, NIFTI), preview: (".png",), report: (".json",), trace: (".json",)}
    check_outputs(pet, endings)
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
    with PlaneProgress() as progress:
        result = synthesizer(volume, progress=progress)
    result.ct.save(output)
    if mu_map:
        result.mu_map(kvp).save(mu_map)
    if uncertainty:
        result.uncertainty.save(uncertainty)
    if preview:
        from ..preview import save_preview

        spread_of = "folds" if of_folds else "three planes"
        save_preview(preview, volume, result.ct, result.uncertainty, spread_of=spread_of)
    if report:
        from ..files import write_json

        write_json(report, {**result.report, "input_file": str(pet), "output_file": str(output)})
    if trace:
        result.timeline.save(trace)
    if profile:
        print(f"{result.timeline.text()}\nwithout reading the PET, opening the model and writing the outputs")
    for event in result.report["plan"]["events"]:
        say(event)
    for warning in result.report["outside_training"]:
        say(f"warning: {warning}")
    seconds, used = result.report["seconds"]["total"], result.report["runtime"]
    say(f"{output}: {seconds:.1f} s with {used['name']} ({used['reason']})")
    say(result.report["model"]["intended_use"])


def _print_plans(pet: Path, model: Path | None, **options: Any) -> None:
    """What would be allocated; of an ensemble for each member, since they run one after another."""
    from .. import ensemble_bundle
    from ..bundle import is_ensemble
    from ..pipeline import memory_plan

    members = ensemble_bundle.load(model).members if model and is_ensemble(model) else ()
    for one in [member.path for member in members] or [model]:
        title = f"{one}:\n" if members else ""
        text = title + memory_plan(pet, model=one, **options).text()
        out.print(text, markup=False, highlight=False, soft_wrap=True)


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
    from .. import interfile
    from ..attenuation import line
    from ..checks import check_ct
    from ..mu_map import PLASTIC_MU
    from ..mu_map import mu_map as make
    from ..nifti import load

    for source in (ct, hardware):
        if source:
            check_outputs(source, {output: (*NIFTI, ".hv")})
    try:
        line(convention, kvp)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    volume = load(ct, unit="HU")
    check_ct(volume)
    added = load(hardware, unit="1/cm") if hardware else None
    if added and added.array.max() < PLASTIC_MU / 3:
        say(
            f"warning: nothing in {hardware} exceeds {added.array.max():.3g} 1/cm, and a coil's plastic has "
            f"{PLASTIC_MU:g}; is the map in 1/mm?"
        )
    made = make(volume, convention=convention, kvp=kvp, fwhm_mm=fwhm_mm, hardware=added)
    how = f"linear attenuation at 511 keV in 1/cm by {convention}" + (f" at {kvp} kVp" if kvp else "")
    if output.suffix.lower() == ".hv":
        interfile.save(made, output, what=how)
    else:
        made.save(output)
    say(f"{output}: {how}, 0 to {float(made.array.max()):.4f}")


def demo(
    output: OutputOption,
    seed: Annotated[int, typer.Option(min=2000, help="Of a body; those below 2000 may have been trained on.")] = 2026,
) -> None:
    """Simulates an unseen body, synthesises its CT, and compares it with the truth and with trivial guesses."""
    need("torch", "simulation", "demo")
    check_folder(output)
    from ..demo import run_demo

    with PlaneProgress() as progress:
        result = run_demo(output, seed, say=say, progress=progress)
    out.print(result.table)
    out.print(result.reading, markup=False, highlight=False)
