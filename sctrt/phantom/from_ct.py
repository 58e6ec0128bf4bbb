"""A phantom from a real CT: its anatomy and HU as they are, with sampled FDG uptake and lesions.

The table and everything else outside the body is removed. Tissue classes come from HU and shape alone, so thin
contrast-filled vessels above the bone threshold are given marrow uptake; the heart, large vessels and kidneys are not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import VolumeError
from ..units import HU_AIR, HU_MIN
from ..volume import Volume
from .canvas import CORTEX_SUV
from .labels import BONE, Tissue
from .phantom import Lesion, Phantom

BODY_THRESHOLD = -300.0  # HU; skin is above, bedding and clothes are below
TABLE_OPENING_MM = 12.0  # thinner structures that stick out of the body are table and cables
LOW_DENSITY = -400.0  # HU; below: lung or gas
LUNG_MIN_ML = 60.0  # smaller pockets of low density are gas
LUNG_MEDIAN_MIN = -930.0  # HU; large pockets of pure gas lie below
FAT_MAX = -20.0  # HU
BONE_MIN = 170.0  # HU; above: compact bone, or spongy bone of some density
COMPACT_HU = (300.0, 1200.0)  # from spongy bone alone to compact bone alone
MARROW_MIN = 60.0  # HU; within a bone, above the spinal canal
MARROW_MAX_CM2 = 20.0  # larger holes of a slice lie between bones, not in one
BONE_CLOSING_MM = 8.0  # half the widest gap that the voxel size leaves in a bone's surface
# Denser than BONE_MIN all through: contrast medium where larger than a bone, or nowhere as dense as its surface.
CONTRAST_RADIUS_MM = 10.0
CONTRAST_MIN_ML = 120.0
BONE_SURFACE_HU = 290.0  # of the densest tenth
VISCERAL_DEPTH_MM = 32.0  # lean tissue deeper than this counts as organs,
MUSCLE_ON_BONE_MM = 12.0  # but for muscle, which lies on bone
ANTI_ALIAS = 0.4  # Gaussian sigma as a share of the coarser voxel size

# FDG uptake [SUV], the ranges in which a body's value is drawn; sources in docs/physics.md.
MUSCLE_SUV = (0.5, 0.75)
FAT_SUV = (0.15, 0.3)
LUNG_SUV = (0.35, 0.6)
MARROW_SUV = (1.0, 2.2)
LESION_SUV = (3.5, 14.0)
LESION_RADIUS_MM = (5.0, 16.0)


def body_from_ct(
    ct: Volume,
    seed: int,
    voxel_mm: float = 4.0,
    *,
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
    fov_mm: float = 512.0,
) -> Phantom:
    """Makes a phantom of a real CT's anatomy.

    Args:
        ct: HU, any grid; the body should not be cut at the sides.
        seed: of uptake and lesions.
        voxel_mm: isotropic voxel size of the phantom.
        stretch: of the anatomy, by direction (z, y, x): another habitus.
        fov_mm: width and depth of the phantom's grid; a wider body has a wider one.

    Returns:
        Phantom on an axis-aligned LPS grid, centred on the CT's volume, or, where that would cut the body, on the body
        in x and y.

    Raises:
        VolumeError: there is no body of at least one litre above -300 HU.
    """
    rng = np.random.default_rng(seed)
    hu = _resample_axis_aligned(ct, voxel_mm, stretch, fov_mm)
    body = _body_mask(hu, voxel_mm)
    window = _window(body, round(fov_mm / voxel_mm))
    hu, body = hu[window], body[window]
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -voxel_mm * (np.array(hu.shape[::-1]) - 1) / 2
    if body.sum() * voxel_mm**3 < 1e6:
        raise VolumeError(
            "expected a CT in HU with a body of at least one litre above -300 HU, got "
            f"{body.sum() * voxel_mm**3 / 1e6:.2f} l; check the unit and the rescale slope"
        )
    hu = np.where(body, hu, HU_AIR).astype(np.float32)
    labels = _classify(hu, body, voxel_mm)
    activity = _uptake(hu, labels, body, voxel_mm, rng)
    lesions = _paint_lesions(activity, labels, voxel_mm, rng)
    meta = {"source": "ct", "seed": seed, "voxel_mm": voxel_mm, "stretch": stretch}
    return Phantom(
        ct=Volume(hu, affine, "HU"),
        activity=Volume(activity, affine, "SUV"),
        labels=Volume(labels, affine, "1"),
        lesions=lesions,
        meta=meta,
    )


def _resample_axis_aligned(
    ct: Volume, voxel_mm: float, stretch: tuple[float, float, float], fov_mm: float
) -> NDArray[np.float32]:
    """Anti-aliased HU [z, y, x] along LPS about the volume's centre, all of it and `fov_mm` at least."""
    corners = np.array(
        [(x, y, z, 1) for x in (0, ct.shape[2] - 1) for y in (0, ct.shape[1] - 1) for z in (0, ct.shape[0] - 1)]
    )
    world = (ct.affine @ corners.T)[:3]
    low, high = world.min(axis=1), world.max(axis=1)
    nxy = round(fov_mm / voxel_mm)
    width = max((high - low)[:2] * stretch[:0:-1])
    nxy += 2 * max(0, math.ceil((width / voxel_mm - nxy) / 2))  # an even number more: the voxels stay where they are
    nz = max(1, int((high[2] - low[2]) * stretch[0] / voxel_mm))
    centre = (low + high) / 2
    step = voxel_mm / np.array(stretch[::-1])  # (x, y, z) [mm] in the CT's world
    affine_in_ct_world = np.diag([*step, 1.0])
    affine_in_ct_world[:3, 3] = centre - step * (np.array([nxy, nxy, nz]) - 1) / 2
    to_index = np.linalg.inv(ct.affine) @ affine_in_ct_world  # (x, y, z) -> (x, y, z)
    sigma = [ANTI_ALIAS * max(0.0, voxel_mm / min(stretch) - s) / s for s in ct.spacing]
    air = np.float32(HU_MIN)  # -2000 or -3024 HU, which scanners write where they saw nothing, would make skin lung
    smooth = ndimage.gaussian_filter(np.maximum(ct.array.astype(np.float32), air), sigma, mode="nearest")
    reverse = to_index[:3, :3][::-1, ::-1]
    hu = ndimage.affine_transform(
        smooth,
        reverse,
        offset=to_index[:3, 3][::-1],
        output_shape=(nz, nxy, nxy),
        order=1,
        mode="constant",
        cval=HU_AIR,
    )
    return np.maximum(hu, air)


def _window(body: NDArray[np.bool_], n: int) -> tuple[slice, slice, slice]:
    """The middle n x n of each slice [voxels], or as many as hold the body, about it, where they do not."""
    total = body.shape[1]
    spans = [np.flatnonzero(body.any(axis=axes)) for axes in ((0, 2), (0, 1))]  # in y, in x
    middle = (total - n) // 2
    if not body.any() or all(middle <= span[0] and span[-1] < middle + n for span in spans):
        return slice(None), slice(middle, middle + n), slice(middle, middle + n)
    n = min(total, max(n, *(int(span[-1] - span[0]) + 3 for span in spans)))  # with air on both sides
    starts = [min(max(0, int(span[0] + span[-1] + 1 - n) // 2), total - n) for span in spans]
    return slice(None), slice(starts[0], starts[0] + n), slice(starts[1], starts[1] + n)


def _body_mask(hu: NDArray[np.float32], voxel_mm: float) -> NDArray[np.bool_]:
    """The largest solid object, without thin attachments (table), its lungs and gas filled in."""
    solid = hu > BODY_THRESHOLD
    filled = np.stack([ndimage.binary_fill_holes(s) for s in solid])
    radius = max(1, round(TABLE_OPENING_MM / voxel_mm / 2))
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), radius)[None]
    opened = ndimage.binary_opening(filled, ball)
    components, n = ndimage.label(opened)
    if n == 0:
        return np.zeros_like(solid)
    largest = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    body = ndimage.binary_dilation(largest, ball) & filled  # gives back the skin that the opening rounded off
    return np.stack([ndimage.binary_fill_holes(s) for s in body])


def _classify(hu: NDArray[np.float32], body: NDArray[np.bool_], voxel_mm: float) -> NDArray[np.uint8]:
    labels = np.zeros(hu.shape, np.uint8)
    labels[body] = Tissue.SOFT
    labels[body & (hu < FAT_MAX)] = Tissue.FAT
    bone = body & (hu > BONE_MIN)
    bone &= ~_contrast_medium(hu, bone, voxel_mm)
    labels[_bone_interior(bone, voxel_mm) & (hu > MARROW_MIN)] = Tissue.MARROW
    labels[bone] = Tissue.BONE
    pockets, n = ndimage.label(body & (hu < LOW_DENSITY))
    if n:
        index = np.arange(1, n + 1)
        volume_ml = np.bincount(pockets.ravel())[1:] * voxel_mm**3 / 1000
        median = ndimage.median(hu, pockets, index)
        lung = (volume_ml > LUNG_MIN_ML) & (median > LUNG_MEDIAN_MIN)
        labels[np.isin(pockets, index[lung])] = Tissue.LUNG
        labels[np.isin(pockets, index[~lung])] = Tissue.GAS
    return labels


def _contrast_medium(hu: NDArray[np.float32], bone: NDArray[np.bool_], voxel_mm: float) -> NDArray[np.bool_]:
    """The part of `bone` that is heart, large vessel or kidney, and every other piece as faint."""
    thick = _grown(_shrunk(bone, CONTRAST_RADIUS_MM, voxel_mm), CONTRAST_RADIUS_MM, voxel_mm)
    blobs, n = ndimage.label(thick)
    contrast = np.zeros_like(bone)
    for blob in (blobs == i for i in range(1, n + 1)):
        with_surface = _grown(blob, 1.5 * voxel_mm, voxel_mm) & bone
        if blob.sum() * voxel_mm**3 / 1000 > CONTRAST_MIN_ML or _is_faint(hu[with_surface]):
            contrast |= with_surface
    pieces, n = ndimage.label(bone & ~contrast)
    if n:
        index = np.arange(1, n + 1)
        faint = ndimage.labeled_comprehension(hu, pieces, index, _is_faint, bool, False)
        contrast |= np.isin(pieces, index[faint])
    return contrast


def _is_faint(hu: NDArray[np.float32]) -> bool:
    return bool(np.percentile(hu, 90) < BONE_SURFACE_HU)


def _bone_interior(bone: NDArray[np.bool_], voxel_mm: float) -> NDArray[np.bool_]:
    """What compact bone encloses in axial or sagittal slices: its marrow, and the spinal canal."""
    closed = bone | _shrunk(_grown(bone, BONE_CLOSING_MM, voxel_mm), BONE_CLOSING_MM, voxel_mm)
    interior = closed.copy()
    for axis in (0, 2):
        for shell, inside in zip(np.moveaxis(closed, axis, 0), np.moveaxis(interior, axis, 0), strict=True):
            holes, _ = ndimage.label(ndimage.binary_fill_holes(shell) & ~shell)
            area_cm2 = np.bincount(holes.ravel()) * voxel_mm**2 / 100
            area_cm2[0] = np.inf
            inside |= area_cm2[holes] < MARROW_MAX_CM2
    return interior & ~bone


def _grown(mask: NDArray[np.bool_], by_mm: float, voxel_mm: float) -> NDArray[np.bool_]:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel_mm)) <= by_mm


def _shrunk(mask: NDArray[np.bool_], by_mm: float, voxel_mm: float) -> NDArray[np.bool_]:
    return ~_grown(~mask, by_mm, voxel_mm)


def _uptake(
    hu: NDArray[np.float32],
    labels: NDArray[np.uint8],
    body: NDArray[np.bool_],
    voxel_mm: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """SUV [z, y, x]: one level a tissue, organ-like blobs in deep lean tissue, lung and bone by their density."""
    activity = np.zeros(hu.shape, np.float32)
    depth = ndimage.distance_transform_edt(np.pad(body, ((1, 1), (0, 0), (0, 0)), mode="edge"), sampling=voxel_mm)[1:-1]
    organs = np.exp(0.5 * _smooth_noise(rng, hu.shape, 28.0 / voxel_mm) + 0.45)
    bone = np.isin(labels, BONE)
    from_bone = np.asarray(ndimage.distance_transform_edt(~bone, sampling=voxel_mm)) if bone.any() else depth
    deep = np.clip((np.minimum(depth - VISCERAL_DEPTH_MM, from_bone - MUSCLE_ON_BONE_MM)) / 10.0, 0, 1)
    lean = rng.uniform(*MUSCLE_SUV) * (1 + deep * (2.2 * organs / organs.mean() - 1))
    activity[labels == Tissue.SOFT] = lean[labels == Tissue.SOFT]
    activity[labels == Tissue.FAT] = rng.uniform(*FAT_SUV)
    marrow = rng.uniform(*MARROW_SUV)
    compact = np.clip((hu - COMPACT_HU[0]) / (COMPACT_HU[1] - COMPACT_HU[0]), 0, 1)
    activity[bone] = (marrow + compact * (CORTEX_SUV - marrow))[bone]
    lung = labels == Tissue.LUNG
    activity[lung] = (rng.uniform(*LUNG_SUV) * np.clip((hu + 1000) / 230, 0.1, 3.0))[lung]
    activity *= np.clip(1 + 0.07 * _smooth_noise(rng, hu.shape, 10.0 / voxel_mm), 0.5, 1.5)
    return activity.astype(np.float32)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> NDArray[np.float32]:
    """Gaussian random field of unit standard deviation; sigma in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return field / field.std()


def _paint_lesions(
    activity: NDArray[np.float32], labels: NDArray[np.uint8], voxel_mm: float, rng: np.random.Generator
) -> tuple[Lesion, ...]:
    """Two to eight ellipsoidal lesions in lung, lean tissue or bone; the CT stays as it is."""
    lesions = []
    zyx = np.indices(labels.shape, dtype=np.float32)
    for _ in range(rng.integers(2, 9)):
        site = (Tissue.LUNG, Tissue.SOFT, Tissue.MARROW)[rng.choice(3, p=[0.2, 0.5, 0.3])]
        candidates = np.argwhere(labels == site if site != Tissue.MARROW else np.isin(labels, BONE))
        if len(candidates) == 0:
            continue
        centre = candidates[rng.integers(len(candidates))]
        radius = rng.uniform(*LESION_RADIUS_MM)
        suv = float(np.exp(rng.uniform(*np.log(LESION_SUV))))
        semi_axes = radius * rng.uniform(0.75, 1.25, 3) / voxel_mm
        distance = np.sqrt(sum(((zyx[i] - centre[i]) / semi_axes[i]) ** 2 for i in range(3)))
        mask = np.clip(0.5 - (distance - 1) * semi_axes.min(), 0, 1) * (labels > 0)
        activity += mask * (suv - activity)
        labels[mask > 0.5] = Tissue.LESION
        lesions.append(Lesion(site.name.lower(), radius, suv, (int(centre[0]), int(centre[1]), int(centre[2]))))
    return tuple(lesions)
