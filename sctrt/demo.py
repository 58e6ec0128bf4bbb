"""The demonstration: an unseen simulated body, its synthetic CT, the truth and trivial guesses side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from .cases import save_case, simulate_case
from .evaluation import baselines, metrics, report
from .files import write_json
from .pipeline import Progress, Synthesizer
from .preview import save_preview

READING = """Water, the soft-tissue mean and the 4 classes (air, lung, fat, soft) are made from the true CT.
Look at {folder}/preview.png: are the lungs dark and whole, is bone where bone is, does the outline fit?
Uncertainty (uncertainty.nii.gz) is large where the three planes disagree: trust the CT less there.
The CT is {folder}/ct_synthetic.nii.gz, the truth {folder}/ct.nii.gz, the attenuation map {folder}/mu.nii.gz.
{note}"""


@dataclass(frozen=True)
class Demo:
    """What the demonstration shows."""

    table: Table
    reading: str


def run_demo(folder: Path, seed: int, *, say: Callable[[str], None], progress: Progress | None = None) -> Demo:
    """Simulates, synthesises, compares; writes everything to `folder`.

    Args:
        folder: created where it is missing.
        seed: of the body.
        say: called with a line of text before each stage of the simulation.
        progress: of the synthesis.
    """
    phantom, nac = simulate_case(seed, progress=say)
    save_case(folder, phantom, nac, {"seed": seed})
    synthesizer = Synthesizer()
    result = synthesizer(nac, progress=progress)
    result.ct.save(folder / "ct_synthetic.nii.gz")
    result.uncertainty.save(folder / "uncertainty.nii.gz")
    result.mu_map().save(folder / "mu.nii.gz")
    save_preview(folder / "preview.png", nac, result.ct, result.uncertainty, phantom.ct)
    guesses = {
        "synthetic CT": result.ct,
        "water": baselines.water(phantom.ct),
        "soft-tissue mean": baselines.soft_mean(phantom.ct),
        "4 classes": baselines.four_class(phantom.ct),
    }
    rows = {name: metrics.compare(guess, phantom.ct) for name, guess in guesses.items()}
    write_json(
        folder / "report.json", {**result.report, "metrics": {name: row.model_dump() for name, row in rows.items()}}
    )
    reading = READING.format(folder=folder, note=report.PHANTOM_NOTE)
    return Demo(report.table(rows), reading)
