"""The model bundle: a folder NAME.sctrt/ with a manifest, networks, codebook and weights, each under its hash."""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .domain import Domain
from .errors import BundleError
from .files import replaced_when_whole

FORMAT_VERSION = 1
DEFAULT_MODEL = "phantom-small"
MANIFEST = "manifest.json"
ENSEMBLE = "ensemble.json"  # in its place where the folder holds several models: see ensemble_bundle.py
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
CODEBOOK = "codebook.npy"
WEIGHTS = "weights.safetensors"


class Strict(BaseModel):
    """What a manifest is made of: no unknown fields, no NaN, no change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Signed(Strict):
    """The manifest of a folder; it has the fields `format_version` and `digest`, SHA-256 of all others."""

    def own_digest(self) -> str:
        """What `digest` has to be."""
        return hashlib.sha256(self.model_copy(update={"digest": ""}).model_dump_json().encode()).hexdigest()


SignedManifest = TypeVar("SignedManifest", bound=Signed)


class Architecture(Strict):
    """Widths of the vector-quantised autoencoder; the defaults are LDM's `vq-f4`, the limits far beyond any."""

    channels: int = Field(default=128, ge=1, le=4096)
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(default=(1, 2, 4), min_length=1, max_length=8)
    blocks: int = Field(default=2, ge=1, le=64)
    latent_channels: int = Field(default=3, ge=1, le=1024)
    codes: int = Field(default=8192, ge=1, le=1 << 24)
    code_dim: int = Field(default=3, ge=1, le=64)
    groups: int = Field(default=32, ge=1, le=4096)
    input_channels: int = Field(default=3, ge=1, le=1024)
    output_channels: int = Field(default=3, ge=1, le=1024)
    # Channels of a small network between encoder and codebook; None where there is none, and then left out of JSON, so
    # that what was written before there were adapters keeps its digest.
    adapter_channels: int | None = Field(default=None, ge=1, le=4096, exclude_if=lambda channels: channels is None)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for channels in (self.channels, self.adapter_channels or self.groups):
            if channels % self.groups:
                raise ValueError(f"expected groups that divide the {channels} channels, got {self.groups}")
        return self

    @property
    def factor(self) -> int:
        """f: how many pixels of a side share one latent."""
        return 2 ** (len(self.multipliers) - 1)


class Normaliser(Strict):
    """How a PET volume becomes the network's input; the same in training and inference.

    The PET is divided by the median of its Otsu body, then compressed by 2 r^p / (1 + r^p) - 1.
    `scales` lists one smoothing level a channel: level k is the mean over 2^k voxels a side. With `position`
    two channels follow: how far a voxel lies from the body's middle in x and in y, in units of 250 mm. A single
    scale without position is one grey channel.
    """

    kind: Literal["otsu-median"] = "otsu-median"
    exponent: float = Field(default=2.0, gt=0, le=100)
    scales: tuple[Annotated[int, Field(ge=0, le=16)], ...] = Field(default=(0,), min_length=1)
    position: bool = False

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return len(self.scales) + 2 * self.position


Hu = Annotated[float, Field(ge=-100_000, le=100_000)]


class Manifest(Signed):
    """What `manifest.json` holds."""

    format_version: int
    name: str
    architecture: Architecture
    normaliser: Normaliser
    spacing_mm: float = Field(ge=0.3, le=20)  # of a PET's voxels; memory grows with its third power
    hu_range: tuple[Hu, Hu]  # HU at network -1 and 1
    # Network units; slices are padded with it at the end to multiples of the factor.
    padding: float = Field(ge=-1000, le=1000)
    licence: str
    intended_use: str
    training: dict[str, Any]  # provenance: cohort, domain, steps, seed, command, commit, held-out numbers
    files: dict[str, str]  # name -> SHA-256
    digest: str = ""  # SHA-256 of all the fields above

    @property
    def domain(self) -> Domain | None:
        """What PETs the network was trained on; None where the bundle does not say."""
        content = self.training.get("domain")
        return None if content is None else Domain.model_validate(content)

    @model_validator(mode="after")
    def _check_domain(self) -> Self:
        try:
            _ = self.domain
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, ("training", "domain", *problem["loc"])))
            raise ValueError(f"{where}: {problem['msg']}") from error
        return self

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        inputs, outputs = self.architecture.input_channels, self.architecture.output_channels
        if self.normaliser.channels != inputs:
            raise ValueError(f"expected input_channels that the normaliser makes, got {inputs}, {self.normaliser}")
        if outputs != 1:
            raise ValueError(f"expected output_channels folded to 1, got {outputs}")
        if self.hu_range[0] >= self.hu_range[1]:
            raise ValueError(f"expected hu_range from low to high, got {self.hu_range}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A checked model bundle on disk."""

    path: Path
    manifest: Manifest

    @property
    def encoder_onnx(self) -> Path:
        return self.path / ENCODER

    @property
    def decoder_onnx(self) -> Path:
        return self.path / DECODER

    def onnx(self, part: Literal["encoder", "decoder"]) -> Path:
        """The network of one half."""
        return self.encoder_onnx if part == "encoder" else self.decoder_onnx

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def codebook(self) -> NDArray[np.float32]:
        """[codes, code_dim].

        Raises:
            BundleError: not what the manifest announces.
        """
        path = self.path / CODEBOOK
        try:
            with path.open("rb") as file:
                codes = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, MemoryError) as error:
            raise BundleError(f"the codebook {path} cannot be read: {error}; export the bundle again") from error
        expected = (self.manifest.architecture.codes, self.manifest.architecture.code_dim)
        if codes.shape != expected or codes.dtype != np.float32 or not np.isfinite(codes).all():
            raise BundleError(
                f"expected a codebook float32 {expected} of finite numbers, got {codes.dtype} {codes.shape} in {path}; "
                "export the bundle again"
            )
        return codes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which holds the hash of every other file."""
        return sha256(self.path / MANIFEST)


def default_bundle() -> Path:
    """Where the model that ships with sctrt lies."""
    return Path(__file__).parent / "models" / f"{DEFAULT_MODEL}.sctrt"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str | Path | None = None) -> Bundle:
    """Opens a bundle and checks every file against its hash.

    Args:
        path: the folder NAME.sctrt; None means the model that ships with sctrt.

    Raises:
        BundleError: missing, damaged, incomplete, of a newer format, or an ensemble of models.
    """
    folder = Path(path) if path is not None else default_bundle()
    manifest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise BundleError(f"the model bundle {folder} lacks its file {name!r}; copy or export the bundle again")
        if sha256(file) != expected:
            raise BundleError(
                f"{file} has changed since the bundle was made: its SHA-256 is not the one in {MANIFEST}; "
                "copy or export the bundle again"
            )
    missing = {ENCODER, DECODER, CODEBOOK, WEIGHTS} - manifest.files.keys()
    if missing:
        raise BundleError(
            f"the manifest of {folder} does not list {', '.join(sorted(missing))}; export the bundle again"
        )
    for name in (ENCODER, DECODER):
        if _has_external_data(folder / name):
            raise BundleError(
                f"{folder / name} takes weights from another file, which no hash of the bundle covers; export it again"
            )
    return Bundle(folder, manifest)


def _has_external_data(file: Path) -> bool:
    """Whether an ONNX file names files that tensors lie in: an entry whose key is "location", in protobuf's bytes."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"\x0a\x08location") >= 0


def is_ensemble(folder: Path) -> bool:
    """Whether a folder holds an ensemble of models rather than one; nothing is checked."""
    return (folder / ENSEMBLE).is_file()


def _read_manifest(folder: Path) -> Manifest:
    if is_ensemble(folder):
        raise BundleError(
            f"expected one model, got {folder}, an ensemble of several; name one of the folders in it, such as "
            f"{folder / 'fold-0.sctrt'}, or run all of them with sctrt synthesize --model {folder} or sctrt.Ensemble"
        )
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"expected a model bundle (a folder NAME.sctrt with {MANIFEST}), found none at {folder}")
    return read_signed(file, Manifest, "a model bundle")


def read_signed(file: Path, kind: type[SignedManifest], what: str) -> SignedManifest:
    """Reads and checks a manifest that is there; `what` says in errors what it ought to be of.

    Raises:
        BundleError: no manifest, not valid, of a newer format, or changed since it was written.
    """
    try:
        content = json.loads(file.read_bytes())
        version = content["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{file} is not the manifest of {what}: {error!r}; copy or export the bundle again"
        ) from error
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"{file.parent} has bundle format {version!r}, and this sctrt reads formats up to {FORMAT_VERSION}; "
            "upgrade sctrt, or export the model with this version"
        )
    try:
        manifest = kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BundleError(
            f"{file} is not a valid manifest: {where}: {problem['msg']}; copy or export the bundle again"
        ) from error
    if content.get("digest") != manifest.own_digest():
        raise BundleError(
            f"{file} has changed since the bundle was made: its digest does not fit; copy or export the bundle again"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` with the hashes of the bundle's other files as they are on disk now."""
    files = {name: sha256(folder / name) for name in (ENCODER, DECODER, CODEBOOK, WEIGHTS)}
    listed = Manifest.model_validate_json(manifest.model_copy(update={"files": files}).model_dump_json())
    text = listed.model_copy(update={"digest": listed.own_digest()}).model_dump_json(indent=2)
    with replaced_when_whole(folder / MANIFEST) as file:
        file.write((text + "\n").encode())
