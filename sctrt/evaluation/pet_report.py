"""Errors of corrected PETs as tables: tissues, lesions, and the metrics of BIC-MAC; of one case, or means of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .cohort import Mean
from .html import Table
from .pet_bic_mac import NAMES
from .pet_error import LesionError, PetError
from .report import MISSING
from .summary import cell, markdown_table


def pet_markdown(errors: Mapping[str, PetError], *, note: str | None = None) -> str:
    """The tables of one case as Markdown; `note` is a paragraph below."""
    tables = [markdown_table(table.headings, table.rows) for table in pet_tables(errors)]
    return "\n".join([*tables, *([f"{note}\n"] if note else [])])


def pet_tables(errors: Mapping[str, PetError]) -> list[Table]:
    """One line a map: mean error of each tissue, |error| and 5th to 95th percentile, lesions, BIC-MAC.

    Args:
        errors: name of the map -> errors, all with the same tissues.
    """
    if not errors:
        raise ValueError("expected the errors of at least one PET, got none")
    names = list(next(iter(errors.values())).tissues)
    mean = {key: [cell(e.tissues[n].mean_percent, "+.1f") for n in names] for key, e in errors.items()}
    absolute = {key: [cell(e.tissues[n].absolute_percent, ".1f") for n in names] for key, e in errors.items()}
    tables = [
        _table("Mean error [%]", names, mean),
        _table("Absolute error [% of the tissue's mean]", names, absolute),
        _ranges(errors, names),
    ]
    if any(error.lesions for error in errors.values()):
        tables.append(_lesions(errors))
    return [*tables, _bic_mac(errors)]


def pet_mean_tables(found: Mapping[str, Mean]) -> list[Table]:
    """Of a cohort: mean error of each tissue by map, with its interval over cases; none where no case has a PET.

    Args:
        found: of `cohort.means`, by dotted name.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, one in found.items():
        if name.startswith(MAPS) and name.endswith(MEAN_PERCENT):
            key, _, tissue = name.removeprefix(MAPS).removesuffix(MEAN_PERCENT).partition(".tissues.")
            if tissue:
                rows.setdefault(key, {})[tissue] = _with_interval(one)
    if not rows:
        return []
    tissues = list(dict.fromkeys(tissue for row in rows.values() for tissue in row))
    cells = {key: [row.get(tissue, MISSING) for tissue in tissues] for key, row in rows.items()}
    return [_table("Mean SUV error [%], mean over cases (interval)", tissues, cells)]


MAPS, MEAN_PERCENT = "pet_ac.maps.", ".mean_percent"  # of a case's dotted names


def _with_interval(one: Mean) -> str:
    mean = cell(one.mean, "+.1f")
    return mean if one.low is None else f"{mean} ({cell(one.low, '+.1f')} to {cell(one.high, '+.1f')})"


def _ranges(errors: Mapping[str, PetError], names: Sequence[str]) -> Table:
    def one(error: PetError, name: str) -> str:
        tissue = error.tissues[name]
        return MISSING if tissue.p5_percent is None else f"{tissue.p5_percent:+.1f} to {tissue.p95_percent:+.1f}"

    rows = {key: [one(error, name) for name in names] for key, error in errors.items()}
    return _table("Voxels, 5th to 95th percentile [%]", names, rows)


def _lesions(errors: Mapping[str, PetError]) -> Table:
    """Mean and worst over the lesions."""
    rows = {}
    for name, error in errors.items():
        means = error.lesion_means
        rows[name] = [str(len(error.lesions))]
        for field in ("max_percent", "peak_percent"):
            rows[name] += [cell(means[field], "+.1f"), cell(_worst(error.lesions, field), "+.1f")]
    heads = ["lesions", "SUVmax, mean [%]", "SUVmax, worst [%]", "SUVpeak, mean [%]", "SUVpeak, worst [%]"]
    return _table("Lesions", heads, rows)


def _worst(lesions: Iterable[LesionError], field: str) -> float | None:
    values = [value for lesion in lesions if (value := getattr(lesion, field)) is not None]
    return max(values, key=abs, default=None)


def _bic_mac(errors: Mapping[str, PetError]) -> Table:
    rows = {
        name: [cell(getattr(error.bic_mac, field), layout) for field, (_, layout) in NAMES.items()]
        for name, error in errors.items()
    }
    return _table("As BIC-MAC defines them", [heading for heading, _ in NAMES.values()], rows)


def _table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    return Table([title, *heads], [[name, *cells] for name, cells in rows.items()])
