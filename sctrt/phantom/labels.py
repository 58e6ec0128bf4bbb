"""The tissues a phantom's label image names, and the groups that evaluation reports."""

from __future__ import annotations

from enum import IntEnum


class Tissue(IntEnum):
    """Value of a voxel in a label image: the tissue that fills most of it."""

    AIR = 0  # outside the body
    FAT = 1
    SOFT = 2  # muscle and every lean tissue without a name of its own
    LUNG = 3
    BONE = 4  # cortical bone and teeth
    MARROW = 5  # trabecular bone with its marrow
    BRAIN = 6
    HEART = 7  # myocardium; the chambers are BLOOD
    LIVER = 8
    SPLEEN = 9
    KIDNEY = 10
    BLADDER = 11
    BOWEL = 12
    GAS = 13  # inside the body: airways, sinuses, stomach, bowel
    BLOOD = 14
    LESION = 15  # in any tissue, so in none of the groups below
    STOMACH = 16


# Groups are tuples, so that `numpy.isin(labels, BONE)` works.
NO_TISSUE = (Tissue.AIR, Tissue.GAS)
FAT = (Tissue.FAT,)
LUNG = (Tissue.LUNG,)
BONE = (Tissue.BONE, Tissue.MARROW)
SOFT = (
    Tissue.SOFT,
    Tissue.BRAIN,
    Tissue.HEART,
    Tissue.LIVER,
    Tissue.SPLEEN,
    Tissue.KIDNEY,
    Tissue.BLADDER,
    Tissue.BOWEL,
    Tissue.BLOOD,
    Tissue.STOMACH,
)
