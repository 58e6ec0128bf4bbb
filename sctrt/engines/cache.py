"""The folder of built engines: a plan, and beside it a fingerprint that says what it fits. Knows files; no runtime."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import gpus
from ..bundle import Bundle, default_bundle
from ..errors import EngineError
from ..files import locked, replaced_when_whole
from ..gpus import Card
from ..planes import SIZE_STEP
from . import BuiltRuntime, Part

FORMAT_VERSION = 1
MAX_PADDING = SIZE_STEP  # pixels; an engine larger by so many would change the CT too much (docs/engines.md)
MAX_FINGERPRINT_BYTES = 1 << 16  # a real one has about 1 kB
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pixels = Annotated[int, Field(ge=1, le=1 << 16)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Verification(_Strict):
    """How far an engine pair lies from a CPU runtime in fp32, on one sample slice."""

    oracle: str  # runtime and version
    device: str  # the GPU's name
    hu_mean: float  # of the absolute difference
    hu_p99_9: float
    flipped_share: float  # of the codes


class Fingerprint(_Strict):
    """What a plan was built of and for."""

    format_version: Literal[1] = FORMAT_VERSION
    bundle: Sha256  # of the bundle's manifest
    model: str
    part: Part
    runtime: BuiltRuntime
    version: str  # of the runtime
    precision: str
    keep_fp32: tuple[str, ...]  # kinds of layers that stay in fp32
    height: Pixels  # of slices, for both halves
    width: Pixels
    max_batch: int = Field(ge=1)
    targets: tuple[str, ...]  # compute capabilities that it runs on
    gpu: str | None  # the only GPU it runs on; None: any of the targets
    workspace_bytes: int | None  # as the builder reports it for max_batch
    plan_sha256: Sha256
    build_seconds: float
    verified: Verification | None = None

    def key(self) -> str:
        """Eight digits that differ where two engines are no replacement for each other."""
        result = {"workspace_bytes", "plan_sha256", "build_seconds", "verified"}
        return hashlib.sha256(self.model_dump_json(exclude=result).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Wanted:
    """What an engine must fit."""

    bundle: Bundle
    part: Part
    runtime: BuiltRuntime
    version: str
    precision: str
    keep_fp32: tuple[str, ...]
    height: int  # of the slices that it must hold
    width: int
    card: Card | None  # that it shall run on; None: not known here
    shape: tuple[int, int, int] | None = None  # (z, y, x) of the volume, for the command in an error
    budget: int | None = None  # bytes of memory that a plan may use, for the same


@dataclass(frozen=True)
class Entry:
    """One engine of the folder."""

    path: Path  # of the fingerprint
    fingerprint: Fingerprint

    @property
    def plan(self) -> Path:
        return self.path.with_suffix(".plan")

    @property
    def kernels(self) -> Path:
        """Where TensorRT-RTX keeps the kernels that it made of the plan on this machine."""
        return self.path.with_suffix(".kernels")

    def read_plan(self) -> bytes:
        """The plan, as it was built.

        Raises:
            EngineError: it is missing or not the one that the fingerprint was written for.
        """
        try:
            plan = self.plan.read_bytes()
        except OSError as error:
            raise EngineError(f"the engine {self.plan} cannot be read: {error}") from error
        if hashlib.sha256(plan).hexdigest() != self.fingerprint.plan_sha256:
            raise EngineError(
                f"the engine {self.plan} has changed since it was built: its SHA-256 is not the one in its fingerprint"
            )
        return plan


def engine_directory(given: Path | None = None) -> Path:
    """Where engines lie: as given, else $SCTRT_ENGINE_DIR, else the user's cache."""
    if given is None and "SCTRT_ENGINE_DIR" in os.environ:
        return Path(os.environ["SCTRT_ENGINE_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return given or Path(cache) / "sctrt" / "engines"


def store(folder: Path, fingerprint: Fingerprint, plan: bytes) -> Entry:
    """Writes the plan, then its fingerprint: who finds a fingerprint finds the plan whole.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # two plans of one engine differ: one's must not lie under the other's fingerprint
        return _store(folder, fingerprint, plan)


def _store(folder: Path, fingerprint: Fingerprint, plan: bytes) -> Entry:
    f = fingerprint
    name = f"{f.model[:40]}-{f.part}-{f.height}x{f.width}-{f.precision}-{f.runtime}-{f.key()}"
    path = folder / (re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") + ".json")
    path.unlink(missing_ok=True)  # else, for a moment, an old one would stand beside the new plan
    entry = Entry(path, fingerprint)
    entry.kernels.unlink(missing_ok=True)
    with replaced_when_whole(entry.plan) as file:
        file.write(plan)
    return write_fingerprint(entry)


def write_fingerprint(entry: Entry) -> Entry:
    """Writes the entry's fingerprint over the one in the folder."""
    with replaced_when_whole(entry.path) as file:
        file.write(entry.fingerprint.model_dump_json(indent=2).encode() + b"\n")
    return entry


def remove(entry: Entry) -> None:
    """Takes an engine out of the folder; who has it open keeps it."""
    for path in (entry.path, entry.plan, entry.kernels):
        path.unlink(missing_ok=True)


def entries(folder: Path) -> tuple[list[Entry], list[str]]:
    """All engines of a folder, and what there is in the way of fingerprints that cannot be read: "NAME (why)"."""
    found, unreadable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Entry(path, _read_fingerprint(path)))
        except (OSError, ValueError) as error:
            unreadable.append(f"{path.name} ({error})")
    return found, unreadable


def _read_fingerprint(path: Path) -> Fingerprint:
    if not path.is_file() or path.stat().st_size > MAX_FINGERPRINT_BYTES:
        raise ValueError(f"expected a file of at most {MAX_FINGERPRINT_BYTES} bytes")
    try:
        return Fingerprint.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{where}: {problem['msg']}" if where else problem["msg"]) from error


def find(folder: Path, wanted: Wanted) -> Entry:
    """The smallest engine that holds the slices and fits in everything else.

    Raises:
        EngineError: there is none; the message says what the nearest one does not fit, and the command that mends it.
    """
    found, unreadable = entries(folder)
    unfit = {entry.path: mismatches(entry.fingerprint, wanted) for entry in found}
    fitting = [entry for entry in found if not unfit[entry.path]]
    if fitting:
        return min(fitting, key=lambda entry: (_area(entry), -entry.fingerprint.max_batch, entry.path))
    of_part = [entry for entry in found if entry.fingerprint.part == wanted.part]
    nearest = min(of_part, key=lambda entry: (len(unfit[entry.path]), -_area(entry)), default=None)
    reason = f"{nearest.path.name} {'; it '.join(unfit[nearest.path])}" if nearest else "there is none of this part"
    ignored = f"; ignored: {', '.join(unreadable)}" if unreadable else ""
    raise EngineError(
        f"no {wanted.part} engine in {folder} fits: {reason}{ignored}. Build one with: {command(folder, wanted)}"
    )


def sizes(folder: Path, wanted: Sequence[Wanted]) -> list[tuple[int, int]]:
    """(height, width) of slices for which each of `wanted` has an engine that fits, smallest area first."""
    found, _ = entries(folder)
    fitting = [
        {(e.fingerprint.height, e.fingerprint.width) for e in found if not mismatches(e.fingerprint, one)}
        for one in wanted
    ]
    return sorted(set.intersection(*fitting), key=lambda size: (size[0] * size[1], size))


def mismatches(has: Fingerprint, wanted: Wanted) -> list[str]:
    """What an engine does not fit, each as the rest of a sentence; none where it fits."""
    card, bundle = wanted.card, wanted.bundle.fingerprint
    problems = []
    if has.part != wanted.part:
        problems.append(f"is the {has.part}, and the {wanted.part} is wanted")
    if has.bundle != bundle:
        name = wanted.bundle.manifest.name
        problems.append(f"is of the bundle {has.model!r} {has.bundle[:8]}, and {name!r} {bundle[:8]} is wanted")
    if has.runtime != wanted.runtime:
        problems.append(f"is for the runtime {has.runtime}, and {wanted.runtime} is wanted")
    elif has.version != wanted.version:
        problems.append(f"was built by {has.runtime} {has.version}, and {wanted.version} is installed")
    if (has.precision, has.keep_fp32) != (wanted.precision, wanted.keep_fp32):
        ours, theirs = _precision(has.precision, has.keep_fp32), _precision(wanted.precision, wanted.keep_fp32)
        problems.append(f"has precision {ours}, and {theirs} is wanted")
    size = f"{wanted.height} x {wanted.width}"
    if has.height < wanted.height or has.width < wanted.width:
        problems.append(f"holds slices of at most {has.height} x {has.width} pixels, and {size} are wanted")
    elif max(has.height - wanted.height, has.width - wanted.width) >= MAX_PADDING:
        problems.append(f"is for slices of {has.height} x {has.width} pixels, too much padding for the {size} wanted")
    if card and (has.gpu not in (None, card.name) or card.compute_capability not in has.targets):
        built = has.gpu or "compute capability " + ", ".join(has.targets)
        problems.append(f"was built for {built}, and this GPU is {card.name} ({card.compute_capability})")
    return problems


def _precision(name: str, keep_fp32: tuple[str, ...]) -> str:
    return f"{name} with {', '.join(keep_fp32)} in fp32" if keep_fp32 else name


def command(folder: Path, wanted: Wanted) -> str:
    """The `sctrt build-engine` call that makes what is wanted.

    Where the volume's shape is not known, one whose slices have the wanted size. With less memory other sizes are
    built, and for another GPU than the first, other engines.
    """
    shape = wanted.shape or (wanted.height, wanted.height, wanted.width)
    words = ["sctrt", "build-engine"]
    if wanted.bundle.path != default_bundle():
        words.append(str(wanted.bundle.path))
    words += ["--runtime", wanted.runtime, "--precision", wanted.precision, "--shape", ",".join(map(str, shape))]
    if wanted.budget is not None:
        words += ["--vram-gb", f"{wanted.budget // 1_000_000 / 1000:g}"]
    if folder != engine_directory():
        words += ["--engine-dir", str(folder)]
    cards = gpus.present()
    if wanted.card is None or wanted.card not in cards[1:] or wanted.card == cards[0]:
        return shlex.join(words)
    if wanted.runtime == "tensorrt-rtx":
        return shlex.join([*words, "--compute-capability", wanted.card.compute_capability])
    return f"CUDA_VISIBLE_DEVICES={cards.index(wanted.card)} {shlex.join(words)}"


def _area(entry: Entry) -> int:
    return entry.fingerprint.height * entry.fingerprint.width
