"""Where a PET is measured: tissues by label or by HU, and lesions; masks [z, y, x] by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import VolumeError
from ..phantom import labels as phantom
from ..phantom.labels import Tissue
from ..volume import Volume
from .metrics import body_mask
from .regions import tissue_mask

Mask = NDArray[np.bool_]  # [z, y, x]
Groups = Mapping[str, tuple[int, ...]]  # name of a tissue -> its values in a label image

BODY = "body"
PHANTOM_GROUPS: Groups = {
    "lung": phantom.LUNG,
    "fat": phantom.FAT,
    "soft tissue": phantom.SOFT,  # muscle and all lean organs, those below included
    "bone": phantom.BONE,
    "brain": (Tissue.BRAIN,),
    "heart": (Tissue.HEART,),
    "liver": (Tissue.LIVER,),
    "spleen": (Tissue.SPLEEN,),
    "kidney": (Tissue.KIDNEY,),
    "muscle": (Tissue.SOFT,),
}
# Class numbers of TotalSegmentator's task `total`, version 2.
# Source: github.com/wasserth/TotalSegmentator, totalsegmentator/map_to_binary.py
TOTALSEGMENTATOR_GROUPS: Groups = {
    "brain": (90,),
    "heart": (51,),
    "liver": (5,),
    "spleen": (1,),
    "kidney": (2, 3),
    "pancreas": (7,),
}
TOUCHING = np.ones((3, 3, 3), bool)  # corners too: voxels of one lesion


@dataclass(frozen=True, eq=False)
class Regions:
    """Masks [z, y, x] of one grid, none of them empty."""

    body: Mask
    tissues: dict[str, Mask]
    lesions: list[Mask]


def find_regions(
    ct: Volume,
    labels: Volume | None = None,
    *,
    groups: Groups = PHANTOM_GROUPS,
    lesion_values: tuple[int, ...] = (Tissue.LESION,),
) -> Regions:
    """Body by the CT; tissues and lesions by labels where there are some, else tissues by HU and no lesions.

    Args:
        ct: [z, y, x] the true CT, HU.
        labels: [z, y, x] integers on the CT's grid; a phantom's, or others with `groups` and `lesion_values`.
        groups: name -> values of a tissue.
        lesion_values: of all lesions.

    Raises:
        VolumeError: the labels are of another shape, or the CT holds no body.
    """
    if labels is not None and labels.shape != ct.shape:
        raise VolumeError(
            f"expected labels on the CT's grid {ct.shape}, got {labels.shape}; resample them (nearest neighbour)"
        )
    body = body_mask(ct)
    if not body.any():
        raise VolumeError("expected a body in the true CT, got air alone; check its rescale slope")
    if labels is None:
        return Regions(body, tissues_by_hu(ct), [])
    return Regions(body, tissues_by_label(labels, groups), lesions_by_label(labels, lesion_values))


def tissues_by_label(labels: Volume, groups: Groups = PHANTOM_GROUPS) -> dict[str, Mask]:
    """The tissues of a label image that has them; those without a voxel are left out.

    Args:
        labels: [z, y, x] integers.
        groups: name -> values; default: those of a phantom's labels. A segmentation of one's own brings its own.
    """
    masks = {name: np.isin(labels.array, values) for name, values in groups.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def tissues_by_hu(ct: Volume) -> dict[str, Mask]:
    """Lung, fat, soft tissue and bone inside the body, by the CT numbers of `units.py`; empty ones are left out.

    Args:
        ct: [z, y, x] HU.
    """
    body = body_mask(ct)
    names = {"lung": "lung", "fat": "fat", "soft tissue": "soft", "bone": "bone"}
    masks = {name: body & tissue_mask(ct.array, tissue) for name, tissue in names.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def lesions_by_label(labels: Volume, values: tuple[int, ...] = (Tissue.LESION,)) -> list[Mask]:
    """One mask a lesion: voxels that touch, if only by a corner, belong together. Lesions that merged count as one.

    Args:
        labels: [z, y, x] integers.
        values: of lesions; default: a phantom's.
    """
    objects, count = cast(tuple[NDArray[np.int32], int], ndimage.label(np.isin(labels.array, values), TOUCHING))
    return [objects == number for number in range(1, count + 1)]
