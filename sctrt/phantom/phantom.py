"""What every way of making a phantom returns: three volumes on one grid, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..volume import Volume


@dataclass(frozen=True)
class Lesion:
    """One hot spot.

    Args:
        site: name of the tissue it was meant for, such as "lung", "liver", "marrow" or "soft".
        radius_mm: nominal; each half-axis lies within 25 % of it.
        suv: uptake at its centre, before texture.
        index_zyx: voxel of its centre.
    """

    site: str
    radius_mm: float
    suv: float
    index_zyx: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Phantom:
    """A body whose every voxel is known.

    Args:
        ct: [z, y, x] float32, HU.
        activity: [z, y, x] float32, SUV (FDG), on the grid of `ct`.
        labels: [z, y, x] uint8, values of `Tissue`, on the grid of `ct`.
        lesions: the hot spots inside the volume.
        meta: how it was made; `make_body` gives sex, height_mm, bmi, arms, voxel_mm and seed.
    """

    ct: Volume
    activity: Volume
    labels: Volume
    lesions: tuple[Lesion, ...] = ()
    meta: dict = field(default_factory=dict)
