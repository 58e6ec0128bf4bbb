"""A folder of photographs -> small uint8 arrays in a cache -> crops of them; it knows images, and no networks.

Every photograph is decoded once, reduced to 512 pixels on its shorter side and kept as an array under the hash of its
file. A crop reads of it what it needs, by memory map.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..bundle import sha256
from ..errors import UnwritableError, VolumeError
from ..files import replaced_when_whole

REDUCED_SIDE = 512  # pixels of the shorter side; smaller photographs stay as they are
MAX_PIXELS = 100_000_000  # more would take 300 MB and more when decompressed
MIN_ENTROPY = 4.0  # bits of the grey levels; below lie flat drawings and icons
VALIDATION_SHARE = 0.05
MAX_VALIDATION = 128  # photographs that a validation looks at
THUMBNAIL = 16  # pixels a side
COPY_BELOW = 4.0  # mean difference of two thumbnails, of 255: nearer ones are one photograph in two sizes
WHITE = (255, 255, 255, 255)
SIXTEEN_BIT = 257  # 65535 / 255
NO_IMAGE = "is no image that Pillow reads"
SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class Photograph:
    """One photograph in the cache."""

    name: str  # of its file, below the folder
    sha256: str  # of its file
    array: Path  # uint8 [H, W, 3]

    @property
    def held_out(self) -> bool:
        """Whether it is kept for validation: its content decides, so that no list has to be kept."""
        return int(self.sha256[:8], 16) < VALIDATION_SHARE * 2**32

    def pixels(self) -> NDArray[np.uint8]:
        """[H, W, 3] by memory map."""
        return np.load(self.array, mmap_mode="r")


@dataclass(frozen=True)
class Photographs:
    """What a folder holds."""

    training: list[Photograph]
    validation: list[Photograph]
    left_out: dict[str, str]  # name -> why


def prepare(folder: Path, cache: Path, smallest: int, say: Callable[[str], None] = print) -> Photographs:
    """Reads a folder and all below it.

    Args:
        folder: of photographs in any format that Pillow reads.
        cache: receives an array for each; what lies there already is not made again.
        smallest: pixels that the shorter side must have.
        say: called with a line now and then.

    Raises:
        VolumeError: fewer than two photographs are left.
    """
    if not folder.is_dir():
        raise VolumeError(f"expected a folder of photographs, got {folder}; give one that holds jpg, png or webp files")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found: dict[str, Photograph] = {}
    left_out: dict[str, str] = {}
    said = time.monotonic()
    for number, path in enumerate(files, 1):
        name = str(path.relative_to(folder))
        try:
            photograph, pixels = _read(path, name, cache, smallest)
        except UnidentifiedImageError:
            left_out[name] = NO_IMAGE
        except Exception as error:  # Pillow's decoders share no class of errors
            left_out[name] = " ".join(str(error).split()) or type(error).__name__
        else:
            if pixels is not None:
                _keep(photograph, pixels)
            first = found.setdefault(photograph.sha256, photograph)
            if first.name != name:
                left_out[name] = f"is the same as {first.name}"
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{number} of {len(files)} files read, {len(found)} of them photographs")
    kept, copies = without_copies(list(found.values()))
    return _split(folder, kept, {**left_out, **copies})


def _split(folder: Path, photographs: list[Photograph], left_out: dict[str, str]) -> Photographs:
    """Training and validation, each in the order of the hashes; at least one to validate on."""
    if len(photographs) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise VolumeError(
            f"expected at least two photographs in {folder}, one to train on and one to validate on, found "
            f"{len(photographs)} and left out {len(left_out)} files ({reasons or 'the folder is empty'}); "
            "give a folder of jpg, png or webp files"
        )
    ordered = sorted(photographs, key=lambda one: one.sha256)
    held_out = [one for one in ordered if one.held_out] or ordered[:1]
    training = [one for one in ordered if one not in held_out] or held_out[1:]
    return Photographs(training, [one for one in held_out if one not in training], left_out)


def _read(path: Path, name: str, cache: Path, smallest: int) -> tuple[Photograph, NDArray[np.uint8] | None]:
    """The photograph of a file, and its pixels [H, W, 3], reduced now, unless they are in the cache.

    Raises:
        ValueError: it is too small, too large or flat.
        Exception: whatever a decoder raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are looked at here
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"expected at most {MAX_PIXELS:,} pixels, got {width} x {height}")
            if min(width, height) < smallest:
                raise ValueError(f"expected at least {smallest} pixels a side, got {width} x {height}")
            photograph = Photograph(name, digest := sha256(path), cache / f"{digest}.npy")
            pixels = None if _is_whole(photograph) else reduced(image)
    bits = entropy(photograph.pixels() if pixels is None else pixels)
    if bits < MIN_ENTROPY:
        raise ValueError(f"expected a photograph of at least {MIN_ENTROPY} bits of grey levels, got {bits:.1f}: flat")
    return photograph, pixels


def _keep(photograph: Photograph, pixels: NDArray[np.uint8]) -> None:
    """
    Raises:
        UnwritableError: the cache cannot be written; a photograph that is left out for that would be missed by no one.
    """
    try:
        photograph.array.parent.mkdir(parents=True, exist_ok=True)
        with replaced_when_whole(photograph.array) as file:
            np.save(file, pixels)
    except OSError as error:
        raise UnwritableError(photograph.array, error) from error


def _is_whole(photograph: Photograph) -> bool:
    try:
        pixels = photograph.pixels()
    except (OSError, ValueError):
        return False
    return pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


def reduced(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3], upright, on white where it is transparent, at most `REDUCED_SIDE` on the shorter side."""
    scale = REDUCED_SIDE / min(image.size)
    if scale < 1:  # a JPEG is decoded at an eighth to a half of its size where that is enough
        image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
    rgb = _as_rgb(ImageOps.exif_transpose(image))
    scale = REDUCED_SIDE / min(rgb.size)
    if scale < 1:
        size = (round(rgb.width * scale), round(rgb.height * scale))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(rgb)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        grey = np.clip(np.asarray(image).astype(np.int64) // SIXTEEN_BIT, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("expected whole grey levels, got floating point")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB")


def entropy(pixels: NDArray[np.uint8]) -> float:
    """Bits of the grey levels of [H, W, 3]."""
    levels = np.bincount((pixels.astype(np.uint16).sum(axis=2) // 3).ravel(), minlength=256)
    shares = levels[levels > 0] / levels.sum()
    return float((shares * np.log2(1 / shares)).sum())


def without_copies(photographs: list[Photograph]) -> tuple[list[Photograph], dict[str, str]]:
    """Leaves out what is a photograph in another size, which else could be trained and validated on.

    Returns:
        The largest one of each, and name -> why of the others.
    """
    sized = [(one, one.pixels()) for one in photographs]
    sized.sort(key=lambda pair: (-pair[1].size, pair[0].sha256))
    thumbnails = np.empty((len(sized), THUMBNAIL * THUMBNAIL * 3), np.int16)
    kept: list[Photograph] = []
    copies = {}
    for one, pixels in sized:
        small = Image.fromarray(np.ascontiguousarray(pixels)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnail = np.asarray(small, np.int16).ravel()
        distance = np.abs(thumbnails[: len(kept)] - thumbnail).mean(axis=1)
        if kept and distance.min() < COPY_BELOW:
            copies[one.name] = f"shows the same as {kept[int(distance.argmin())].name}"
        else:
            thumbnails[len(kept)] = thumbnail
            kept.append(one)
    return kept, copies


def as_network(crop: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float() / 127.5 - 1


def as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """[N, 3, H, W] in [-1, 1], clipped -> uint8 [N, H, W, 3]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def crop_of(pixels: NDArray[np.uint8], y: int, x: int, side: int, size: int) -> NDArray[np.uint8]:
    """The square of `side` pixels from (y, x) on, resized to `size` pixels."""
    square = Image.fromarray(np.ascontiguousarray(pixels[y : y + side, x : x + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


class RandomCrops(IterableDataset):
    """Endless micro-batches [N, 3, crop, crop]; the i-th is a function of seed and i alone.

    Args:
        photographs: to draw from.
        crop: pixels a side.
        batch: crops of a micro-batch.
        seed: of all draws.
        first: micro-batch to begin with.
    """

    def __init__(self, photographs: list[Photograph], crop: int, batch: int, seed: int, first: int = 0) -> None:
        self.photographs, self.crop, self.batch, self.seed, self.first = photographs, crop, batch, seed, first

    def __iter__(self) -> Iterator[Tensor]:
        return (self.micro_batch(i) for i in count(self.first))

    def micro_batch(self, i: int) -> Tensor:
        """[N, 3, crop, crop] in [-1, 1]."""
        rng = np.random.default_rng((self.seed, i))
        chosen = rng.integers(len(self.photographs), size=self.batch)
        return torch.stack([as_network(self._crop(self.photographs[k].pixels(), rng)) for k in chosen])

    def _crop(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """A square of half the shorter side to all of it, none that would have to be enlarged; mirrored or not."""
        height, width, _ = pixels.shape
        shorter = min(height, width)
        side = int(rng.integers(min(shorter, max(self.crop, shorter // 2)), shorter + 1))
        y, x = (int(rng.integers(n - side + 1)) for n in (height, width))
        crop = crop_of(pixels, y, x, side, self.crop)
        return crop[:, ::-1] if rng.random() < 0.5 else crop


class CentreCrops(Dataset):
    """[3, crop, crop] of the middle of each photograph, for validation."""

    def __init__(self, photographs: list[Photograph], crop: int) -> None:
        self.photographs, self.crop = photographs[:MAX_VALIDATION], crop

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, i: int) -> Tensor:
        pixels = self.photographs[i].pixels()
        height, width, _ = pixels.shape
        side = min(height, width)
        return as_network(crop_of(pixels, (height - side) // 2, (width - side) // 2, side, self.crop))


def save_preview(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """PNG: a row of originals [N, 3, H, W] in [-1, 1] over a row of reconstructions."""
    rows = [np.concatenate(list(as_pixels(images)), axis=1) for images in (originals, reconstructions)]
    with replaced_when_whole(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, format="PNG")
