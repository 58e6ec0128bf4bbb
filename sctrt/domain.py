"""How a PET looks to the network, in a few numbers, and whether a model was trained on PETs that look like it.

The numbers are robust statistics of the overview that the body box is found on, relative to the body's median, so the
PET's unit and the way a file stores its axes leave them as they are. They see what changes such statistics. They do not
see the timing resolution, motion, implants or another tracer's distribution; docs/another_site.md says what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

Features = dict[str, float]  # name -> value; those that cannot be measured are left out
Range = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]  # lowest, highest

MARGIN = 1.05  # a value may lie outside the range by this factor: so many cases do not show the extremes
TAIL = 1.0  # per cent of the cases at either end
FAR = 0.5  # below this share of the lowest, what is found is of another kind
BODY_ABOVE = 0.45  # of the body's median, as for the body box
INSIDE_MM = 16.0  # noise is measured this far from the surface
HAZE_MM = (24.0, 48.0)  # from the surface outwards; nearer lies its blur
HAZE_PERCENTILE = 75  # not the median: beside a large body much of it lies outside the scanner's circle
MIN_VOXELS = 50  # of two overview voxels a side
# Relative noise grows with this power of the body's cross-section (fitted over the shipped model's cohort: 0.247), so
# that few counts in a thin body are told from many in a thick one.
NOISE_POWER = 0.25
TYPICAL_CM2 = 500.0
SLICE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)  # neighbours within an axial slice


@dataclass(frozen=True)
class Feature:
    """What a number is called, and what it may mean when it is unlike those of the training cases."""

    label: str
    layout: str
    unit: str
    low: str
    high: str
    very_low: str = ""  # below FAR times the lowest


FEATURES = {
    "haze": Feature(
        "the PET around the body, over its median in it,",
        "{:.3f}",
        "",
        "less scatter than the model knows, or some of it corrected",
        "more scatter than the model knows, or no time of flight",
        "this looks like a PET that was corrected for attenuation, of which the synthetic CT is wrong, or for scatter; "
        "give the image that was reconstructed without either (NAC)",
    ),
    "voxel_mm": Feature(
        "the PET's voxel size", "{:.2f}", " mm", "noise and sharpness differ", "fine structure is lost"
    ),
    "length_mm": Feature(
        "the field of view along the body", "{:.0f}", " mm", "shorter than any", "it holds parts of the body never seen"
    ),
    "depth_mm": Feature(
        "the body from front to back", "{:.0f}", " mm", "thinner than any, perhaps a child's", "thicker than any"
    ),
    "cold": Feature(
        "the uptake in the body's coldest hundredth, over the median,",
        "{:.2f}",
        "",
        "holes, as without time of flight or after a correction for scatter",
        "no contrast, as in a test object",
    ),
    "cool": Feature(
        "the uptake in the body's coldest twentieth, over the median,",
        "{:.2f}",
        "",
        "another distribution of the tracer",
        "no contrast, as in a test object",
    ),
    "noise": Feature(
        "the PET's noise, for a body of this size,",
        "{:.3f}",
        "",
        "smoother, as by a stronger filter, other voxels, more counts, more scatter or no time of flight",
        "fewer counts, a weaker filter or smaller voxels",
    ),
}


class Domain(BaseModel):
    """What a model was trained on: the range of each feature over its training cases, but for few odd ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cases: int = Field(ge=1)
    ranges: dict[str, Range] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_order(self) -> Domain:
        for name, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"expected the range of {name} from low to high, got {low} to {high}")
        return self

    def beyond(self, found: Features) -> dict[str, float]:
        """The features that lie outside, by more than the margin; those that either side does not know are passed."""
        known = {name: (found[name], *self.ranges[name]) for name in FEATURES if name in found and name in self.ranges}
        return {name: value for name, (value, low, high) in known.items() if not low / MARGIN <= value <= high * MARGIN}

    def outside(self, found: Features) -> list[str]:
        """A sentence for each of them: what was found, what was trained on, what it may mean."""
        return [self._sentence(name, value) for name, value in self.beyond(found).items()]

    def _sentence(self, name: str, value: float) -> str:
        (low, high), feature = self.ranges[name], FEATURES[name]
        found, lowest, highest = (feature.layout.format(one) for one in (value, low, high))
        trained = highest if lowest == highest else f"{lowest} to {highest}"
        meaning = feature.high if value > high else feature.low
        if feature.very_low and value < FAR * low:
            meaning = feature.very_low
        return f"{feature.label} is {found}{feature.unit}, trained on {trained}{feature.unit}: {meaning}"


def domain_of(cases: list[Features]) -> Domain:
    """The ranges over training cases, which are not none; to four digits.

    Of a hundred cases or more the most unlike hundredth at either end is left out: one odd case must not blind it.
    """
    names = [name for name in FEATURES if all(name in case for case in cases)]
    values = {name: [case[name] for case in cases] for name in names}
    ends = {
        name: (np.percentile(v, TAIL, method="lower"), np.percentile(v, 100 - TAIL, method="higher"))
        for name, v in values.items()
    }
    return Domain(
        cases=len(cases),
        ranges={name: (float(f"{low:.4g}"), float(f"{high:.4g}")) for name, (low, high) in ends.items()},
    )


def features(
    overview: NDArray[np.float32],  # [z, y, x] the PET, in any unit
    overview_mm: float,  # its voxel size
    reference: float,  # the body's median in it
    spacing: tuple[float, float, float],  # of the PET as it was given [mm]
    length_mm: float,  # of its field of view along z
) -> Features:
    """The numbers of one PET. Host arrays; 0.1 s for 290 x 128 x 128 voxels."""
    ratio = (overview / reference).astype(np.float32, copy=False)
    found = {"voxel_mm": float(np.prod(spacing) ** (1 / 3)), "length_mm": length_mm}
    half, half_mm = _half(ratio), 2 * overview_mm
    body = ndimage.binary_fill_holes(ndimage.binary_opening(half > BODY_ABOVE), SLICE)
    if body.sum() < MIN_VOXELS:
        return found
    held = body.any(axis=(1, 2))
    area_cm2 = float(np.median(body.sum(axis=(1, 2))[held])) * half_mm**2 / 100
    depths = [np.ptp(np.flatnonzero(rows)) + 1 for rows in body.any(axis=2)[held]]
    cold, cool = np.percentile(half[body], (1, 5))
    found["depth_mm"] = float(np.percentile(depths, 90)) * half_mm
    found |= {"cold": max(0.0, float(cold)), "cool": max(0.0, float(cool))}
    ring = _grown(body, HAZE_MM[1], half_mm) & ~_grown(body, HAZE_MM[0], half_mm)
    if ring.sum() >= MIN_VOXELS:
        found["haze"] = max(0.0, float(np.percentile(half[ring], HAZE_PERCENTILE)))
    inside = ndimage.minimum_filter(body, _window(INSIDE_MM, half_mm), mode="nearest")
    if inside.sum() >= MIN_VOXELS:
        found["noise"] = _noise(ratio, half, inside) * (TYPICAL_CM2 / area_cm2) ** NOISE_POWER
    return found


def _half(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of two voxels a side; an odd last one is dropped."""
    z, y, x = (n // 2 * 2 for n in array.shape)
    rows = array[0:z:2, :y] + array[1:z:2, :y]
    rows = rows[:, 0::2] + rows[:, 1::2]
    return ((rows[..., 0:x:2] + rows[..., 1:x:2]) / 8).astype(np.float32, copy=False)


def _grown(mask: NDArray[np.bool_], by_mm: float, spacing: float) -> NDArray[np.bool_]:
    return ndimage.maximum_filter(mask, _window(by_mm, spacing), mode="constant")


def _window(radius_mm: float, spacing: float) -> int:
    """Voxels of a cube that reaches this far from its middle."""
    return 2 * round(radius_mm / spacing) + 1


def _noise(ratio: NDArray[np.float32], half: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Median of |Laplacian| within every second axial slice over the uptake there, in `inside`."""
    nz, ny, nx = half.shape
    plane = ratio[0 : 2 * nz : 2, : 2 * ny, : 2 * nx]
    laplacian = 4 * plane
    for axis in (1, 2):
        for step in (-1, 1):
            laplacian -= np.roll(plane, step, axis)
    blocks = np.abs(laplacian).reshape(nz, ny, 2, nx, 2).transpose(0, 1, 3, 2, 4)[inside]
    return float(np.median(blocks / np.maximum(half[inside], BODY_ABOVE)[:, None, None]))
