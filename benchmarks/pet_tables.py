"""Tables of corrected PETs for the documents, from benchmarks/results/*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sctrt.evaluation.pet_error import SYNTHETIC

RESULTS = Path(__file__).parent / "results"
TISSUES = ("body", "lung", "fat", "soft tissue", "bone", "brain", "heart", "liver")
# Of docs/physics.md: what is said, what tests/test_pet_ac.py holds one torso to, map, tissue.
KNOWN = (
    ("true map against itself: body", "0", "truth", "body"),
    ("no bone: bone", "-15 to -8", "no bone", "bone"),
    ("lungs 100 HU too dense: lung", "+8 to +18", "lungs 100 HU too dense", "lung"),
    ("contour 4 mm too wide (body MAE 0): soft tissue", "+3 to +10", "contour 4 mm too wide", "soft tissue"),
    ("4 classes: bone", "below soft tissue", "4 classes", "bone"),
    ("4 classes: soft tissue", "below 0", "4 classes", "soft tissue"),
    ("4 classes: brain", "", "4 classes", "brain"),
    ("water: lung", "above +50", "water", "lung"),
)


def honesty(content: dict[str, Any]) -> str:
    """Known effects: what the test holds, and what came out on several bodies."""
    torsos = [row for name, row in content["rows"].items() if name.startswith("torso")]
    (whole,) = (name for name in content["rows"] if name.startswith("body"))
    heads = ("mean SUV error [%]", "a test's torso", f"{len(torsos)} torsos, 8 mm", "without TOF", f"{whole}, 4 mm")
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for what, held, map_, tissue in KNOWN:
        ranges = [_range([row[scan][map_].get(tissue) for row in torsos]) for scan in ("385 ps", "no TOF")]
        lines.append(
            f"| {what} | {held} | {ranges[0]} | {ranges[1]} | {content['rows'][whole]['385 ps'][map_][tissue]:+.1f} |"
        )
    worst = max((error for row in torsos for error in row["recovery_percent"].values()), key=abs)
    recovery = "true map, unfiltered, 16 iterations, against the truth: worst tissue"
    lines.append(f"| {recovery} | within 2 | {worst:+.1f} | | |")
    return "\n".join([*lines, "", f"{content['note']} {_made(content)}\n"])


def corrected(content: dict[str, Any]) -> str:
    """Mean errors of each case's tissues by map, then the bodies' mean with lesions and BIC-MAC."""
    lines = [f"| mean SUV error [%] | {' | '.join(TISSUES)} | SUVmax of lesions |", "| --- |" + " ---: |" * 9]
    for case, maps in content["cases"].items():
        lines.append(f"| **{case}** |" + " |" * 9)
        for name, row in maps.items():
            cells = [_percent(row["tissues"].get(tissue, {}).get("mean_percent")) for tissue in TISSUES]
            lines.append(f"| {name} | {' | '.join(cells)} | {_percent(row['lesion_means']['max_percent'])} |")
    return "\n".join([*lines, "", _bodies(content), _warned(content), f"{content['note']} {_made(content)}\n"])


def _warned(content: dict[str, Any]) -> str:
    """Of which cases a synthesis says that they are unlike those trained on."""
    said = [f"{case}: {'; '.join(texts)}" for case, texts in content["outside_training"].items() if texts]
    others = len(content["outside_training"]) - len(said)
    return "Warned of as unlike those trained on: " + " ".join(
        [*(f"{one}." for one in said), f"{others} others not.\n"]
    )


def before_after(content: dict[str, Any]) -> str:
    """The shipped weights' synthetic CTs, and those before them."""
    before = json.loads((RESULTS / "corrected_pet_before.json").read_text())
    tissues = ("lung", "soft tissue", "bone", "brain")
    lines = [f"| mean SUV error [%] | {' | '.join(tissues)} | lines | contour [mm] |", "| --- |" + " ---: |" * 6]
    for case in content["cases"]:
        both = [
            [
                *(_percent(one["cases"][case][SYNTHETIC]["tissues"].get(t, {}).get("mean_percent")) for t in tissues),
                *(_percent(one[name][case]) for name in ("lines", "contour_mm")),
            ]
            for one in (before, content)
        ]
        cells = [a if a == b == "-" else f"{a} -> {b}" for a, b in zip(*both, strict=True)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{content['note']} {_made(content)}\n"])


def _bodies(content: dict[str, Any]) -> str:
    """Mean over the procedural bodies, with the bootstrap interval, and BIC-MAC's metrics."""
    found = content["mean_of_bodies"]
    heads = ("lung", "soft tissue", "bone", "brain")
    bic_mac = {"suv_mae": ".4f", "organ_bias_percent": ".2f", "brain_outlier": ".3f"}
    n = found[f"pet_ac.maps.{SYNTHETIC}.tissues.body.mean_percent"]["n"]
    first = f"mean of {n} bodies (95 % interval)"
    names = " | ".join([*(f"{head} [%]" for head in heads), "PET SUV MAE", "organ bias [%]", "brain outlier score"])
    lines = [f"| {first} | {names} |", "| --- |" + " ---: |" * 7]
    for map_ in next(iter(content["cases"].values())):
        means = [found[f"pet_ac.maps.{map_}.tissues.{head}.mean_percent"] for head in heads]
        cells = [f"{one['mean']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})" for one in means]
        cells += [
            format(found[f"pet_ac.maps.{map_}.bic_mac.{name}"]["mean"], layout) for name, layout in bic_mac.items()
        ]
        lines.append(f"| {map_} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _range(values: list[float | None]) -> str:
    """Smallest to largest of several bodies."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return f"{low:+.1f} to {high:+.1f}" if f"{low:+.1f}" != f"{high:+.1f}" else f"{low:+.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _made(content: dict[str, Any]) -> str:
    return f"`{content['command']}` at commit {content['commit']}, {content['device']}."
