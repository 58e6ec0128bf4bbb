"""The metrics of the BIC-MAC challenge (MICCAI 2026) under their names, to be set beside its leaderboard.

Source: https://github.com/bic-mac-challenge/challenge-codebase, evaluation_tool/metrics (read November 2026). The
challenge's own body and organ masks belong to its data; with other masks the numbers are near, not equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..attenuation import hu_to_mu
from ..errors import VolumeError

LIVER = 5  # in TotalSegmentator's `total` labels, which the challenge uses
EXCLUSION_MM = 40.0  # below and above the liver's dome: breathing moves it between PET and CT
BRAIN_THRESHOLDS = (0.05, 0.10, 0.15)  # relative error
NEGLIGIBLE = 1e-6  # a PET value below which a relative error says nothing


def ct_mu_map_mae(
    sct: NDArray[np.float32],  # [z, y, x] HU, z to the head
    ct: NDArray[np.float32],  # [z, y, x] HU
    body: NDArray[np.bool_],  # [z, y, x]
    spacing: tuple[float, float, float],  # (z, y, x) [mm]
    liver: NDArray[np.bool_] | None = None,  # [z, y, x]
) -> float:
    """`ct_mu_map_mae` [1/cm]: Carney at 120 kVp, in the body without 4 cm on either side of the liver's dome.

    Without a liver nothing is excluded.

    Raises:
        VolumeError: nothing is left.
    """
    mask = body.copy()
    if liver is not None and liver.any():
        dome = int(np.flatnonzero(liver.any(axis=(1, 2)))[-1])
        reach = round(EXCLUSION_MM / spacing[0])
        mask[max(0, dome - reach) : dome + reach] = False
    if not mask.any():
        raise VolumeError("expected a body beyond 4 cm of the liver's dome, got none; leave out the organ labels")
    error = hu_to_mu(sct[mask].astype(np.float64), 120) - hu_to_mu(ct[mask].astype(np.float64), 120)
    return float(np.abs(error).mean())


def pet_brain_outlier_score(
    pet: NDArray[np.floating],  # [z, y, x] corrected with the synthetic CT
    truth: NDArray[np.floating],  # [z, y, x] corrected with the true CT
    brain: NDArray[np.bool_],  # [z, y, x]
) -> float:
    """One subject's part of `pet_brain_outlier_score`; the challenge's is the mean over subjects. 0 is perfect.

    The challenge integrates the share of subjects whose share k of brain voxels within a threshold exceeds x, over x
    from 0 to 1: that is the mean of k.
    """
    valid = brain & (np.abs(truth) > NEGLIGIBLE)
    if not valid.any():
        return 1.0
    error = np.abs(pet[valid] - truth[valid]) / (np.abs(truth[valid]) + NEGLIGIBLE)
    return 1 - float(np.mean([(error < threshold).mean() for threshold in BRAIN_THRESHOLDS]))
