"""How far a synthetic CT lies from the true one: in the body, around it, and tissue by tissue."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from ..attenuation import hu_to_mu
from ..errors import VolumeError
from ..units import BONE_ABOVE, FAT_HU, LUNG_HU, SOFT_HU
from ..volume import Volume
from .regions import dice

BODY_ABOVE = -300.0  # HU; skin lies above, clothes and bedding below
# Tissue that a synthetic CT invents outside the body is invisible in the body mask, yet attenuates: a contour 4 mm too
# wide has MAE 0 in the body and raises soft-tissue SUV by 6 %. So the error is also averaged in a wider mask.
DILATION_MM = 12.0
PSNR_RANGE = 4000.0  # HU; that of SynthRAD2025. A PSNR without its range means nothing
MAX_GRID_DRIFT_MM = 0.01  # at the far corner; float32 headers round by less


class Metrics(BaseModel):
    """Errors of a synthetic CT; None where there is no such tissue, so nothing to average.

    Tissues are those of the true CT, inside its body mask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mae_body: float  # HU
    me_body: float  # HU, synthetic minus true
    rmse_body: float  # HU
    psnr_body_range_4000: float | None  # dB; None where the two are equal
    mae_dilated_12mm: float  # HU, in the body mask and 12 mm around it
    mae_lung: float | None  # HU, where the true CT is -950 to -500
    mae_fat: float | None  # HU, -150 to -30
    mae_soft: float | None  # HU, -30 to 150
    mae_bone: float | None  # HU, above 200
    bone_dice_200: float | None  # overlap of the voxels above 200 HU
    mu_mae_body: float  # 1/cm at 511 keV


def compare(sct: Volume, ct: Volume, *, bone_dice: bool = True) -> Metrics:
    """Measures a synthetic CT against the true one.

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU, on the same grid.
        bone_dice: False leaves out the Dice of bone, for CTs with contrast medium: a filled heart exceeds 200 HU.

    Raises:
        VolumeError: the grids differ, a volume is not in HU or not finite, or the true CT holds no body.
    """
    _check_pair(sct, ct)
    body = body_mask(ct)
    if not body.any():
        raise VolumeError(
            f"expected a body in the true CT, got no voxel above {BODY_ABOVE:g} HU; check its rescale slope"
        )
    truth = ct.array.astype(np.float64)
    error = sct.array - truth
    mu_error = hu_to_mu(sct.array[body]) - hu_to_mu(ct.array[body])
    rmse = float(np.sqrt(np.mean(error[body] ** 2)))
    return Metrics(
        mae_body=float(np.abs(error[body]).mean()),
        me_body=float(error[body].mean()),
        rmse_body=rmse,
        psnr_body_range_4000=float(20 * np.log10(PSNR_RANGE / rmse)) if rmse > 0 else None,
        mae_dilated_12mm=float(np.abs(error[dilate(body, ct.spacing, DILATION_MM)]).mean()),
        mae_lung=_mean_abs(error, body & _between(truth, LUNG_HU)),
        mae_fat=_mean_abs(error, body & _between(truth, FAT_HU)),
        mae_soft=_mean_abs(error, body & _between(truth, SOFT_HU)),
        mae_bone=_mean_abs(error, body & (truth > BONE_ABOVE)),
        bone_dice_200=dice(sct.array[body] > BONE_ABOVE, truth[body] > BONE_ABOVE) if bone_dice else None,
        mu_mae_body=float(np.abs(mu_error).mean(dtype=np.float64)),
    )


def body_mask(ct: Volume) -> NDArray[np.bool_]:
    """The largest object above -300 HU, with the holes of each axial slice filled (lungs, gas).

    Args:
        ct: [z, y, x] HU, in any orientation.

    Returns:
        [z, y, x], all False where nothing is above -300 HU.
    """
    objects, count = cast(tuple[NDArray[np.int32], int], ndimage.label(ct.array > BODY_ABOVE))
    if count == 0:
        return np.zeros(ct.shape, dtype=bool)
    body = objects == 1 + np.argmax(np.bincount(objects.ravel())[1:])
    slices = np.moveaxis(body, _axial_axis(ct), 0)  # a view: filling it fills the body
    for one in slices:
        one[...] = ndimage.binary_fill_holes(one)
    return body


def dilate(mask: NDArray[np.bool_], spacing: tuple[float, float, float], by_mm: float) -> NDArray[np.bool_]:
    """The voxels [z, y, x] within `by_mm` of a mask that is not empty; spacing (z, y, x) [mm]."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing)) <= by_mm


def _axial_axis(volume: Volume) -> int:
    """The axis of [z, y, x] that runs most nearly along the body."""
    direction = volume.affine[2, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    return 2 - int(np.argmax(np.abs(direction)))


def _between(values: NDArray, limits: tuple[float, float]) -> NDArray[np.bool_]:
    return (values >= limits[0]) & (values <= limits[1])


def _mean_abs(error: NDArray[np.float64], where: NDArray[np.bool_]) -> float | None:
    return float(np.abs(error[where]).mean()) if where.any() else None


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether every voxel of two volumes lies at the same place, as far as float32 headers can tell."""
    far = np.array([*one.shape[::-1], 1.0])
    return one.shape == other.shape and (np.abs(one.affine - other.affine)[:3] @ far).max() <= MAX_GRID_DRIFT_MM


def _check_pair(sct: Volume, ct: Volume) -> None:
    if not same_grid(sct, ct):
        raise VolumeError(
            f"expected both CTs on the same grid, got the synthetic one as {sct.shape} at {sct.affine.tolist()} and "
            f"the true one as {ct.shape} at {ct.affine.tolist()}; resample the true CT to the synthetic one's grid"
        )
    for name, volume in (("synthetic", sct), ("true", ct)):
        if volume.unit != "HU":
            raise VolumeError(
                f"expected the {name} CT in HU, got the unit {volume.unit!r}; pass Volume(..., unit='HU') if it is one"
            )
        if not np.isfinite(volume.array).all():
            raise VolumeError(f"expected finite HU, got NaN or infinity in the {name} CT; mend or crop it")
