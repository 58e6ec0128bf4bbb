"""Which autoencoder reconstructs CTs best: the test by which the first stage of a network is chosen.

Each candidate reconstructs CT slices of all three planes, as it is and after a little fine-tuning, and the errors are
ranked. Every pixel of a slice counts, air too, where a slice holds any body; padding does not count.

Source: arXiv 2504.07450, which compares pre-trained autoencoders by the MSE of CT-to-CT reconstruction.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import SingleDeviceStrategy
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .. import bundle as bundles
from .. import nifti
from ..cases import CT
from ..checks import check_ct
from ..errors import BundleError, VolumeError
from ..model.autoencoder import VQAutoencoder
from ..model.checkpoint import load_autoencoder
from ..planes import PLANES, Plane, padded_size, slice_axis
from ..preprocess import AIR_INPUT, model_grid, to_grid
from ..units import BONE_ABOVE, HU_AIR, HU_MAX, HU_MIN, hu_to_network, network_to_hu
from . import cohort as cohorts
from .cache import without_padding
from .codebook import CodebookFollower
from .fitting import perplexity

BODY_ABOVE = -300.0  # HU; a slice without a voxel above is left out
PSNR_RANGE = HU_MAX - HU_MIN  # HU
PIXELS = 12000  # of a batch, about
LEARNING_RATE = 1e-5  # source: arXiv 2504.07450
COMMITMENT = 0.25
CODEBOOK_DECAY = 0.99
TUNED_SHARE = 0.5  # of the patients
STATES = {"as_is": "as it is", "fine_tuned": "fine-tuned"}  # of a candidate


@dataclass(frozen=True)
class CtScan:
    """One CT on the grid of the test."""

    name: str
    patient: str
    hu: NDArray[np.float32]  # [z, y, x] clipped to what a network can say


def find_cts(folder: Path) -> list[Path]:
    """`*/ct.nii.gz` below the folder, or, where there is none, its own `*.nii.gz`.

    Raises:
        VolumeError: there are neither.
    """
    found = sorted(folder.glob("*/ct.nii.gz")) or sorted(folder.glob("*.nii.gz"))
    if not found:
        raise VolumeError(f"expected CTs in {folder}, as NAME/ct.nii.gz or NAME.nii.gz, found none; check the folder")
    return found


def patient_of(path: Path) -> str:
    """Whose CT it is: a case's where its `meta.json` is of use (`cohort.patient_of`); else each is one of its own."""
    if path.name != CT:
        return path.name.removesuffix(".nii.gz")
    try:
        return cohorts.patient_of(path.parent).removesuffix(".nii.gz")
    except (OSError, ValueError, TypeError):
        return path.parent.name


def load_ct(path: Path, spacing_mm: float) -> CtScan:
    """Reads a CT and resamples it to cubic voxels.

    Raises:
        VolumeError: unreadable, or no CT in HU.
    """
    volume = nifti.load(path, unit="HU")
    check_ct(volume, str(path))
    hu = to_grid(without_padding(volume), model_grid(volume, spacing_mm), fill=HU_AIR).clip(HU_MIN, HU_MAX)
    name = path.parent.name if path.name == CT else path.name.removesuffix(".nii.gz")
    return CtScan(name, patient_of(path), hu)


def split_patients(scans: list[CtScan], seed: int) -> tuple[list[CtScan], list[CtScan]]:
    """CTs to fine-tune on and CTs to measure on, of different patients.

    Raises:
        VolumeError: they are all one patient's.
    """
    patients = sorted({scan.patient for scan in scans})
    if len(patients) < 2:
        raise VolumeError(
            f"expected CTs of two patients or more, to fine-tune on some and measure on others, got {patients}; "
            "add CTs, or leave --fine-tune out"
        )
    shuffled = np.random.default_rng(seed).permutation(patients).tolist()
    tuned = set(shuffled[: round(TUNED_SHARE * len(patients))])
    return [s for s in scans if s.patient in tuned], [s for s in scans if s.patient not in tuned]


def slices_of(scan: CtScan, plane: Plane, every: int) -> NDArray[np.float32]:
    """Every n-th slice [N, H, W] of a plane, HU, from the middle of the first n on, of those that hold body."""
    slices = np.moveaxis(scan.hu, slice_axis(plane), 0)[every // 2 :: every]
    return slices[(slices > BODY_ABOVE).any(axis=(1, 2))]


def as_input(hu: NDArray[np.float32], factor: int) -> Tensor:
    """Slices [N, H, W] HU -> [N, 1, H', W'] in [-1, 1], padded at the end with air to multiples of the factor."""
    height, width = padded_size(hu.shape, "axial", factor)  # type: ignore[arg-type]
    pad = ((0, 0), (0, height - hu.shape[1]), (0, width - hu.shape[2]))
    return torch.from_numpy(np.pad(hu_to_network(hu), pad, constant_values=AIR_INPUT))[:, None]


def batches(scan: CtScan, every: int) -> Iterator[NDArray[np.float32]]:
    """All slices that are measured, some [N, H, W] at a time, HU."""
    for plane in PLANES:
        slices = slices_of(scan, plane, every)
        count = max(1, PIXELS // max(1, slices[0].size if len(slices) else 1))
        yield from (slices[i : i + count] for i in range(0, len(slices), count))


@torch.inference_mode()
def measure(model: VQAutoencoder, scans: list[CtScan], every: int) -> dict[str, Any]:
    """Errors of the reconstructions of all slices together, and of each CT; and the codes that they use."""
    a = model.architecture
    device = next(model.parameters()).device
    used = np.zeros(a.codes, np.int64)
    sums: dict[str, NDArray[np.float64]] = {}
    for scan in scans:
        total = np.zeros(6)
        for hu in batches(scan, every):
            latent = model.encode(as_input(hu, a.factor).to(device).expand(-1, a.input_channels, -1, -1))
            quantised, index = model.quantize(latent)
            decoded = model.decode(quantised).mean(dim=1)[:, : hu.shape[1], : hu.shape[2]].cpu().numpy()
            used += np.bincount(index.flatten().cpu().numpy(), minlength=a.codes)
            predicted = network_to_hu(decoded.astype(np.float64))
            error, bone, guess = predicted - hu, hu > BONE_ABOVE, predicted > BONE_ABOVE
            terms = [hu.size, np.square(error).sum(), np.abs(error).sum(), (bone & guess).sum(), bone.sum()]
            total += [*terms, guess.sum()]
        sums[scan.name] = total
    return {
        **_errors(sum(sums.values(), np.zeros(6))),
        "codes": int((used > 0).sum()),
        "perplexity": float(perplexity(torch.from_numpy(used))),
        "latents": int(used.sum()),
        "cts": {name: _errors(total) for name, total in sums.items()},
    }


def _errors(sums: NDArray[np.float64]) -> dict[str, float | None]:
    pixels, squared, absolute, both, bone, guess = sums.tolist()
    mse = squared / pixels if pixels else math.nan
    return {
        "mse_hu2": mse,
        "mae_hu": absolute / pixels if pixels else math.nan,
        "psnr_db_range_4000": 10 * math.log10(PSNR_RANGE**2 / mse) if mse > 0 else None,
        "bone_dice_200": 2 * both / (bone + guess) if bone + guess else None,
        "pixels": pixels,
    }


def fine_tune(
    model: VQAutoencoder, scans: list[CtScan], steps: int, learning_rate: float, seed: int
) -> tuple[VQAutoencoder, float]:
    """A copy of the network, all its layers tuned to CTs by the L1 error; the codebook follows its latents.

    Returns:
        The network, and the mean L1 error in network units of the last tenth of the steps.
    """
    tuned = copy.deepcopy(model).train()
    tuned.quantize.requires_grad_(False)
    device = next(tuned.parameters()).device
    follower = CodebookFollower(tuned.quantize, CODEBOOK_DECAY).to(device)
    follower.go_on()
    strategy = SingleDeviceStrategy(device)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=learning_rate)
    rng = np.random.default_rng(seed)
    errors = []
    for step in range(steps):
        image = as_input(_random_slices(scans, rng), tuned.architecture.factor).to(device)
        quantised, commitment = follower(tuned.encode(image.expand(-1, tuned.architecture.input_channels, -1, -1)))
        error = F.l1_loss(tuned.decode(quantised).mean(dim=1, keepdim=True), image)
        optimizer.zero_grad()
        (error + COMMITMENT * commitment).backward()
        optimizer.step()
        follower.follow(strategy, seed + step)
        errors.append(error.item())
    return tuned.eval().requires_grad_(False), float(np.mean(errors[-max(1, steps // 10) :]))


def _random_slices(scans: list[CtScan], rng: np.random.Generator) -> NDArray[np.float32]:
    """[N, H, W] HU of one CT and one plane, about `PIXELS` pixels."""
    scan = scans[rng.integers(len(scans))]
    slices = slices_of(scan, PLANES[rng.integers(len(PLANES))], every=1)
    if not len(slices):
        return scan.hu[:1]
    return slices[rng.integers(len(slices), size=max(1, PIXELS // slices[0].size))]


def select(
    checkpoints: list[Path],
    cohort: Path,
    *,
    fine_tune_steps: int = 0,
    learning_rate: float = LEARNING_RATE,
    every: int = 8,
    spacing_mm: float = 4.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the test on each candidate.

    Args:
        checkpoints: see `load_autoencoder`; one that cannot be read is listed with its reason.
        cohort: folder of CTs, see `find_cts`.
        fine_tune_steps: 0 measures on all CTs and tunes on none; else part of the patients is tuned on, and both
            measurements are made on the others.
        learning_rate: of the fine-tuning.
        every: n-th slice is measured.
        spacing_mm: that CTs are resampled to.
        seed: of the split and of the fine-tuning.
        say: called with a line for each candidate.

    Returns:
        JSON-like: what was measured on, and `candidates` from the smallest MSE to the largest, then those that failed.

    Raises:
        VolumeError: there are no CTs, one is unfit, or, to be tuned on, they are of one patient.
    """
    scans = [load_ct(path, spacing_mm) for path in find_cts(cohort)]
    tuned_on, measured_on = split_patients(scans, seed) if fine_tune_steps else ([], scans)
    if not any(len(slices) for scan in measured_on for slices in batches(scan, every)):
        raise VolumeError(f"expected CTs with body, got no voxel above {BODY_ABOVE:g} HU in the slices measured")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = []
    for path in checkpoints:
        try:
            model = load_autoencoder(path).to(device).eval().requires_grad_(False)
        except BundleError as error:
            candidates.append({"checkpoint": str(path), "failed": str(error)})
            say(f"{path}: left out: {error}")
            continue
        found: dict[str, Any] = {"checkpoint": str(path), "sha256": _digest(path)}
        found["architecture"] = model.architecture.model_dump()
        found["as_is"] = measure(model, measured_on, every)
        if fine_tune_steps:
            tuned, error = fine_tune(model.requires_grad_(True), tuned_on, fine_tune_steps, learning_rate, seed)
            found["fine_tuned"] = {**measure(tuned, measured_on, every), "last_training_l1": error}
        candidates.append(found)
        errors = [f"{found[state]['mse_hu2']:.0f} {label}" for state, label in STATES.items() if state in found]
        say(f"{path}: MSE [HU^2] {', '.join(errors)}")
    return {
        "cohort": str(cohort),
        "measured_on": [scan.name for scan in measured_on],
        "tuned_on": [scan.name for scan in tuned_on],
        "fine_tune_steps": fine_tune_steps,
        "learning_rate": learning_rate,
        "every": every,
        "spacing_mm": spacing_mm,
        "seed": seed,
        "psnr_range_hu": PSNR_RANGE,
        "candidates": sorted(candidates, key=_rank),
    }


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a bundle's folder, that of its manifest, which has all others."""
    return bundles.sha256(path / bundles.MANIFEST if path.is_dir() else path)


def _rank(candidate: dict[str, Any]) -> float:
    """Its smallest MSE; infinity where there is none."""
    found = [candidate[state]["mse_hu2"] for state in STATES if state in candidate]
    return min((mse for mse in found if math.isfinite(mse)), default=math.inf)


def table_of(report: dict[str, Any]) -> Table:
    """For people: a row a candidate and state, from the smallest MSE to the largest; the best has a star."""
    rows = [
        (state["mse_hu2"], candidate["checkpoint"], label, state)
        for candidate in report["candidates"]
        for key, label in STATES.items()
        if (state := candidate.get(key))
    ]
    rows.sort(key=lambda row: row[0] if math.isfinite(row[0]) else math.inf)
    table = Table(
        title=f"CT to CT: {len(report['measured_on'])} CTs, {report['spacing_mm']:g} mm, 1 slice in {report['every']}",
        caption=f"PSNR: range {report['psnr_range_hu']:g} HU. Dice: bone above {BONE_ABOVE:g} HU.",
    )
    for heading in ("", "checkpoint", ""):
        table.add_column(heading, overflow="fold")
    for heading in ("MSE [HU^2]", "MAE [HU]", "PSNR [dB]", "Dice", "codes", "perplexity"):
        table.add_column(heading, justify="right")
    names = _short({row[1] for row in rows})
    for i, (mse, checkpoint, label, state) in enumerate(rows):
        psnr, dice = state["psnr_db_range_4000"], state["bone_dice_200"]
        shown = [f"{mse:.0f}", f"{state['mae_hu']:.1f}"]
        shown += ["-" if psnr is None else f"{psnr:.2f}", "-" if dice is None else f"{dice:.3f}"]
        shown += [f"{state['codes']} / {_codes(report, checkpoint)}", f"{state['perplexity']:.0f}"]
        table.add_row("" if i else "*", Text(names[checkpoint]), label, *shown)
    return table


def _short(checkpoints: set[str]) -> dict[str, str]:
    """Each path without what all have in front, and without the name of a stage's file: a table has little room."""
    common = os.path.commonpath([os.path.abspath(path) for path in checkpoints]) if len(checkpoints) > 1 else ""
    names = {path: os.path.relpath(path, common) if common else path for path in checkpoints}
    return {path: name.removesuffix(f"{os.sep}last.ckpt") for path, name in names.items()}


def _codes(report: dict[str, Any], checkpoint: str) -> int:
    return next(c["architecture"]["codes"] for c in report["candidates"] if c["checkpoint"] == checkpoint)
