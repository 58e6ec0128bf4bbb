"""HU and mu errors in one mask, tissue by tissue, and the overlap of tissues."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..attenuation import CONVENTIONS, DEFAULT_KVP, hu_to_mu
from ..units import BONE_ABOVE, FAT_HU, LUNG_HU, SOFT_HU

PSNR_RANGES = (4000.0, 3000.0)  # HU; a PSNR without its range means nothing
BONE_THRESHOLDS = (150.0, 200.0, 300.0)  # HU
LUNG_BELOW = -400.0  # HU
# Of the true CT [HU]; between them lie skin, edges and partial volumes, which belong to none.
TISSUES = {
    "air": (-np.inf, LUNG_HU[0]),
    "lung": LUNG_HU,
    "fat": FAT_HU,
    "soft": SOFT_HU,
    "bone": (BONE_ABOVE, np.inf),
}


class TissueErrors(BaseModel):
    """Where the true CT has one tissue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    mae_hu: float
    me_hu: float


class MuErrors(BaseModel):
    """Of linear attenuation at 511 keV [1/cm], by one convention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mae_per_cm: float
    me_per_cm: float


class RegionErrors(BaseModel):
    """In one mask; errors are synthetic minus true. None where a tissue is absent, or two volumes are equal (PSNR)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    mae_hu: float
    me_hu: float
    rmse_hu: float
    psnr_db_range_4000: float | None
    psnr_db_range_3000: float | None
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    tissues: dict[str, TissueErrors | None]
    mu: dict[str, MuErrors]  # by convention


def region_errors(
    sct: NDArray[np.float32],  # [n] HU, the mask's voxels
    ct: NDArray[np.float32],  # [n] HU
    similarity: tuple[float, float, int],  # SSIM, MS-SSIM, scales
    kvp: int = DEFAULT_KVP,
) -> RegionErrors:
    """All errors of the voxels of one mask, which is not empty."""
    truth = ct.astype(np.float64)
    error = sct - truth
    rmse = float(np.sqrt((error**2).mean()))
    psnr = [float(20 * np.log10(one / rmse)) if rmse > 0 else None for one in PSNR_RANGES]
    return RegionErrors(
        voxels=ct.size,
        mae_hu=float(np.abs(error).mean()),
        me_hu=float(error.mean()),
        rmse_hu=rmse,
        psnr_db_range_4000=psnr[0],
        psnr_db_range_3000=psnr[1],
        ssim=similarity[0],
        ms_ssim=similarity[1],
        ms_ssim_scales=similarity[2],
        tissues={name: _tissue(error, tissue_mask(truth, name)) for name in TISSUES},
        mu={name: mu_errors(sct, ct, convention, voltage) for name, convention, voltage in conventions(kvp)},
    )


def conventions(kvp: int) -> list[tuple[str, str, int | None]]:
    """(name in the report, convention, kVp) of those that have a line for this tube voltage or for all."""
    found = []
    for name, lines in CONVENTIONS.items():
        if None in lines:
            found.append((name, name, None))
        elif kvp in lines:
            found.append((f"{name}_{kvp}kvp", name, kvp))
    return found


def mu_errors(sct: NDArray[np.float32], ct: NDArray[np.float32], convention: str, kvp: int | None) -> MuErrors:
    """Of the voxels [n] of a mask, HU."""
    error = hu_to_mu(sct.astype(np.float64), kvp, convention) - hu_to_mu(ct.astype(np.float64), kvp, convention)
    return MuErrors(mae_per_cm=float(np.abs(error).mean()), me_per_cm=float(error.mean()))


def tissue_mask(ct: NDArray, name: str) -> NDArray[np.bool_]:
    """Voxels of a true CT [HU] that are one of `TISSUES`; those between two limits include both."""
    low, high = TISSUES[name]
    if name == "air":
        return ct < high
    return ct > low if name == "bone" else (ct >= low) & (ct <= high)


def overlaps(
    sct: NDArray[np.float32], ct: NDArray[np.float32], body: NDArray[np.bool_], dilated: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Dice of bone by threshold, in the dilated mask, and of lung, in the body; None where neither CT has any.

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU.
        body: [z, y, x].
        dilated: [z, y, x].
    """
    found = {f"bone_above_{t:g}": dice(sct[dilated] > t, ct[dilated] > t) for t in BONE_THRESHOLDS}
    return {**found, f"lung_below_{LUNG_BELOW:g}": dice(sct[body] < LUNG_BELOW, ct[body] < LUNG_BELOW)}


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Overlap of two masks of one shape; None where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else None


def _tissue(error: NDArray[np.float64], where: NDArray[np.bool_]) -> TissueErrors | None:
    if not where.any():
        return None
    inside = error[where]
    return TissueErrors(voxels=inside.size, mae_hu=float(np.abs(inside).mean()), me_hu=float(inside.mean()))
