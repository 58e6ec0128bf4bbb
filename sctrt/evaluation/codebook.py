"""Which codes a network uses, how evenly, and for which tissue; it knows arrays of codes alone.

A quantised network whose codebook collapsed still gives images, of a few grey patterns: only counting shows it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .regions import TISSUES, tissue_mask

# Note [Collapse]: codebooks of 1024 codes that collapsed in training used 15, or 34 to 55 codes, at a perplexity of 5
# to 11; those that did not used a fifth of their codes and more, the shipped one at a perplexity above 40
# (docs/model.md). The limits lie between, and either is a warning. Those numbers count air as well; here the body alone
# is judged, since a large field of view would hide it. And no image can use more codes than it has latents.
MIN_SHARE_USED = 1 / 20
MIN_PERPLEXITY = 20.0

OUTSIDE, BETWEEN = "outside", "between"
PLACES = (OUTSIDE, *TISSUES, BETWEEN)  # of a latent; every latent has one
REGIONS = ("all", "body", *PLACES)
ALL_PLANES = "all"


class CodeUse(BaseModel):
    """Of the latents of one region."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latents: int
    codes: int  # that are used
    perplexity: float  # exp of the entropy of their shares: as many codes used evenly say as much
    top_share: float  # of the latents, that the most used code takes


class CodebookUse(BaseModel):
    """By plane, "all" for all together, and by region; None where no latent lies there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int  # codes that there are
    use: dict[str, dict[str, CodeUse | None]]


def codebook_use(
    codes: Mapping[str, NDArray[np.integer]], places: Mapping[str, NDArray[np.integer]], size: int
) -> CodebookUse:
    """Counts the codes.

    Args:
        codes: plane -> [slice, row, column] of latents; below 0 where the network did not run.
        places: plane -> likewise, the number of `PLACES`; see `places_of_latents`.
        size: codes that there are.
    """
    counts = {plane: _counts(codes[plane], places[plane], size) for plane in codes}
    counts = {ALL_PLANES: np.sum(list(counts.values()), axis=0), **counts}
    use = {
        plane: {region: code_use(_of_region(table, region)) for region in REGIONS} for plane, table in counts.items()
    }
    return CodebookUse(size=size, use=use)


def code_use(counts: NDArray[np.integer]) -> CodeUse | None:
    """Of the uses [codes] of each code; None where there are none."""
    used = counts[counts > 0]
    if used.size == 0:
        return None
    shares = used / used.sum()
    return CodeUse(
        latents=int(used.sum()),
        codes=used.size,
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
        top_share=float(shares.max()),
    )


def places_of_latents(
    ct: NDArray[np.floating],  # [z, y, x] HU, on the model's grid
    body: NDArray[np.bool_],  # [z, y, x]
    axis: int,  # along which the slices follow each other
    factor: int,  # pixels of a latent's side
) -> NDArray[np.int8]:
    """[slice, row, column]: the number of `PLACES` of each latent, by the true CT's mean over its pixels.

    Outside is less than half in the body. Padding does not count: a latent at the edge may have fewer pixels.
    """
    hu, inside = (_pooled(volume, axis, factor) for volume in (ct, body))
    found = np.full(hu.shape, PLACES.index(BETWEEN), np.int8)
    for name in TISSUES:
        found[tissue_mask(hu, name)] = PLACES.index(name)
    found[inside < 0.5] = PLACES.index(OUTSIDE)
    return found


def collapse_warnings(found: CodebookUse) -> list[str]:
    """What Note [Collapse] says is too few."""
    body = found.use[ALL_PLANES]["body"]
    if body is None:
        return []
    warnings = []
    could = min(found.size, body.latents)
    if body.codes < MIN_SHARE_USED * could:
        warnings.append(
            f"The codebook has collapsed: in the body {body.codes} codes are used of {found.size}, "
            f"less than {MIN_SHARE_USED:.0%}."
        )
    if body.perplexity < min(MIN_PERPLEXITY, could):
        warnings.append(
            f"The codebook has collapsed: its perplexity in the body is {body.perplexity:.1f}, below "
            f"{MIN_PERPLEXITY:g}; all tissue is told with as much as {body.perplexity:.0f} codes used evenly would say."
        )
    return warnings


def _counts(codes: NDArray[np.integer], places: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    """[place, code]"""
    run = codes >= 0
    joint = places[run].astype(np.int64) * size + codes[run]
    return np.bincount(joint, minlength=len(PLACES) * size).reshape(len(PLACES), size)


def _of_region(counts: NDArray[np.int64], region: str) -> NDArray[np.int64]:
    """[code] of [place, code]."""
    if region == "all":
        return counts.sum(axis=0)
    if region == "body":
        return counts.sum(axis=0) - counts[PLACES.index(OUTSIDE)]
    return counts[PLACES.index(region)]


def _pooled(volume: NDArray, axis: int, factor: int) -> NDArray[np.float64]:
    """[slice, row, column]: means over factor x factor pixels of each slice, fewer at the ends."""
    pooled = np.moveaxis(volume, axis, 0).astype(np.float64)
    for along in (1, 2):
        starts = np.arange(0, pooled.shape[along], factor)
        sizes = np.diff([*starts, pooled.shape[along]])
        pooled = np.moveaxis(np.add.reduceat(pooled, starts, axis=along), along, -1) / sizes
        pooled = np.moveaxis(pooled, -1, along)
    return pooled
