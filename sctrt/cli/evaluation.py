"""What a synthetic CT is worth, and what a model does within."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SctrtError
from .common import check_folder, check_outputs, check_where, need, say, version
from .progress import PlaneProgress

if TYPE_CHECKING:
    from ..evaluation.cohort import Files as CaseFiles


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
    from ..attenuation import line
    from ..evaluation import outputs as evaluation
    from ..physics.scan import Scan

    try:
        line("carney", kvp)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    wanted = evaluation.Outputs(output, csv, markdown, report, figures)
    endings = {output: (".json",), csv: (".csv",), markdown: (".md", ".txt"), report: (".html", ".htm")}
    check_outputs(sct, endings)
    if figures:
        check_folder(figures)
    pet, reference_pet = pets or (None, None)
    others = {"uncertainty": uncertainty, "organs": organs, "activity": pet_ac, "labels": labels}
    cases = _evaluation_cases(sct, ct, {**others, "pet": pet, "reference_pet": reference_pet})
    if any(case.activity for case in cases):
        need("torch", "simulation", "demo")
    many = sct.is_dir() or sct.suffix.lower() == ".csv"
    scan = Scan(tof_fwhm_ps=tof_ps or None, psf_mm=psf_mm, seed=noise_seed, kvp=kvp)
    speak = say if many or pet_ac else lambda _: None
    found, text = evaluation.run(cases, wanted, version=version(), scan=scan, go_on=many, say=speak)
    print(text)
    if found.failed:
        raise SctrtError(f"{len(found.failed)} of {len(cases)} cases were left out: {', '.join(found.failed)}")


def _evaluation_cases(sct: Path, ct: Path | None, others: dict[str, Path | None]) -> list[CaseFiles]:
    """What `evaluate` was asked to compare; `others` are further files of a case, or folders of them."""
    from ..evaluation.cohort import COLUMNS, Files, files_of_csv, files_of_folders, stem

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
    return [Files(stem(sct.name), sct, ct, **given)]


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
    from .. import examine as inside
    from ..evaluation.cohort import stem
    from ..pipeline import Synthesizer

    check_where(device)
    check_outputs(nac, {output: (".json",), markdown: (".md", ".txt"), report: (".html", ".htm")})
    if nac.is_dir() == (ct is not None):
        raise typer.BadParameter("expected a NAC PET and its true CT, or one folder that has both")
    cases = [inside.Files(stem(nac.name), nac, ct)] if ct else inside.files_of_folder(nac)
    wanted = inside.Outputs(output, markdown, report)
    with PlaneProgress() as progress:
        many = len(cases) > 1
        examined, text = inside.run(
            cases, Synthesizer(model, device=device), wanted, go_on=many, say=say, progress=progress
        )
    print(text)
    if examined.failed:
        raise SctrtError(f"{len(examined.failed)} of {len(cases)} cases were left out: {', '.join(examined.failed)}")
