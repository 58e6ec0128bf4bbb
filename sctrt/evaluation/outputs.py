"""What an evaluation writes: JSON, CSV, Markdown, and one HTML page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import replaced_when_whole, write_json, write_text
from ..physics.scan import DEFAULT_SCAN, Scan
from . import html, summary
from .case import Case
from .cohort import CONFIDENCE, RESAMPLES, SEED, Cohort, Files, Mean, evaluate_cohort, means, picture_name
from .pairs import Pair
from .pet_case import PetCase
from .pet_report import pet_markdown, pet_mean_tables, pet_tables
from .regions import RegionErrors

BOOTSTRAP = f"percentile bootstrap over cases, {RESAMPLES} resamples, {CONFIDENCE:.0%}, seed {SEED}"
READING = (
    "Errors are synthetic minus true. Body: the true CT's largest object above -300 HU, filled. MAE in the body does "
    "not see tissue made up outside it, nor whether errors add up along lines: read the dilated mask, contour and "
    "attenuation factors beside it. PSNR depends on its range; SSIM's range is 4000 HU."
)


PET_READING = (
    "SUV errors are of a simulated scan. The PET that the true CT corrects is the reference, so a map equal to the "
    "truth errs by exactly 0. Scatter and randoms are the true ones for every map. All maps but the synthetic CT's are "
    "made of the true CT."
)
GIVEN_PET_READING = "SUV errors are of the two PETs that were given: that of the true CT is the reference."
Picture = tuple[str, str, bytes]  # name of a file, what it shows, PNG


@dataclass(frozen=True)
class Outputs:
    """Where results go; None where they do not."""

    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    report: Path | None = None
    figures: Path | None = None  # a folder


def run(
    cases: list[Files],
    outputs: Outputs,
    *,
    version: str,
    scan: Scan = DEFAULT_SCAN,
    go_on: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Cohort, str]:
    """Measures all cases and writes what was asked for; returns the results, and them as Markdown.

    Args:
        cases: one or many.
        outputs: each is written whole or not at all.
        version: of sctrt, for the records.
        scan: where a PET is simulated; its `kvp` is that of all conventions that have one.
        go_on: a case that fails is listed in all outputs, and the others go on; else it raises and nothing is written.
        say: called with a line after each case.
    """
    sections: list[html.Section] = []

    def draw(files: Files, pair: Pair, case: Case, pets: PetCase | None) -> None:
        if not outputs.report and not outputs.figures:
            return
        drawn = pictures(pair, case, pets)
        sections.append(case_section(files, case, pets, drawn if outputs.report else []))
        if outputs.figures:
            _write_figures(outputs.figures, files.name, drawn)

    cohort = evaluate_cohort(cases, scan=scan, go_on=go_on, say=say, seen=draw)
    found = means(cohort.cases)
    if outputs.json:
        write_json(outputs.json, content(cases, cohort, found, version))
    if outputs.csv:
        write_text(outputs.csv, summary.csv_text(cohort.cases))
    text = markdown(cohort, found)
    if outputs.markdown:
        write_text(outputs.markdown, text)
    if outputs.report:
        title = "Synthetic CT against the true CT"
        page = html.page(title, [cohort_section(cohort, found), *sections], f"sctrt {version}. Research only.")
        write_text(outputs.report, page)
    return cohort, text


def content(cases: list[Files], cohort: Cohort, found: Mapping[str, Mean], version: str) -> dict[str, Any]:
    """All numbers, for JSON."""
    files = {one.name: {"sct": str(one.sct), "ct": str(one.ct)} for one in cases}
    return {
        "sctrt": version,
        "reading": READING,
        "bootstrap": BOOTSTRAP,
        "cases": {name: {**files[name], **case.model_dump()} for name, case in cohort.cases.items()},
        "failed": cohort.failed,
        "mean": {name: one.model_dump() for name, one in found.items()},
    }


def markdown(cohort: Cohort, found: Mapping[str, Mean]) -> str:
    """The table for people: one case, or the mean of many; then warnings and what failed."""
    parts = []
    if len(cohort.cases) == 1:
        parts.append(summary.markdown_table(["", *cohort.cases], summary.case_rows(cohort.cases)))
        parts += [pet_markdown(errors) for errors in cohort.pet_errors.values()]
    elif cohort.cases:
        parts.append(summary.markdown_table(summary.MEAN_HEADINGS, summary.mean_rows(found)))
        parts += [summary.markdown_table(table.headings, table.rows) for table in pet_mean_tables(found)]
        parts.append(f"Interval: {BOOTSTRAP}.\n")
    said = {name: (*_notes(case), *_warnings(case)) for name, case in cohort.cases.items()}
    parts += [f"- {name}: {text}\n" for name, texts in said.items() for text in texts]
    parts += [f"- {name}: left out: {reason}\n" for name, reason in cohort.failed.items()]
    return "\n".join(parts)


def cohort_section(cohort: Cohort, found: Mapping[str, Mean]) -> html.Section:
    """What heads the page: how to read it, the mean of many cases, and which failed."""
    many = len(cohort.cases) > 1
    return html.Section(
        "Summary",
        warnings=[f"{name} was left out: {reason}" for name, reason in cohort.failed.items()],
        notes=[READING, *([f"Interval: {BOOTSTRAP}."] if many else [])],
        tables=[html.Table(list(summary.MEAN_HEADINGS), summary.mean_rows(found)), *pet_mean_tables(found)]
        if many
        else [],
    )


def pictures(pair: Pair, case: Case, pets: PetCase | None) -> list[Picture]:
    """All that can be drawn of a case."""
    from . import figures, pet_figures

    found = [
        ("cuts", "Axial, coronal and sagittal cuts: true CT, synthetic CT, difference", figures.cuts(pair)),
        ("histogram", "HU histogram of the body", figures.histogram(case)),
        ("lines", "Errors of attenuation factors along lines", figures.lines(case)),
    ]
    calibration = figures.calibration(case)
    if calibration:
        found.append(("uncertainty", "Error by decile of uncertainty, and sparsification", calibration))
    if pets:
        found.append(("pet_differences", "Corrected PETs against the reference", pet_figures.differences(pets)))
        found.append(("pet_histograms", "Corrected PETs: joint histograms", pet_figures.joint_histograms(pets)))
    return found


def case_section(files: Files, case: Case, pets: PetCase | None, drawn: list[Picture]) -> html.Section:
    """One case: numbers and pictures."""
    tables = [html.Table(["", "value"], summary.case_rows({files.name: case})), *_by_mask(case)]
    return html.Section(
        files.name,
        warnings=_warnings(case),
        notes=[f"{files.sct} against {files.ct}.", *_notes(case), f"Lines: {case.lines.described}."],
        tables=tables + (pet_tables(pets.errors) if pets else []),
        figures=[(what, image) for _, what, image in drawn],
    )


def _notes(case: Case) -> list[str]:
    if not case.pet_ac:
        return case.notes
    return [*case.notes, *case.pet_ac["notes"], PET_READING if case.pet_ac["scan"] else GIVEN_PET_READING]


def _warnings(case: Case) -> list[str]:
    return [*case.warnings, *(case.pet_ac or {}).get("warnings", [])]


def _by_mask(case: Case) -> list[html.Table]:
    """MAE by tissue, and of mu by convention, in both masks."""
    regions = (case.body, case.dilated_12mm)
    tissues = [[name, *(_tissue(region, name) for region in regions)] for name in case.body.tissues]
    mu = [[name, *(f"{region.mu[name].mae_per_cm:.5f}" for region in regions)] for name in case.body.mu]
    masks = ["body", "body + 12 mm"]
    return [html.Table(["MAE [HU]", *masks], tissues), html.Table(["mu MAE at 511 keV [1/cm]", *masks], mu)]


def _tissue(region: RegionErrors, name: str) -> str:
    errors = region.tissues[name]
    return summary.cell(errors.mae_hu if errors else None, ".1f")


def _write_figures(folder: Path, case: str, drawn: list[Picture]) -> None:
    """PNG files named after the case and what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, image in drawn:
        with replaced_when_whole(folder / f"{picture_name(case)}_{name}.png") as file:
            file.write(image)
