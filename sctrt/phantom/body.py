"""A whole body from a seed: who it is, then region by region from the outline to the lesions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..volume import Volume
from . import abdomen, cage, chest, chest_wall, head, lesions, limbs, pelvis, spine, torso
from .canvas import Canvas
from .phantom import Lesion, Phantom
from .sketch import BMI_RANGE, Arms, Person, Sketch, draw_build, draw_person

Region = Literal["body", "torso"]

VOXEL_MM_RANGE = (1.0, 12.0)
TOP_MM = {"down": -30.0, "up": -60.0}  # u of the highest slice: raised hands need room
MIN_FOV_MM = 200.0  # narrower grids cut the trunk to a core
BOTTOM_LEVEL_MM = 1120.0  # mid-thigh
TORSO_LEVELS_MM = (280.0, 1000.0)  # shoulders to pelvic floor
HU_RANGE = (-1024, 2500)


def make_body(
    seed: int,
    voxel_mm: float = 4.0,
    *,
    region: Region = "body",
    arms: Arms | None = None,
    bmi: float | None = None,
    n_lesions: int | None = None,
    fov_mm: float = 512.0,
) -> Phantom:
    """Paints a random adult: CT, FDG uptake and labels.

    The same arguments always give the same body. Another voxel size, field of view or pose keeps the seed's sex, height
    and body mass index; the rest may be drawn anew. Time and memory go with the number of voxels: some seconds and
    1 GB at 4 mm, 64 times that at 1 mm.

    What PET without attenuation correction cannot show (trabecular HU, bowel gas) is drawn apart from uptake, so that
    it cannot be guessed. Errors in HU on these bodies must never be compared with errors on patients.

    Args:
        seed: of everything random.
        voxel_mm: edge of the cubic voxel, 1 to 12.
        region: "body" reaches from above the vertex to mid-thigh; "torso" is the same body cut to the slab from
            the shoulders to the pelvic floor.
        arms: "up" or "down"; None draws it.
        bmi: body mass index, 18 to 40 kg/m2; None draws it.
        n_lesions: lesions to place, fewer if their tissue is missing; None draws two to eight.
        fov_mm: width and depth of the grid; large arms beside the body may leave it.

    Returns:
        Phantom of [z, y, x] volumes. In LPS mm, x and y are 0 at the centre, z is 0 at the vertex and grows upwards.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(voxel_mm, region, arms, bmi, n_lesions, fov_mm)
    voxel_mm, fov_mm = float(voxel_mm), float(fov_mm)  # see Note [precision] in canvas.py
    rng = np.random.default_rng(seed)
    person = draw_person(rng, arms, bmi)
    sketch = _start(rng, person, voxel_mm, fov_mm)
    _draw_anatomy(sketch)
    placed = lesions.draw_lesions(sketch, n_lesions)
    _add_texture(sketch)
    meta = {
        "sex": person.sex,
        "height_mm": float(person.height_mm),
        "bmi": float(person.bmi),
        "arms": person.arms,
        "voxel_mm": voxel_mm,
        "seed": seed,
    }
    rows = _region_rows(sketch, region)
    return _phantom(sketch.canvas, rows, placed, meta)


def _check(
    voxel_mm: float, region: str, arms: str | None, bmi: float | None, n_lesions: int | None, fov_mm: float
) -> None:
    low, high = VOXEL_MM_RANGE
    if not low <= voxel_mm <= high:
        raise ValueError(f"voxel_mm must be from {low:g} to {high:g}, got {voxel_mm}; 4 is a good start")
    if region not in get_args(Region):
        raise ValueError(f'region must be "body" or "torso", got {region!r}')
    if arms not in (None, *get_args(Arms)):
        raise ValueError(f'arms must be "up", "down" or None (drawn), got {arms!r}')
    if bmi is not None and not BMI_RANGE[0] <= bmi <= BMI_RANGE[1]:
        raise ValueError(f"bmi must be from {BMI_RANGE[0]} to {BMI_RANGE[1]}, or None (drawn), got {bmi}")
    if n_lesions is not None and n_lesions < 0:
        raise ValueError(f"n_lesions must be 0 or more, or None (drawn), got {n_lesions}")
    if not (math.isfinite(fov_mm) and fov_mm >= MIN_FOV_MM):
        raise ValueError(f"fov_mm must be at least {MIN_FOV_MM:g}, got {fov_mm}; 512 holds most bodies")


def _start(rng: np.random.Generator, person: Person, voxel_mm: float, fov_mm: float) -> Sketch:
    """An empty canvas for this person; the build is drawn after the canvas has drawn its warp."""
    top = TOP_MM[person.arms]
    across = round(fov_mm / voxel_mm)
    shape = (round((BOTTOM_LEVEL_MM * person.scale - top) / voxel_mm), across, across)
    canvas = Canvas(rng, shape, voxel_mm, top)
    return Sketch(rng, canvas, person, draw_build(rng, person), level=canvas.u / person.scale)


def _draw_anatomy(sketch: Sketch) -> None:
    """Paints every region over those before it. The order is the order of the random numbers: keep it."""
    outline = torso.draw_torso(sketch)
    limbs.draw_thighs(sketch)
    torso.draw_neck(sketch)
    torso.draw_breasts(sketch)
    limbs.draw_arms(sketch, outline)

    wall = cage.rib_cage(sketch)
    cage.draw_visceral_fat(sketch, outline, wall)
    diaphragm = cage.draw_diaphragm(sketch)
    heart = chest.place_heart(sketch)
    chest.draw_lungs(sketch, outline, wall, diaphragm, heart)
    blood = chest.draw_heart(sketch, heart, diaphragm)
    chest.draw_great_vessels(sketch, blood)
    chest.draw_airways(sketch)

    abdomen.draw_upper_abdomen(sketch, wall, diaphragm)
    abdomen.draw_kidneys(sketch)
    abdomen.draw_bowel(sketch, wall)
    abdomen.draw_pelvic_organs(sketch)
    abdomen.draw_trunk_muscles(sketch)

    chest_wall.draw_ribs(sketch, outline, wall)
    chest_wall.draw_sternum(sketch, wall)
    chest_wall.draw_shoulder_girdle(sketch, wall)
    trabecular = spine.draw_spine(sketch)
    pelvis.draw_pelvis(sketch, trabecular)
    head.draw_head(sketch)


def _add_texture(sketch: Sketch) -> None:
    """Varies uptake by some per cent and HU by its own texture and noise, then limits both."""
    canvas, rng = sketch.canvas, sketch.rng
    canvas.activity *= np.clip(1 + canvas.noise(rng, 10, 0.07), 0.5, 1.5)
    np.maximum(canvas.activity, 0, out=canvas.activity)
    texture = np.where(canvas.ct > -300, canvas.noise(rng, 8, 6), 0)
    noise = rng.normal(0, 8, canvas.shape).astype(np.float32) * (canvas.ct > -990)
    canvas.ct += texture + noise
    np.clip(canvas.ct, *HU_RANGE, out=canvas.ct)


def _region_rows(sketch: Sketch, region: Region) -> slice:
    """The slices [z] of a region."""
    if region == "body":
        return slice(None)
    top, bottom = (level * sketch.person.scale for level in TORSO_LEVELS_MM)
    inside = np.flatnonzero((sketch.canvas.u_axis >= top) & (sketch.canvas.u_axis <= bottom))
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _phantom(canvas: Canvas, rows: slice, placed: tuple[Lesion, ...], meta: dict) -> Phantom:
    """The rows of a finished canvas as volumes; lesions centred outside them are left out."""
    first, last, _ = rows.indices(canvas.shape[0])
    affine = np.diag([canvas.voxel_mm] * 3 + [1.0])
    affine[:3, 3] = canvas.x_axis[0], canvas.y_axis[0], -canvas.u_axis[first]

    def volume(array: NDArray, unit: str) -> Volume:
        return Volume(np.ascontiguousarray(array[rows]), affine, unit)

    return Phantom(
        ct=volume(canvas.ct, "HU"),
        activity=volume(canvas.activity, "SUV"),
        labels=volume(canvas.labels, "1"),
        lesions=tuple(
            replace(lesion, index_zyx=(lesion.index_zyx[0] - first, *lesion.index_zyx[1:]))
            for lesion in placed
            if first <= lesion.index_zyx[0] < last
        ),
        meta=meta,
    )
