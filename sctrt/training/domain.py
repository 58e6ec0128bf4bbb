"""What PETs a model was trained on, written into its bundle, so that a synthesis can say what is unlike them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from .. import bundle as bundles
from .. import nifti
from ..bundle import Bundle, Manifest, Normaliser
from ..domain import Domain, Features, domain_of
from ..errors import VolumeError
from ..preprocess import network_input
from .augment import MIN_PART, part, random_rows

PARTS = 16  # of a tall case, drawn as training draws its one: with 4 the ends still shift with the seed by a tenth


def training_domain(pets: list[Path], spacing_mm: float, normaliser: Normaliser, seed: int = 0) -> Domain:
    """The range of each feature over PETs, and over parts of them, drawn as training draws them.

    Args:
        pets: NIfTI files that were trained on.
        spacing_mm: of the model.
        normaliser: of the model.
        seed: of the recipe; it names the parts.

    Raises:
        VolumeError: a PET is unfit.
    """
    rng = np.random.default_rng(seed)
    found: list[Features] = []
    for path in pets:
        pet = nifti.load(path)
        z = pet.shape[0]
        parts = [random_rows(z, rng) for _ in range(PARTS)] if z > MIN_PART else []
        found.append(network_input(pet, spacing_mm, normaliser).features)
        for rows in parts:
            with suppress(VolumeError):  # too little of a body to be a scan of its own
                found.append(network_input(part(pet, rows), spacing_mm, normaliser).features)
    return domain_of(found)


def add_domain(bundle: Bundle, pets: list[Path]) -> Bundle:
    """Writes into a bundle's manifest what it was trained on; networks, weights and codebook stay as they are.

    Args:
        bundle: that was trained on the PETs.
        pets: NIfTI files.

    Returns:
        The bundle, read back and checked; its fingerprint is another.

    Raises:
        VolumeError: a PET is unfit.
    """
    bundles.write_manifest(bundle.path, with_domain(bundle.manifest, pets))
    return bundles.load(bundle.path)


def with_domain(manifest: Manifest, pets: list[Path]) -> Manifest:
    """The manifest of a model that was trained on these PETs; none leave it as it is.

    Raises:
        VolumeError: a PET is unfit.
    """
    if not pets:
        return manifest
    seed = manifest.training.get("config", {}).get("seed", 0)
    domain = training_domain(pets, manifest.spacing_mm, manifest.normaliser, seed)
    training = {**manifest.training, "domain": domain.model_dump(mode="json")}
    return manifest.model_copy(update={"training": training})
