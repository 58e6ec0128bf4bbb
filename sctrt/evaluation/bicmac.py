"""The CT metric of the BIC-MAC challenge (MICCAI 2026) under its name, to be set beside its leaderboard.

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
