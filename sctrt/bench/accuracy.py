"""Is a CT what plain PyTorch in fp32 makes? Slices and CTs that several ways left behind, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..planes import PLANES
from ..units import HU_AIR
from .report import Accuracy

ALLOWED_HU = {"fp32": 0.1}  # mean |difference|
ALLOWED_REDUCED_HU = 2.0  # of any lower precision
ORACLE = "PyTorch, fp32"


def judged(accuracy: Accuracy, precision: str) -> Accuracy:
    """With a verdict: by the CT if it was compared, else by slices before fusion, which differ more."""
    allowed = ALLOWED_HU.get(precision, ALLOWED_REDUCED_HU)
    found = accuracy.mean_hu if accuracy.ct_mean_hu is None else accuracy.ct_mean_hu
    within = None if found is None else found <= allowed
    return accuracy.model_copy(update={"allowed": f"mean {allowed:g} HU", "within": within})


def ct_file(folder: Path, name: str) -> Path:
    """Where a way leaves its CT [z, y, x] HU, if it made all of it."""
    return folder / f"{_plain(name)}-ct.npy"


def slices_file(folder: Path, name: str) -> Path:
    """Where a way leaves some slices, as `save_slices` writes them."""
    return folder / f"{_plain(name)}-slices.npz"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def save_slices(
    folder: Path, name: str, hu: list[NDArray[np.float32]], codes: list[NDArray[np.int64]] | None = None
) -> None:
    """Some slices of each plane.

    Args:
        hu: by plane, [n, height, width] HU in the body's box, before fusion.
        codes: by plane, [n, h, w] of their latents; None where other slices were seen.
    """
    arrays: dict[str, Any] = {f"{plane}-hu": one for plane, one in zip(PLANES, hu, strict=True)}
    if codes is not None:
        arrays |= {f"{plane}-codes": one for plane, one in zip(PLANES, codes, strict=True)}
    np.savez(slices_file(folder, name), **arrays)


def against_reference(
    folder: Path, name: str, reference: str, ct_reference: str, known: Accuracy | None
) -> Accuracy | None:
    """What is known of a way's accuracy, and what its slices and CT beside the references' say; None if nothing is."""
    found = known.model_copy() if known else Accuracy(against=ORACLE)
    mine, theirs = (slices_file(folder, of) for of in (name, reference))
    if mine.exists() and theirs.exists():
        found = found.model_copy(update=_slices(mine, theirs))
    mine, theirs = (ct_file(folder, of) for of in (name, ct_reference))
    if name != ct_reference and mine.exists() and theirs.exists():
        far = {"ct_mean_hu": mean_difference(np.load(mine), np.load(theirs)), "ct_against": ct_reference}
        found = found.model_copy(update=far)
    return None if found.mean_hu is None and found.ct_mean_hu is None else found


def mean_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean |one - other| [HU] in the body's box: where either is not the air that was filled in around it."""
    box = (one != HU_AIR) | (other != HU_AIR)
    return float(np.abs(one[box].astype(np.float64) - other[box]).mean()) if box.any() else 0.0


def _slices(mine: Path, theirs: Path) -> dict[str, float | int]:
    with np.load(mine) as one, np.load(theirs) as other:
        pairs = [(one[f"{plane}-hu"], other[f"{plane}-hu"]) for plane in PLANES]
        hu = np.concatenate([np.abs(a.astype(np.float64) - b).ravel() for a, b in pairs])
        found: dict[str, float | int] = {
            "mean_hu": float(hu.mean()),
            "p999_hu": float(np.percentile(hu, 99.9)),
            "max_hu": float(hu.max()),
        }
        names = [f"{plane}-codes" for plane in PLANES]
        if all(name in one and name in other for name in names):
            codes = sum(one[name].size for name in names)
            flipped = sum(int((one[name] != other[name]).sum()) for name in names)
            found |= {"codes": codes, "flipped_share": flipped / codes}
        return found
