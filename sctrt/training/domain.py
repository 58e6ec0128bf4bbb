"""What PETs a model was trained on, written into its bundle, so that a synthesis can say what is unlike them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import bundle as bundles
from .. import nifti
from ..bundle import Bundle, Normaliser
from ..cases import NAC
from ..domain import Domain, Features, domain_of
from ..preprocess import network_input
from .data import case_folders, part, random_part

PARTS = 16  # of a tall case, drawn as training draws its one: with 4 the ends still shift with the seed by a tenth


def training_domain(cohort: Path, spacing_mm: float, normaliser: Normaliser, seed: int = 0) -> Domain:
    """The range of each feature over a cohort's cases, and over parts of tall ones, drawn as training draws its one.

    Args:
        cohort: folder of case folders.
        spacing_mm: of the model.
        normaliser: of the model.
        seed: of the recipe; it names the parts.

    Raises:
        VolumeError: there are no cases, or one is unfit.
    """
    rng = np.random.default_rng(seed)
    found: list[Features] = []
    for folder in case_folders(cohort):
        pet = nifti.load(folder / NAC)
        whole = network_input(pet, spacing_mm, normaliser)
        found.append(whole.features)
        drawn = [random_part(whole.grid.shape[0], rng) for _ in range(PARTS)]
        found += [network_input(part(pet, rows), spacing_mm, normaliser).features for rows in drawn if rows]
    return domain_of(found)


def add_domain(bundle: Bundle, cohort: Path) -> Bundle:
    """Writes into a bundle's manifest what it was trained on; networks, weights and codebook stay as they are.

    Args:
        bundle: that was trained on the cohort.
        cohort: folder of case folders.

    Returns:
        The bundle, read back and checked; its fingerprint is another.

    Raises:
        VolumeError: there are no cases, or one is unfit.
    """
    manifest = bundle.manifest
    seed = manifest.training.get("config", {}).get("seed", 0)
    domain = training_domain(cohort, manifest.spacing_mm, manifest.normaliser, seed)
    training = {**manifest.training, "domain": domain.model_dump(mode="json")}
    bundles.write_manifest(bundle.path, manifest.model_copy(update={"training": training}))
    return bundles.load(bundle.path)
