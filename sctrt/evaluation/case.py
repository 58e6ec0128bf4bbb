"""Everything that is measured on one synthetic CT, as one record for JSON, tables and the report."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..attenuation import DEFAULT_KVP, hu_to_mu, mu_per_hu
from ..checks import check_labels
from ..errors import VolumeError
from ..preprocess import Grid, to_grid
from ..units import HU_AIR
from ..volume import Volume
from . import bicmac
from .contour import ContourErrors, contour_errors
from .expected_lines import ExpectedError, expected_from_uncertainty
from .histogram import Histograms, histograms
from .jaggedness import Jaggedness, jaggedness
from .lines import LineErrors, line_errors
from .metrics import BODY_ABOVE, DILATION_MM, body_mask
from .pairs import Pair, make_pair
from .regions import RegionErrors, overlaps, region_errors
from .similarity import similarity
from .uncertainty import Calibration, calibration

# Above these the report warns. A contour 4 mm too wide has no HU error in the body and raises SUV by 6 %.
MAX_CONTOUR_BIAS_MM = 2.0
MAX_LINE_PERCENT = 5.0
MAX_SURFACE_SHARE = 1.5  # MAE in the dilated mask over that in the body
NO_LIVER = "The organs hold no liver where the CTs lie: BIC-MAC's mu MAE leaves nothing out."
MIN_SURFACE_HU = 10.0  # by which it must exceed it, too: the noise of a true CT's air is no tissue


class Case(BaseModel):
    """One synthetic CT measured against the true one. Lengths are mm, errors synthetic minus true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape_zyx: tuple[int, int, int]  # of the synthetic CT, axes in LPS order
    spacing_zyx_mm: tuple[float, float, float]
    kvp: int
    notes: list[str]  # what was done to compare the two
    warnings: list[str]  # what HU errors in the body do not show
    body: RegionErrors
    dilated_12mm: RegionErrors
    dice: dict[str, float | None]
    contour: ContourErrors | None
    lines: LineErrors
    jaggedness: dict[str, Jaggedness | None]  # by axis
    histogram: Histograms
    bicmac: dict[str, float]
    uncertainty: Calibration | None = None
    expected_lines: dict[str, ExpectedError] | None = None  # from the uncertainty: expected_from_uncertainty
    pet_ac: dict[str, Any] | None = None  # of the corrected PET, where it was simulated or given


def evaluate(
    sct: Volume,
    ct: Volume,
    *,
    uncertainty: Volume | None = None,
    organs: Volume | None = None,
    kvp: int = DEFAULT_KVP,
) -> Case:
    """Measures a synthetic CT against the true one.

    Args:
        sct: [z, y, x] HU.
        ct: [z, y, x] HU, on any grid, in any orientation: it is resampled to the synthetic one's.
        uncertainty: [z, y, x] HU, of the synthetic CT; on any grid.
        organs: [z, y, x] TotalSegmentator labels, for BIC-MAC's exclusion around the liver's dome; on any grid.
        kvp: tube voltage [kV] of the conventions that have one.

    Raises:
        VolumeError: unfit volumes, other bodies, no body.
        ValueError: Carney 2006 has no line for this tube voltage.
    """
    return evaluate_pair(make_pair(sct, ct), uncertainty=uncertainty, organs=organs, kvp=kvp)


def evaluate_pair(
    pair: Pair, *, uncertainty: Volume | None = None, organs: Volume | None = None, kvp: int = DEFAULT_KVP
) -> Case:
    """The same of two CTs that are on one grid already."""
    alike = similarity(pair.sct, pair.ct, pair.masks)
    body, dilated = (region_errors(pair.sct[m], pair.ct[m], alike[name], kvp) for name, m in pair.masks.items())
    synthetic_body = body_mask(Volume(pair.sct, pair.affine, "HU"))
    contour = contour_errors(synthetic_body, pair.body, pair.spacing, pair.known) if synthetic_body.any() else None
    mu_error = np.where(pair.attenuating, hu_to_mu(pair.sct, kvp) - hu_to_mu(pair.ct, kvp), 0)
    lines = line_errors(mu_error, pair.body, pair.spacing)
    spread = _spread(pair, uncertainty)
    liver = _liver(pair, organs)
    mu_mae = bicmac.ct_mu_map_mae(pair.sct, pair.ct, pair.body, pair.spacing, liver)
    return Case(
        shape_zyx=_shape(pair),
        spacing_zyx_mm=pair.spacing,
        kvp=kvp,
        notes=[*pair.notes, *([NO_LIVER] if liver is not None and not liver.any() else [])],
        warnings=_warnings(body, dilated, contour, lines),
        body=body,
        dilated_12mm=dilated,
        dice=overlaps(pair.sct, pair.ct, pair.body, pair.dilated),
        contour=contour,
        lines=lines,
        jaggedness=jaggedness(pair.sct, pair.ct, pair.body),
        histogram=histograms(pair.sct[pair.body], pair.ct[pair.body]),
        bicmac={"ct_mu_map_mae": mu_mae},
        uncertainty=None if spread is None else calibration(spread[pair.body], (pair.sct - pair.ct)[pair.body]),
        expected_lines=None if spread is None else _expected_lines(pair, spread, mu_error, kvp),
    )


def on_pair(pair: Pair, volume: Volume, fill: float) -> NDArray[np.float32]:
    """[z, y, x]: another volume on the pair's grid, `fill` outside."""
    return to_grid(volume, Grid(pair.affine, _shape(pair)), fill)


def _spread(pair: Pair, uncertainty: Volume | None) -> NDArray[np.float32] | None:
    """[z, y, x] HU on the pair's grid."""
    if uncertainty is None:
        return None
    _check_place(pair, uncertainty, "uncertainty")
    spread = on_pair(pair, uncertainty, 0.0)
    inside = spread[pair.attenuating]
    if not np.isfinite(inside).all() or inside.min() < 0:
        raise VolumeError(
            "expected an uncertainty in HU, finite and 0 or more, got NaN or negative values; "
            "pass the file of sctrt synthesize --uncertainty"
        )
    return spread


def _expected_lines(
    pair: Pair, spread: NDArray[np.float32], mu_error: NDArray[np.floating], kvp: int
) -> dict[str, ExpectedError]:
    mu_spread = np.where(pair.attenuating, spread * mu_per_hu(pair.sct, kvp), 0)
    return expected_from_uncertainty(mu_spread, mu_error, pair.body, pair.spacing)


def _liver(pair: Pair, organs: Volume | None) -> NDArray[np.bool_] | None:
    if organs is None:
        return None
    check_labels(organs, "organs")
    _check_place(pair, organs, "organs")
    # Of a mask, not of the labels: between two labels lie others.
    mask = Volume((np.rint(organs.array) == bicmac.LIVER).astype(np.float32), organs.affine)
    return on_pair(pair, mask, 0.0) >= 0.5


def _check_place(pair: Pair, volume: Volume, name: str) -> None:
    """Refuses what lies beside the body: it would count as 0 throughout."""
    reach = on_pair(pair, Volume(np.ones(volume.shape, np.float32), volume.affine), 0.0) > 0.5
    if not reach[pair.body].any():
        raise VolumeError(
            f"expected {name} of the same body as the CTs, got a volume that lies elsewhere; check that the files "
            "belong together and that their affines place them alike"
        )


def _shape(pair: Pair) -> tuple[int, int, int]:
    nz, ny, nx = pair.ct.shape
    return nz, ny, nx


def _warnings(body: RegionErrors, dilated: RegionErrors, contour: ContourErrors | None, lines: LineErrors) -> list[str]:
    found = []
    if contour is None:
        found.append(f"The synthetic CT holds no body: nothing in it is above {BODY_ABOVE:g} HU.")
    elif abs(contour.bias_mm) > MAX_CONTOUR_BIAS_MM:
        kind = "wider" if contour.bias_mm > 0 else "narrower"
        found.append(
            f"The synthetic body is {abs(contour.bias_mm):.1f} mm {kind} than the true one on average. "
            "The corrected PET changes by several per cent even where the HU in the body are right."
        )
    if dilated.mae_hu > max(MAX_SURFACE_SHARE * body.mae_hu, body.mae_hu + MIN_SURFACE_HU):
        found.append(
            f"MAE is {dilated.mae_hu:.1f} HU with {DILATION_MM:g} mm around the body, but {body.mae_hu:.1f} HU in it: "
            f"tissue was made up outside, where air is {HU_AIR:g} HU."
        )
    if abs(lines.mean_percent) > MAX_LINE_PERCENT:
        found.append(
            f"Attenuation factors are off by {lines.mean_percent:+.1f} % on average: HU errors add up along the lines, "
            "and the corrected PET follows."
        )
    return found
