"""Looks inside a model on PETs with known CT: codes, fusions, and the errors that the spread lets expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import nifti
from .attenuation import hu_to_mu
from .checks import check_ct
from .errors import VolumeError
from .evaluation import figures, html, inside
from .evaluation.attempts import attempt_all
from .evaluation.case import evaluate_pair, on_pair
from .evaluation.codebook import codebook_use, collapse_warnings, places_of_latents
from .evaluation.expected_lines import ExpectedError, expected_from_planes
from .evaluation.fusions import MEDIAN, WEIGHTED, numbers
from .evaluation.inside import Examination
from .evaluation.metrics import body_mask
from .evaluation.pairs import Pair, make_pair
from .files import write_json, write_text
from .pipeline import FUSIONS, PlanePredictions, Synthesizer, package_version
from .planes import slice_axis
from .preprocess import to_grid
from .run import Progress
from .units import HU_AIR
from .volume import Volume

NAC, CT = "nac.nii.gz", "ct.nii.gz"  # of a case folder of `sctrt simulate`


@dataclass(frozen=True)
class Files:
    """Of one case."""

    name: str
    nac: Path
    ct: Path


@dataclass(frozen=True)
class Outputs:
    """Where results go; None where they do not."""

    json: Path | None = None
    markdown: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class Examined:
    """What became of each case, by name."""

    cases: dict[str, Examination]
    failed: dict[str, str]  # and why


def files_of_folder(folder: Path) -> list[Files]:
    """The case that a folder is, or the cases in it.

    Raises:
        VolumeError: there are none.
    """
    found = [folder / NAC] if (folder / NAC).is_file() else sorted(folder.glob(f"*/{NAC}"))
    if not found:
        raise VolumeError(f"{folder}: expected {NAC} and {CT}, or folders with these, got none; check the folder")
    return [Files(nac.resolve().parent.name, nac, nac.parent / CT) for nac in found]


def examine(
    synthesizer: Synthesizer, pet: Volume, ct: Volume, progress: Progress | None = None
) -> tuple[Examination, dict[str, NDArray[np.int32]]]:
    """Looks inside a model on one PET.

    Args:
        synthesizer: of all planes.
        pet: [z, y, x] NAC PET.
        ct: [z, y, x] its true CT [HU], on any grid.
        progress: of the synthesis.

    Returns:
        What was found, and the codes [slice, row, column] by plane.

    Raises:
        VolumeError: unfit volumes, other bodies, no body.
        DeviceError: see `Synthesizer.planes`.
    """
    check_ct(ct, "true CT")
    predicted = synthesizer.planes(pet, progress=progress)
    fused = _fused(predicted, pet)
    spread = predicted.on(pet, predicted.fused(MEDIAN)[1], fill=0.0)
    pair = make_pair(fused[MEDIAN], ct)
    median = evaluate_pair(pair, uncertainty=spread)
    others = {name: numbers(evaluate_pair(make_pair(fused[name], ct))) for name in fused if name != MEDIAN}
    by_planes = _expected_from_planes(pair, [fused[plane] for plane in predicted.hu])
    codes: dict[str, NDArray[np.int32]] = {**predicted.codes}
    use = codebook_use(codes, _places(predicted, ct), synthesizer.bundle.manifest.architecture.codes)
    found = Examination(
        notes=median.notes,
        warnings=collapse_warnings(use),
        codebook=use,
        fusions={MEDIAN: numbers(median), **others},
        voxel_rank_correlation=median.uncertainty.rank_correlation if median.uncertainty else None,
        expected_lines={**by_planes, **(median.expected_lines or {})},
    )
    return found, codes


def _fused(predicted: PlanePredictions, pet: Volume) -> dict[str, Volume]:
    """CTs [HU] on the PET's grid, by fusion."""
    arrays = {name: predicted.fused(name)[0] for name in FUSIONS}
    for name, fuse in WEIGHTED.items():
        arrays[name] = fuse(list(predicted.hu.values())).clip(*predicted.hu_range)
    return {name: predicted.on(pet, array) for name, array in arrays.items()}


def _expected_from_planes(pair: Pair, planes: list[Volume]) -> dict[str, ExpectedError]:
    """Of a pair whose synthetic CT is the fused one."""

    def mu(hu: NDArray[np.float32]) -> NDArray[np.floating]:
        return np.where(pair.attenuating, hu_to_mu(hu), 0)

    maps = [mu(on_pair(pair, plane, HU_AIR)) for plane in planes]
    return expected_from_planes(maps, mu(pair.sct) - mu(pair.ct), pair.body, pair.spacing)


def _places(predicted: PlanePredictions, ct: Volume) -> dict[str, NDArray[np.int8]]:
    """Where each latent lies, by plane."""
    truth = Volume(to_grid(ct, predicted.grid, HU_AIR), predicted.grid.affine, "HU")
    body = body_mask(truth)
    factor = predicted.factor
    return {plane: places_of_latents(truth.array, body, slice_axis(plane), factor) for plane in predicted.codes}


def run(
    cases: list[Files],
    synthesizer: Synthesizer,
    outputs: Outputs = Outputs(),
    *,
    go_on: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> tuple[Examined, str]:
    """Examines all cases and writes what was asked for; returns the results, and them as Markdown.

    Args:
        cases: one or many.
        synthesizer: of all planes.
        outputs: each is written whole or not at all.
        go_on: a case that fails is listed in all outputs, and the others go on; else it raises and nothing is written.
        say: called with a line after each case.
        progress: of the syntheses.
    """
    sections: list[html.Section] = []

    def look(files: Files) -> tuple[Examination, str]:
        found, codes = examine(synthesizer, nifti.load(files.nac), nifti.load(files.ct, unit="HU"), progress)
        if outputs.report:
            sections.append(_section(files, found, codes))
        return found, "examined"

    good, failed = attempt_all(cases, look, go_on=go_on, say=say)
    examined = Examined(good, failed)
    text = _markdown(examined)
    if outputs.json:
        write_json(outputs.json, _content(examined, synthesizer))
    if outputs.markdown:
        write_text(outputs.markdown, text)
    if outputs.report:
        foot = f"sctrt {package_version()}. Research only."
        page = html.page("Inside the model", [_summary(examined), *sections], foot)
        write_text(outputs.report, page)
    return examined, text


def _content(examined: Examined, synthesizer: Synthesizer) -> dict[str, Any]:
    """All numbers, for JSON."""
    return {
        "sctrt": package_version(),
        "model": {"name": synthesizer.bundle.manifest.name, "fingerprint": synthesizer.bundle.fingerprint},
        "runtime": {"name": synthesizer.runtime, "device": synthesizer.device, "precision": synthesizer.precision},
        "reading": inside.READING,
        "cases": {name: case.model_dump() for name, case in examined.cases.items()},
        "failed": examined.failed,
    }


def _markdown(examined: Examined) -> str:
    parts = [inside.markdown(examined.cases)] if examined.cases else []
    parts += [f"- {name}: {text}\n" for name, case in examined.cases.items() for text in (*case.notes, *case.warnings)]
    parts += [f"- {name}: left out: {reason}\n" for name, reason in examined.failed.items()]
    return "\n".join(parts)


def _summary(examined: Examined) -> html.Section:
    """What heads the page: how to read it, the mean of many cases, and which failed."""
    many = len(examined.cases) > 1
    return html.Section(
        "Mean of all cases" if many else "Summary",
        warnings=[f"{name} was left out: {reason}" for name, reason in examined.failed.items()],
        notes=[inside.READING],
        tables=inside.titled(examined.cases) if many else [],
    )


def _section(files: Files, case: Examination, codes: dict[str, NDArray[np.int32]]) -> html.Section:
    expected = {inside.WAYS[way]: one for way, one in case.expected_lines.items()}
    return html.Section(
        files.name,
        warnings=case.warnings,
        notes=[f"{files.nac} with {files.ct}.", *case.notes],
        tables=inside.titled({files.name: case}),
        figures=[
            ("How often each code is used, the most used first, by plane", figures.code_counts(codes)),
            (
                "True error of attenuation factors by decile of the error to expect",
                figures.expected_lines(expected),
            ),
        ],
    )
