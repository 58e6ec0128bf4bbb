"""Many synthetic CTs: which files belong together, and what can be said of all of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from .. import nifti
from ..errors import VolumeError
from ..physics.scan import DEFAULT_SCAN, Scan
from . import pet_case
from .attempts import attempt_all
from .case import Case, evaluate_pair
from .pairs import Pair, make_pair
from .pet_case import PetCase
from .pet_error import PetError
from .summary import flat, worst_case

RESAMPLES = 9999
CONFIDENCE = 0.95
SEED = 20061  # of the bootstrap: the same cases give the same interval


@dataclass(frozen=True)
class Files:
    """Of one case."""

    name: str
    sct: Path
    ct: Path
    uncertainty: Path | None = None
    organs: Path | None = None  # TotalSegmentator's labels
    activity: Path | None = None  # to be scanned, or a corrected PET
    labels: Path | None = None  # of a phantom
    pet: Path | None = None  # corrected with the synthetic CT
    reference_pet: Path | None = None  # corrected with the true CT


class Mean(BaseModel):
    """Of one number over the cases that have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    mean: float
    low: float | None  # of the interval; None with fewer than two cases
    high: float | None
    worst_case: str | None  # see `summary.worst_case`


@dataclass(frozen=True)
class Cohort:
    """What became of each case, by name."""

    cases: dict[str, Case]
    failed: dict[str, str]  # and why
    pet_errors: dict[str, dict[str, PetError]] = field(default_factory=dict)  # by case and map, of those with a PET


def files_of_folders(scts: Path, **others: Path | None) -> list[Files]:
    """The NIfTI files of one folder and those of the same relative name in others.

    Args:
        scts: folder of synthetic CTs.
        others: field of `Files` -> folder; None where there is none.

    Raises:
        VolumeError: the first folder holds no NIfTI file, or two of one name.
    """
    found = sorted(p for p in scts.rglob("*") if p.name.lower().endswith((".nii", ".nii.gz")) and p.is_file())
    if not found:
        raise VolumeError(f"{scts}: expected NIfTI files of synthetic CTs, got none; check the folder")
    names = [path.relative_to(scts).as_posix() for path in found]
    given = {key: folder for key, folder in others.items() if folder}
    made = [
        Files(stem(name), path, **{key: folder / name for key, folder in given.items()})
        for name, path in zip(names, found, strict=True)
    ]
    _check_names(made, scts)
    return made


def files_of_csv(table: Path) -> list[Files]:
    """The rows of a table with the columns sct and ct, and perhaps those of `COLUMNS`; paths from the table's folder.

    Raises:
        VolumeError: it cannot be read, has no such columns, no rows, or two of one name.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VolumeError(
            f"{table}: cannot be read as a table ({error}); write CSV with the columns sct, ct"
        ) from error
    if not rows or not {"sct", "ct"} <= rows[0].keys():
        given = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise VolumeError(
            f"{table}: expected rows with the columns sct and ct, got {given}; name them in the first line"
        )
    made = [_row(table.parent, row, number) for number, row in enumerate(rows, 2)]
    _check_names(made, table)
    return made


def _check_names(cases: list[Files], source: Path) -> None:
    """Refuses two cases of one name, or whose pictures would have one."""
    counts = Counter(picture_name(one.name) for one in cases)
    twice = sorted(one.name for one in cases if counts[picture_name(one.name)] > 1)
    if twice:
        raise VolumeError(f"{source}: expected another name for each case, got {', '.join(twice)}; rename them")


def picture_name(case: str) -> str:
    """What the pictures of a case begin with."""
    return case.replace("/", "_")


def check_files(files: Files) -> None:
    """Refuses a case whose PETs cannot be told apart; raises VolumeError."""
    if (files.pet is None) != (files.reference_pet is None):
        raise VolumeError("expected two corrected PETs (pet, reference_pet) or none, got one; name the other, too")
    if files.activity and files.pet:
        raise VolumeError("expected an activity to scan or two corrected PETs, got both; leave out one of them")


def load_pair(files: Files) -> Pair:
    """Reads and brings together the two CTs of a case; raises VolumeError."""
    return make_pair(nifti.load(files.sct, unit="HU"), nifti.load(files.ct, unit="HU"))


def evaluate_files(
    files: Files, pair: Pair, scan: Scan = DEFAULT_SCAN, say: Callable[[str], None] = lambda _: None
) -> tuple[Case, PetCase | None]:
    """Measures one case, and its PETs where it has some; raises VolumeError."""
    spread, organs, activity, labels, pet, reference = (
        nifti.load(path) if path else None
        for path in (files.uncertainty, files.organs, files.activity, files.labels, files.pet, files.reference_pet)
    )
    case = evaluate_pair(pair, uncertainty=spread, organs=organs, kvp=scan.kvp)
    pets = None
    if activity:
        pets = pet_case.simulated(pair, activity, labels=labels, organs=organs, scan=scan, progress=say)
    elif pet and reference:
        pets = pet_case.given(pair, pet, reference, labels=labels, organs=organs)
    return (case.model_copy(update={"pet_ac": pets.record()}) if pets else case), pets


def evaluate_cohort(
    cases: list[Files],
    *,
    scan: Scan = DEFAULT_SCAN,
    go_on: bool = True,
    say: Callable[[str], None] = lambda _: None,
    seen: Callable[[Files, Pair, Case, PetCase | None], None] = lambda *_: None,
) -> Cohort:
    """Measures every case.

    Args:
        cases: what belongs together.
        scan: where a PET is simulated; its `kvp` is that of all conventions that have one.
        go_on: one that cannot be measured is listed with its reason, and the others go on; else its error is raised.
        say: called with a line after each case.
        seen: called with each case while its arrays are at hand, for figures.
    """
    errors: dict[str, dict[str, PetError]] = {}

    def measure(files: Files) -> tuple[Case, str]:
        check_files(files)
        pair = load_pair(files)
        case, pets = evaluate_files(files, pair, scan, say)
        seen(files, pair, case, pets)
        if pets:
            errors[files.name] = pets.errors
        return case, f"MAE {case.body.mae_hu:.1f} HU in the body"

    good, failed = attempt_all(cases, measure, go_on=go_on, say=say)
    return Cohort(good, failed, errors)


def means(cases: Mapping[str, Case]) -> dict[str, Mean]:
    """Mean over the cases of each number, with a bootstrap interval (percentile, cases drawn with replacement)."""
    rows = {name: flat(case) for name, case in cases.items()}
    names = dict.fromkeys(key for row in rows.values() for key in row)
    found = {}
    for key in names:
        values = {case: row[key] for case, row in rows.items() if row.get(key) is not None}
        if values:
            found[key] = _mean(key, {case: float(value) for case, value in values.items() if value is not None})
    return found


def _mean(name: str, values: dict[str, float]) -> Mean:
    array = np.array(list(values.values()))
    low, high = _interval(array)
    return Mean(n=len(array), mean=float(array.mean()), low=low, high=high, worst_case=worst_case(name, values))


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _row(folder: Path, row: Mapping[str, str | None], number: int) -> Files:
    given = {key: folder / value.strip() for key in COLUMNS if (value := row.get(key)) and value.strip()}
    if not {"sct", "ct"} <= given.keys():
        raise VolumeError(f"expected a file in sct and in ct, got line {number} without; fill it in or remove the line")
    name = (row.get("name") or "").strip() or stem(row["sct"] or "")
    return Files(name, **given)


COLUMNS = ("sct", "ct", "uncertainty", "organs", "activity", "labels", "pet", "reference_pet")


def stem(name: str) -> str:
    """A file's name without .nii or .nii.gz."""
    return name.removesuffix(".gz").removesuffix(".nii")
