"""A cohort of PET/CT pairs: a folder of cases, or a table of files; and everything that is wrong with one, at once."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..cases import CT, META, NAC
from ..errors import VolumeError

COLUMNS = "patient, pet, ct, and scan where a patient has several"
MAX_LISTED = 40  # problems of one message


@dataclass(frozen=True)
class Pair:
    """One PET without attenuation correction, and the CT of the same patient in the same place."""

    patient: str  # whose pairs never stand in two folds
    scan: str  # tells a patient's pairs apart
    pet: Path
    ct: Path

    @property
    def name(self) -> str:
        return self.patient if self.scan in ("", self.patient) else f"{self.patient}/{self.scan}"


class CohortError(VolumeError):
    """Pairs of a cohort cannot be trained on; every one of them is listed."""

    def __init__(self, cohort: Path | str, problems: list[str]) -> None:
        self.cohort, self.problems = cohort, problems
        listed = [f"- {problem}" for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            listed.append(f"- and {len(problems) - MAX_LISTED} more")
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"{cohort}: {count}; nothing was trained. Mend or leave out:\n" + "\n".join(listed),
        )


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, str_strip_whitespace=True)

    patient: str = Field(min_length=1)
    pet: str = Field(min_length=1)
    ct: str = Field(min_length=1)
    scan: str = ""


def read_cohort(path: Path) -> list[Pair]:
    """The pairs of a cohort, by name; the images are not opened.

    Args:
        path: see `list_pairs`.

    Raises:
        CohortError: there is a problem that `list_pairs` lists.
        VolumeError: there is no pair at all.
    """
    pairs, problems = list_pairs(path)
    if problems:
        raise CohortError(path, problems)
    return pairs


def list_pairs(path: Path) -> tuple[list[Pair], list[str]]:
    """The pairs of a cohort whose files are there, by name, and what is wrong with it.

    Args:
        path: a folder of case folders that hold `nac.nii.gz` and `ct.nii.gz`; or a CSV file, or a JSON list of objects,
            with `patient`, `pet`, `ct` and perhaps `scan`, whose paths are relative to the file. Of a case folder the
            patient is what its `meta.json` says ("patient", else "ct" for draws of one CT), else the folder's name.

    Returns:
        Pairs, and a line for each file that is missing, row that is incomplete, and patient, scan or file that stands
        there twice.

    Raises:
        VolumeError: there is no pair at all, or no such file.
    """
    if not path.exists():
        raise VolumeError(f"expected a cohort (a folder of cases, a CSV or a JSON file), found nothing at {path}")
    pairs, problems = _from_folder(path) if path.is_dir() else _from_table(path)
    if not pairs and not problems:
        raise VolumeError(
            f"expected case folders with {NAC} and {CT} in {path}, found none"
            if path.is_dir()
            else f"expected rows with {COLUMNS} in {path}, found none"
        )
    problems += _missing(pairs) + _repeated(pairs)
    there = [pair for pair in pairs if pair.pet.is_file() and pair.ct.is_file()]
    return sorted(there, key=lambda pair: (pair.patient, pair.scan)), problems


def _from_folder(path: Path) -> tuple[list[Pair], list[str]]:
    folders = sorted({file.parent for name in (NAC, CT) for file in path.glob(f"*/{name}")})
    pairs, problems = [], []
    for folder in folders:
        try:
            pairs.append(Pair(patient_of(folder), folder.name, folder / NAC, folder / CT))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            problems.append(f"{folder / META}: {error}")
    return pairs, problems


def patient_of(folder: Path) -> str:
    """Whose a case is: its `meta.json` names the patient, or the CT it was simulated from; else its own.

    Raises:
        ValueError, TypeError: `meta.json` is no JSON object, or names a CT by something that is no name.
    """
    if not (folder / META).exists():
        return folder.name
    meta = json.loads((folder / META).read_bytes())
    if not isinstance(meta, dict):
        raise ValueError(f"expected an object, got {type(meta).__name__}")
    patient = meta.get("patient")
    return ("" if patient is None else str(patient).strip()) or Path(meta.get("ct") or folder.name).name


def _from_table(path: Path) -> tuple[list[Pair], list[str]]:
    pairs, problems = [], []
    for where, row in _rows(path):
        try:
            one = _Row.model_validate(row)
        except ValidationError as error:
            problem = error.errors()[0]
            problems.append(f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; expected {COLUMNS}")
            continue
        try:
            pet, ct = ((path.parent / name).resolve() for name in (one.pet, one.ct))
            _ = pet.is_file(), ct.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links that go round
            problems.append(f"{where}: {error}")
            continue
        pairs.append(Pair(one.patient, one.scan, pet, ct))
    return pairs, problems


def _rows(path: Path) -> list[tuple[str, Any]]:
    """Each row, and where it stands."""
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(path.read_bytes())
            if not isinstance(rows, list):
                raise ValueError(f"a list of objects, got {type(rows).__name__}")
            return [(f"entry {i}", row) for i, row in enumerate(rows, 1)]
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            while table.fieldnames == []:  # blank lines before the names
                table.fieldnames = None
            return [
                (f"line {table.reader.line_num}", {k: v for k, v in row.items() if v or k is None}) for row in table
            ]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise VolumeError(f"expected a CSV file or a JSON list with {COLUMNS} in {path}: {error}") from error


def _missing(pairs: list[Pair]) -> list[str]:
    kinds = {"pet": "PET", "ct": "CT"}
    return [
        f"{pair.name}: no {kind} at {getattr(pair, field)}"
        for pair in pairs
        for field, kind in kinds.items()
        if not getattr(pair, field).is_file()
    ]


def _repeated(pairs: list[Pair]) -> list[str]:
    """Patients, scans and PETs that stand there twice, and files of two patients, who might be in two folds."""
    named: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    files: dict[Path, list[Pair]] = defaultdict(list)
    for pair in pairs:
        named[pair.patient, pair.scan].append(pair)
        files[pair.pet.resolve()].append(pair)
        files[pair.ct.resolve()].append(pair)
    problems = []
    for (patient, scan), same in named.items():
        if len(same) > 1:
            listed = ", ".join(str(pair.pet) for pair in same)
            what = f"patient {patient}, scan {scan}," if scan else f"patient {patient}"
            problems.append(f"{what} stands there {len(same)} times ({listed}); tell a patient's scans apart by scan")
    for file, same in files.items():
        patients = sorted({pair.patient for pair in same})
        if len(patients) > 1:
            problems.append(f"{file} is of several patients: {', '.join(patients)}")
            continue
        scans = [pair.name for pair in same if pair.pet.resolve() == file]
        if len(set(scans)) > 1:  # else the scan itself stands there twice, which is said above
            problems.append(f"{file} stands there {len(scans)} times ({', '.join(scans)}); leave all but one out")
    return problems
