"""What an evaluation writes: JSON, CSV, Markdown, and one HTML page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attenuation import DEFAULT_KVP
from ..files import replaced_when_whole, write_json
from . import html, summary
from .case import Case
from .cohort import CONFIDENCE, RESAMPLES, SEED, Cohort, Files, Mean, evaluate_cohort, means
from .pairs import Pair
from .regions import RegionErrors

BOOTSTRAP = f"percentile bootstrap over cases, {RESAMPLES} resamples, {CONFIDENCE:.0%}, seed {SEED}"
READING = (
    "Errors are synthetic minus true. Body: the true CT's largest object above -300 HU, filled. MAE in the body does "
    "not see tissue made up outside it, nor whether errors add up along lines: read the dilated mask, contour and "
    "attenuation factors beside it. PSNR depends on its range; SSIM's range is 4000 HU."
)


@dataclass(frozen=True)
class Outputs:
    """Where results go; None where they do not."""

    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None
    report: Path | None = None


def run(
    cases: list[Files],
    outputs: Outputs,
    *,
    version: str,
    kvp: int = DEFAULT_KVP,
    go_on: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Cohort, str]:
    """Measures all cases and writes what was asked for; returns the results, and them as Markdown.

    Args:
        cases: one or many.
        outputs: each is written whole or not at all.
        version: of sctrt, for the records.
        kvp: see `case.evaluate`.
        go_on: a case that fails is listed in all outputs, and the others go on; else it raises and nothing is written.
        say: called with a line after each case.
    """
    sections: list[html.Section] = []

    def draw(files: Files, pair: Pair, case: Case) -> None:
        if outputs.report:
            sections.append(case_section(files, pair, case))

    cohort = evaluate_cohort(cases, kvp=kvp, go_on=go_on, say=say, seen=draw)
    found = means(cohort.cases)
    if outputs.json:
        write_json(outputs.json, content(cases, cohort, found, version))
    if outputs.csv:
        _write(outputs.csv, summary.csv_text(cohort.cases))
    text = markdown(cohort, found)
    if outputs.markdown:
        _write(outputs.markdown, text)
    if outputs.report:
        title = "Synthetic CT against the true CT"
        page = html.page(title, [cohort_section(cohort, found), *sections], f"sctrt {version}. Research only.")
        _write(outputs.report, page)
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
    elif cohort.cases:
        parts.append(summary.markdown_table(summary.MEAN_HEADINGS, summary.mean_rows(found)))
        parts.append(f"Interval: {BOOTSTRAP}.\n")
    parts += [f"- {name}: {text}\n" for name, case in cohort.cases.items() for text in (*case.notes, *case.warnings)]
    parts += [f"- {name}: left out: {reason}\n" for name, reason in cohort.failed.items()]
    return "\n".join(parts)


def cohort_section(cohort: Cohort, found: Mapping[str, Mean]) -> html.Section:
    """What heads the page: how to read it, the mean of many cases, and which failed."""
    many = len(cohort.cases) > 1
    return html.Section(
        "Summary",
        warnings=[f"{name} was left out: {reason}" for name, reason in cohort.failed.items()],
        notes=[READING, *([f"Interval: {BOOTSTRAP}."] if many else [])],
        tables=[html.Table(list(summary.MEAN_HEADINGS), summary.mean_rows(found))] if many else [],
    )


def case_section(files: Files, pair: Pair, case: Case) -> html.Section:
    """One case: numbers and pictures. What else is measured on it (`case.pet_ac`) adds its tables and figures here."""
    from . import figures

    pictures = [
        ("Axial, coronal and sagittal cuts: true CT, synthetic CT, difference", figures.cuts(pair)),
        ("HU histogram of the body", figures.histogram(case)),
        ("Errors of attenuation factors along lines", figures.lines(case)),
    ]
    calibration = figures.calibration(case)
    if calibration:
        pictures.append(("Error by decile of uncertainty, and sparsification", calibration))
    return html.Section(
        files.name,
        warnings=case.warnings,
        notes=[f"{files.sct} against {files.ct}.", *case.notes, f"Lines: {case.lines.described}."],
        tables=[html.Table(["", "value"], summary.case_rows({files.name: case})), *_by_mask(case)],
        figures=pictures,
    )


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


def _write(path: Path, text: str) -> None:
    with replaced_when_whole(path) as file:
        file.write(text.encode())
