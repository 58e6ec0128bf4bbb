"""Pairs on the model's grid, made once: PET over its body's median and CT, in files that are read by memory map.

A case of the cache depends on its own two files and the voxel size alone, never on other cases of the cohort.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import nifti
from ..bundle import Normaliser, sha256
from ..checks import check_ct, check_pet
from ..errors import UnwritableError, VolumeError
from ..files import write_json
from ..preprocess import Grid, NetworkInput, model_grid, network_input, to_grid
from ..units import HU_AIR, HU_MIN
from ..volume import Volume
from .cohort import CohortError, Pair, list_pairs

FORMAT = 1
PET, CT, RECORD = "pet.npy", "ct.npy", "case.json"
MIN_COVERED = 0.95  # of the PET's body box that the CT must reach
HU_LIMIT = 32767
PLAIN = Normaliser()

Box = tuple[slice, slice, slice]
Seen = dict[str, tuple[Pair, Path]]  # SHA-256 of a file, or of it on the grid -> whose it is, and where it lies


@dataclass(frozen=True)
class CachedCase:
    """One pair on the model's grid, the whole of the PET's field of view."""

    patient: str
    name: str
    source: Path  # the PET's file
    ct_source: Path
    pet: NDArray[np.float16]  # [Z, Y, X] relative to the median of the PET's body
    ct: NDArray[np.int16]  # [Z, Y, X] HU, air where the CT does not reach
    affine: NDArray[np.float64]  # voxel (x, y, z) -> LPS mm
    box: Box  # (z, y, x) of the body
    pet_sha256: str  # of the files
    ct_sha256: str

    @property
    def body_shape(self) -> tuple[int, int, int]:
        """(z, y, x) voxels of the body box."""
        z, y, x = (part.stop - part.start for part in self.box)
        return z, y, x

    def volume(self) -> Volume:
        """The PET, float32."""
        return Volume(self.pet.astype(np.float32), self.affine)


def cache_cohort(
    cohort: Path,
    folder: Path,
    spacing_mm: float,
    say: Callable[[str], None] = lambda _: None,
    seen: Seen | None = None,
) -> list[CachedCase]:
    """Opens the cases of a cohort, and makes those that are not in the cache, or damaged there.

    Interrupted, it goes on where it was: a case is put in its place whole.

    Args:
        cohort: see `cohort.list_pairs`.
        folder: of the cache; several cohorts may share it.
        spacing_mm: of the model.
        say: is told of each case that is made.
        seen: the files of other cohorts, that must not stand in this one under another name; receives this one's.

    Raises:
        CohortError: files are missing or unfit (unreadable, NaN, no body, a CT that lies elsewhere, one PET of two
            pairs, one CT of two patients), or rows are; all are listed.
        VolumeError: there is no pair at all.
        UnwritableError: the cache cannot be written.
    """
    pairs, problems = list_pairs(cohort)
    cases: list[CachedCase] = []
    seen = {} if seen is None else seen
    for number, pair in enumerate(pairs, 1):
        try:
            hashes = _hashes(pair)
            _refuse_copies(pair, hashes, seen)
            place = folder / _key(hashes, spacing_mm)
            if not _whole(place):
                say(f"case {number} of {len(pairs)}: {pair.name}")
                _make(pair, hashes, place, spacing_mm)
            _refuse_copies(pair, _content(place), seen)  # packed anew, a file has another hash
            cases.append(_open(pair, hashes, place))
        except VolumeError as error:
            problems.append(str(error))
    if problems:
        raise CohortError(cohort, problems)
    return cases


def _hashes(pair: Pair) -> dict[str, str]:
    """Of both files."""
    hashes = {}
    for kind, file in (("pet", pair.pet), ("ct", pair.ct)):
        try:
            hashes[kind] = sha256(file)
        except OSError as error:
            raise VolumeError(f"{file}: {error.strerror}; check the file") from error
    return hashes


def _refuse_copies(pair: Pair, hashes: dict[str, str], seen: Seen) -> None:
    """Neither may be a copy of another patient's, who might be in another fold, nor the PET of another.

    A PET that is listed twice, not copied, is told by `list_pairs`.
    """
    for kind, file in (("pet", pair.pet), ("ct", pair.ct)):
        first, other = seen.setdefault(hashes[kind], (pair, file))
        if first.patient != pair.patient:
            raise VolumeError(f"{file} of patient {pair.patient} is the same as {other} of patient {first.patient}")
        if kind == "pet" and other.resolve() != file.resolve():
            raise VolumeError(f"{file} of {pair.name} is the same as {other} of {first.name}")


def _key(hashes: dict[str, str], spacing_mm: float) -> str:
    text = json.dumps([FORMAT, hashes["pet"], hashes["ct"], spacing_mm])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _whole(place: Path) -> bool:
    """Whether a case lies there, with the content that its record says."""
    try:
        record = json.loads((place / RECORD).read_bytes())
        _place_of(record)
        return all(sha256(place / name) == record["sha256"][name] for name in (PET, CT))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _content(place: Path) -> dict[str, str]:
    """Hashes of a case's PET and CT on the grid."""
    written = json.loads((place / RECORD).read_bytes())["sha256"]
    return {"pet": written[PET], "ct": written[CT]}


def _open(pair: Pair, hashes: dict[str, str], place: Path) -> CachedCase:
    affine, box = _place_of(json.loads((place / RECORD).read_bytes()))
    pet, ct = (np.load(place / name, mmap_mode="r", allow_pickle=False) for name in (PET, CT))
    sources = pair.pet.resolve(), pair.ct.resolve()
    return CachedCase(pair.patient, pair.name, *sources, pet, ct, affine, box, hashes["pet"], hashes["ct"])


def _place_of(record: dict[str, Any]) -> tuple[NDArray[np.float64], Box]:
    z, y, x = (slice(int(first), int(last)) for first, last in record["box_zyx"])
    return np.array(record["affine"], dtype=np.float64).reshape(4, 4), (z, y, x)


def _make(pair: Pair, hashes: dict[str, str], place: Path, spacing_mm: float) -> None:
    pet, prepared = _load_pet(pair.pet, spacing_mm)
    grid = model_grid(pet, spacing_mm)
    relative = (to_grid(pet, grid, 0.0) / prepared.reference).clip(0, np.finfo(np.float16).max)
    hu = to_grid(_load_ct(pair.ct, prepared), grid, HU_AIR).round().clip(-HU_LIMIT, HU_LIMIT)
    record = {
        "files": {"pet": str(pair.pet), "ct": str(pair.ct)},
        "of": hashes,
        "spacing_mm": spacing_mm,
        "affine": grid.affine.tolist(),
        "box_zyx": [[part.start, part.stop] for part in box_in(prepared.grid, grid.affine)],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".case-", dir=place.parent))
    try:
        np.save(temporary / PET, relative.astype(np.float16))
        np.save(temporary / CT, hu.astype(np.int16))
        written = {name: sha256(temporary / name) for name in (PET, CT)}
        write_json(temporary / RECORD, {**record, "sha256": written})
        temporary.chmod(0o755)  # mkdtemp leaves it to its owner alone, and others may share the cache
        _put(temporary, place)
    except OSError as error:
        raise UnwritableError(place, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(made: Path, place: Path) -> None:
    """Renames a case to its place, unless another process was faster."""
    if _whole(place):
        return
    shutil.rmtree(place, ignore_errors=True)  # what was damaged
    try:
        os.replace(made, place)
    except OSError:
        if not _whole(place):
            raise


def _load_pet(path: Path, spacing_mm: float) -> tuple[Volume, NetworkInput]:
    pet = nifti.load(path)
    try:
        check_pet(pet)
        return pet, network_input(pet, spacing_mm, PLAIN)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def _load_ct(path: Path, prepared: NetworkInput) -> Volume:
    ct = nifti.load(path, unit="HU")
    try:
        check_ct(ct)
        _check_place(ct, prepared)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return without_padding(ct)


def without_padding(ct: Volume) -> Volume:
    """With air where a scanner wrote -2000 or -3024 HU because it saw nothing: mixed with skin it would be lung."""
    return Volume(ct.array.clip(min=HU_MIN), ct.affine, ct.unit)


def box_in(grid: Grid, affine: NDArray[np.float64]) -> Box:
    """Where a grid lies in voxels (z, y, x) of a larger one of the same spacing and orientation."""
    first = np.rint((np.linalg.inv(affine) @ grid.affine[:, 3])[:3]).astype(int)[::-1].tolist()
    z, y, x = (slice(start, start + n) for start, n in zip(first, grid.shape, strict=True))
    return z, y, x


def _check_place(ct: Volume, prepared: NetworkInput) -> None:
    """Refuses a CT that does not reach the PET's body: of another patient, another bed, or with another origin."""
    inside = Volume(np.ones(ct.shape, np.float32), ct.affine)
    covered = float((to_grid(inside, prepared.grid, 0.0) > 0.5).mean())
    if covered < MIN_COVERED:
        raise VolumeError(
            f"expected a CT on a grid that covers the PET's body, got one that reaches {covered:.0%} of it; register "
            "or resample the CT onto the PET, or check both affines"
        )
