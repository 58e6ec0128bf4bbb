"""Errors of corrected PETs as Markdown tables: tissues, lesions, and the metrics of BIC-MAC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .pet_error import LesionError, PetError

MISSING = "-"


def pet_markdown(errors: Mapping[str, PetError], *, note: str | None = None) -> str:
    """One line a map: mean error of each tissue, |error| and 5th to 95th percentile, lesions, BIC-MAC; `note` ends it.

    Args:
        errors: name of the map -> errors, all with the same tissues.
        note: a paragraph below the tables.
    """
    if not errors:
        raise ValueError("expected the errors of at least one PET, got none")
    names = list(next(iter(errors.values())).tissues)
    parts = [
        ("Mean error [%]", names, [[e.tissues[n].mean_percent for n in names] for e in errors.values()], "+.1f"),
        (
            "Absolute error [% of the tissue's mean]",
            names,
            [[e.tissues[n].absolute_percent for n in names] for e in errors.values()],
            ".1f",
        ),
    ]
    tables = [_table(title, heads, dict(zip(errors, rows, strict=True)), form) for title, heads, rows, form in parts]
    tables.append(_ranges(errors, names))
    if any(error.lesions for error in errors.values()):
        tables.append(_lesions(errors))
    tables.append(_bic_mac(errors))
    return "\n".join([*tables, *([f"{note}\n"] if note else [])])


def _ranges(errors: Mapping[str, PetError], names: Sequence[str]) -> str:
    def one(error: PetError, name: str) -> str:
        tissue = error.tissues[name]
        return MISSING if tissue.p5_percent is None else f"{tissue.p5_percent:+.1f} to {tissue.p95_percent:+.1f}"

    rows = {key: [one(error, name) for name in names] for key, error in errors.items()}
    return _table("Voxels, 5th to 95th percentile [%]", names, rows)


def _lesions(errors: Mapping[str, PetError]) -> str:
    """Mean and worst over the lesions."""
    rows = {
        name: [
            str(len(error.lesions)),
            *(text for field in ("max_percent", "peak_percent") for text in _mean_and_worst(error.lesions, field)),
        ]
        for name, error in errors.items()
    }
    heads = ["lesions", "SUVmax, mean [%]", "SUVmax, worst [%]", "SUVpeak, mean [%]", "SUVpeak, worst [%]"]
    return _table("Lesions", heads, rows)


def _mean_and_worst(lesions: Iterable[LesionError], field: str) -> tuple[str, str]:
    values = [value for value in (getattr(lesion, field) for lesion in lesions) if value is not None]
    return (f"{np.mean(values):+.1f}", f"{max(values, key=abs):+.1f}") if values else (MISSING, MISSING)


def _bic_mac(errors: Mapping[str, PetError]) -> str:
    rows = {
        name: [_text(b.suv_mae, ".4f"), _text(b.organ_bias_percent, ".2f"), _text(b.brain_outlier, ".3f")]
        for name, b in ((name, error.bic_mac) for name, error in errors.items())
    }
    return _table("As BIC-MAC defines them", ["SUV MAE", "organ bias [%]", "brain outlier"], rows)


def _table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str | float | None]], form: str = "") -> str:
    lines = [[title, *heads], ["---"] + ["---:"] * len(heads)]
    lines += [
        [name, *(cell if isinstance(cell, str) else _text(cell, form) for cell in row)] for name, row in rows.items()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
