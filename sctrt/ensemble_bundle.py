"""The bundle of an ensemble: a folder NAME.sctrt/ with a manifest and one whole model bundle a fold."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from . import bundle as bundles
from .bundle import ENSEMBLE, Bundle, Signed, Strict
from .errors import BundleError
from .files import folder_replaced_when_whole

MIN_MEMBERS = 2


class Member(Strict):
    """One fold's model, as the ensemble's manifest names it."""

    name: str  # of its folder
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")  # of its bundle

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.sctrt", name):  # a folder elsewhere is never opened
            raise ValueError(f"expected a folder in the ensemble's own, such as fold-0.sctrt, got {name!r}")
        return name


class EnsembleManifest(Signed):
    """What `ensemble.json` holds."""

    format_version: int
    name: str
    members: tuple[Member, ...] = Field(min_length=MIN_MEMBERS)
    licence: str
    intended_use: str
    digest: str = ""  # SHA-256 of all the fields above

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [member.name for member in self.members]
        if len({name.lower() for name in names}) < len(names):  # some file systems hold them to be equal
            raise ValueError(f"expected members of different names, got {', '.join(names)}")
        return self


@dataclass(frozen=True)
class EnsembleBundle:
    """A checked bundle of an ensemble on disk."""

    path: Path
    manifest: EnsembleManifest
    members: tuple[Bundle, ...]  # in the manifest's order

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds the fingerprint of every member."""
        return bundles.sha256(self.path / ENSEMBLE)


def load(path: str | Path) -> EnsembleBundle:
    """Opens an ensemble and checks every file of every member against its hash.

    Args:
        path: the folder NAME.sctrt.

    Raises:
        BundleError: missing, damaged, incomplete, of a newer format, one model alone, or of members that do not fit.
    """
    folder = Path(path)
    if not bundles.is_ensemble(folder):
        raise BundleError(
            f"expected an ensemble (a folder NAME.sctrt with {ENSEMBLE}), found none at {folder}; one model alone is "
            "run by sctrt.Synthesizer, and sctrt ensemble FOLD... -o NAME.sctrt makes an ensemble of several"
        )
    manifest = bundles.read_signed(folder / ENSEMBLE, EnsembleManifest, "an ensemble")
    members = tuple(_load_member(folder, member) for member in manifest.members)
    _check_alike(members)
    return EnsembleBundle(folder, manifest, members)


def _load_member(folder: Path, member: Member) -> Bundle:
    path = folder / member.name
    if not path.is_dir():
        raise BundleError(f"the ensemble {folder} lacks its member {member.name}; copy or make the ensemble again")
    bundle = bundles.load(path)
    if bundle.fingerprint != member.fingerprint:
        raise BundleError(
            f"{path} is another model than when the ensemble was made: expected the fingerprint {member.fingerprint}, "
            f"got {bundle.fingerprint}; copy or make the ensemble again"
        )
    return bundle


def _check_alike(members: Sequence[Bundle]) -> None:
    """Refuses one model given twice, which would count twice and hide spread, and models of different volumes."""
    for one, other in itertools.combinations(members, 2):
        if one.fingerprint == other.fingerprint:
            raise BundleError(
                f"expected different models, got the same in {one.path} and {other.path}; name each fold once"
            )
        for what, ours, theirs in (
            ("voxel size [mm]", one.manifest.spacing_mm, other.manifest.spacing_mm),
            ("HU range", one.manifest.hu_range, other.manifest.hu_range),
        ):
            if ours != theirs:
                raise BundleError(
                    f"expected models of one {what}, got {ours} in {one.path} and {theirs} in {other.path}; "
                    "train all folds by one recipe"
                )


def write_ensemble(members: Sequence[Path], path: str | Path) -> EnsembleBundle:
    """Writes NAME.sctrt whole or not at all, replacing an older ensemble; the members are copied into it.

    Args:
        members: bundle folders, one a fold, in this order fold-0.sctrt, fold-1.sctrt, ...
        path: ends in .sctrt.

    Returns:
        The ensemble, read back and checked.

    Raises:
        BundleError: fewer than two members, one that is no whole bundle, members that do not fit together, or a path
            that does not end in .sctrt or is something else than an ensemble.
    """
    path = Path(path)
    if path.suffix != ".sctrt":
        raise BundleError(f"expected a bundle name that ends in .sctrt, got {path}")
    if path.exists() and not bundles.is_ensemble(path):
        raise BundleError(f"{path} is no ensemble, so it is not replaced; remove it or name another")
    if len(members) < MIN_MEMBERS:
        raise BundleError(f"expected {MIN_MEMBERS} models or more, one a fold, got {len(members)}; name all folds")
    folds = [bundles.load(member) for member in members]
    _check_alike(folds)
    listed = tuple(Member(name=f"fold-{i}.sctrt", fingerprint=fold.fingerprint) for i, fold in enumerate(folds))
    manifest = EnsembleManifest(
        format_version=bundles.FORMAT_VERSION,
        name=path.stem,
        members=listed,
        licence=_joined("; ", (fold.manifest.licence for fold in folds)),
        intended_use=_joined(" ", (fold.manifest.intended_use for fold in folds)),
    )
    signed = manifest.model_copy(update={"digest": manifest.own_digest()})
    with folder_replaced_when_whole(path) as folder:
        for fold, member in zip(folds, listed, strict=True):
            _copy(fold, folder / member.name)
        (folder / ENSEMBLE).write_text(signed.model_dump_json(indent=2) + "\n")
    return load(path)


def _joined(separator: str, texts: Iterable[str]) -> str:
    return separator.join(dict.fromkeys(texts))


def _copy(bundle: Bundle, folder: Path) -> None:
    """What belongs to a bundle, and nothing that happens to lie beside it."""
    folder.mkdir()
    for name in (bundles.MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, folder / name)
