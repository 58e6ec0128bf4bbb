"""A synthetic CT and the true one, brought to one grid and one order of axes, with the masks to compare them in.

All that is measured is measured on these arrays: how the files store their axes cannot matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks import check_ct
from ..errors import VolumeError
from ..orientation import lps
from ..preprocess import Grid, to_grid
from ..units import HU_AIR
from ..volume import Volume
from .metrics import BODY_ABOVE, DILATION_MM, body_mask, dilate, same_grid
from .table import table_and_parts

THIN_AIR = -900.0  # HU; what the synthetic CT has above is tissue, or the edge of some
PADDING_BELOW = -1500.0  # HU; scanners write -2000 or -3024 where they saw nothing, and no tissue or noise is so low
MIN_COVERED = 0.5  # of the true body's voxels that must lie in the synthetic CT; less is another patient or region


@dataclass(frozen=True)
class Pair:
    """Two CTs on the synthetic one's grid, axes in LPS order; where one of them does not reach, both are air.

    Args:
        sct: [z, y, x] float32 HU.
        ct: [z, y, x] float32 HU.
        affine: [4, 4] voxel (x, y, z) -> LPS mm.
        body: [z, y, x] bool, of the true CT.
        dilated: [z, y, x] bool, the body and 12 mm around it, as far as both reach, without the table.
        attenuating: [z, y, x] bool, where lines are integrated: the body, its other parts, and what the synthetic CT
            puts around them. The noise of the air around a patient, clipped to mu >= 0, would add up along a line.
        known: [z, y, x] bool, where the true CT reaches.
        notes: what was done to bring them together.
    """

    sct: NDArray[np.float32]
    ct: NDArray[np.float32]
    affine: NDArray[np.float64]
    body: NDArray[np.bool_]
    dilated: NDArray[np.bool_]
    attenuating: NDArray[np.bool_]
    known: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) voxel size [mm]."""
        return Volume(self.ct, self.affine).spacing

    @property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Both masks, always: tissue that is made up outside the body shows in the second alone."""
        return {"body": self.body, "dilated_12mm": self.dilated}


def make_pair(sct: Volume, ct: Volume) -> Pair:
    """Brings two CTs together.

    A true CT on another grid is resampled to the synthetic one's (trilinear, finer voxels averaged).

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU, on any grid, in any orientation.

    Raises:
        VolumeError: not CTs in HU, no body in the true one, or hardly any of it in the synthetic one.
    """
    for name, volume in (("synthetic CT", sct), ("true CT", ct)):
        check_ct(volume, name)
    ordered, truth = lps(sct), lps(ct)
    body_ml = _litres(truth) * 1000
    if body_ml == 0:
        raise VolumeError(
            f"expected a body in the true CT, got no voxel above {BODY_ABOVE:g} HU; check its rescale slope"
        )
    hu: NDArray[np.float32] = ordered.array.astype(np.float32)
    notes: list[str] = []
    known = truth.array > PADDING_BELOW
    on_grid = np.where(known, truth.array, HU_AIR).astype(np.float32)
    if not same_grid(ordered, truth):
        on_grid, known = _resampled(on_grid, known, truth, ordered)
        notes.append(
            f"The true CT ({_grid(truth)}) was resampled to the synthetic one's grid ({_grid(ordered)}), trilinear."
        )
    if not known.all():
        notes.append(
            f"The true CT lacks {1 - known.mean():.1%} of the synthetic one's voxels: left out of all numbers."
        )
    body = body_mask(Volume(on_grid, ordered.affine, "HU"))
    voxel_ml = float(np.prod(ordered.spacing)) / 1000
    _check_overlap(float(body.sum()) * voxel_ml, body_ml)
    table, parts = table_and_parts(on_grid, body, ordered.spacing)  # Note [Table]
    table_ml = float(table.sum()) * voxel_ml
    if table_ml >= 1:
        notes.append(f"About {table_ml:.0f} ml of table and bedding were left out of all numbers.")
    parts_ml = float((parts & (on_grid > BODY_ABOVE)).sum()) * voxel_ml
    if parts_ml >= 1:
        notes.append(
            f"About {parts_ml:.0f} ml lie apart from the body (arms, legs): they count in the errors along lines, and "
            "in no error in HU."
        )
    hu, on_grid = (np.where(known & ~table, one, np.float32(HU_AIR)) for one in (hu, on_grid))
    return Pair(
        hu,
        on_grid,
        ordered.affine,
        body,
        dilated=dilate(body, ordered.spacing, DILATION_MM) & known & ~table,
        attenuating=body | parts | (hu > THIN_AIR),
        known=known,
        notes=tuple(notes),
    )


def _resampled(
    hu: NDArray[np.float32], known: NDArray[np.bool_], truth: Volume, like: Volume
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The true CT's HU [z, y, x] on another's grid, air outside, and where they are known."""
    grid = Grid(like.affine, like.shape)
    share = Volume(known.astype(np.float32), truth.affine)
    return to_grid(Volume(hu, truth.affine, "HU"), grid, HU_AIR), to_grid(share, grid, 0.0) > 0.5


def _litres(ct: Volume) -> float:
    return float(body_mask(ct).sum()) * float(np.prod(ct.spacing)) / 1e6


def _check_overlap(inside_ml: float, body_ml: float) -> None:
    if inside_ml < MIN_COVERED * body_ml:
        raise VolumeError(
            f"expected both CTs of the same body, got {inside_ml:.0f} of {body_ml:.0f} ml of the true body inside the "
            "synthetic CT's grid; check that the files belong together and that their affines place them alike"
        )


def _grid(volume: Volume) -> str:
    return f"{' x '.join(map(str, volume.shape))} of {' x '.join(f'{step:.3g}' for step in volume.spacing)} mm"
