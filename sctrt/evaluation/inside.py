"""What was found inside a model on a PET with known CT: one record, and tables of one case or the mean of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

from . import html, summary
from .codebook import ALL_PLANES, REGIONS, CodebookUse, CodeUse
from .expected_lines import ExpectedError
from .fusions import MEDIAN, ROWS, Numbers, compared

READING = (
    "Perplexity is exp(entropy) of the codes' shares: so many codes used evenly say as much. Fusions are compared on "
    "the same predictions. A spread says how far planes lie apart; it cannot see an error that all of them make."
)
WAYS = {  # of expecting a line's error -> in words
    "range": "planes' own integrals, range",
    "sd": "planes' own integrals, SD",
    "correlated": "spread of voxels, correlated",
    "independent": "spread of voxels, independent",
    "uniform": "the body's mean spread everywhere",
}


class Examination(BaseModel):
    """Of one case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    notes: list[str]
    warnings: list[str]
    codebook: CodebookUse
    fusions: dict[str, Numbers]  # of `fusions.ROWS`, by fusion; one plane alone counts as one
    voxel_rank_correlation: float | None  # Spearman's, of spread and |error| in the body, of the median
    expected_lines: dict[str, ExpectedError]  # by `WAYS`, against the median's errors

    def better_than_median(self, fusion: str) -> tuple[int, int]:
        """In how many of the numbers that tell a fusion is better, and in how many worse."""
        return compared(self.fusions[fusion], self.fusions[MEDIAN])


def tables(found: Mapping[str, Examination]) -> dict[str, html.Table]:
    """By title; numbers are means over the cases that have them."""
    cases = list(found.values())
    made = {
        **_codebook(cases),
        "Fusions of the same predictions, and each plane alone": _fusions(cases),
        "Error to expect of the attenuation factor along a line, beside the median's true one": _ways(cases),
        "True error [%] by decile of the error to expect": _deciles(cases),
    }
    return {**made, "Case by case": _by_case(found)} if len(found) > 1 else made


def markdown(found: Mapping[str, Examination]) -> str:
    """All tables; ends in a newline."""
    parts = [f"{title}:\n\n{summary.markdown_table(t.headings, t.rows)}" for title, t in tables(found).items()]
    return "\n".join([*parts, f"{nearest(found)}\n"])


def nearest(found: Mapping[str, Examination]) -> str:
    """A sentence: which way of expecting a line's error comes nearest on average, and which ranks lines best."""
    by_way = {way: [case.expected_lines[way] for case in found.values()] for way in WAYS}
    off = {way: abs(sum(one.expected_percent - one.true_percent for one in lines)) for way, lines in by_way.items()}
    ranks = {way: _mean(one.rank_correlation or 0.0 for one in lines) for way, lines in by_way.items()}
    size, rank = min(off, key=lambda way: off[way]), max(ranks, key=lambda way: ranks[way] or 0.0)
    return f"Nearest in size on average: {WAYS[size]}. Best at ranking lines: {WAYS[rank]}."


def titled(found: Mapping[str, Examination]) -> list[html.Table]:
    """The same for a page, each title in its table's first heading."""
    return [html.Table([title, *table.headings[1:]], table.rows) for title, table in tables(found).items()]


def _codebook(cases: list[Examination]) -> dict[str, html.Table]:
    planes = list(cases[0].codebook.use)
    size = cases[0].codebook.size
    columns: list[tuple[str, Callable[[CodeUse], float], str]] = [
        (f"Codes used, of {size}", lambda use: use.codes, ".0f"),
        ("Perplexity", lambda use: use.perplexity, ".1f"),
        ("Share of the most used code [%]", lambda use: 100 * use.top_share, ".1f"),
    ]

    def row(region: str, number: Callable[[CodeUse], float], layout: str) -> list[str]:
        by_plane = [[case.codebook.use[plane][region] for case in cases] for plane in planes]
        return [summary.cell(_mean(number(use) for use in uses if use), layout) for uses in by_plane]

    headings = ["latents", *("all planes" if plane == ALL_PLANES else plane for plane in planes)]
    return {
        title: html.Table(headings, [[region, *row(region, number, layout)] for region in REGIONS])
        for title, number, layout in columns
    }


def _fusions(cases: list[Examination]) -> html.Table:
    names = list(cases[0].fusions)
    rows = []
    for heading, field, layout, _ in ROWS:
        values = [_mean(v for case in cases if (v := case.fusions[name][field]) is not None) for name in names]
        rows.append([heading, *(summary.cell(value, layout) for value in values)])
    rows.append(["Better : worse than the median, numbers of all cases", *(_score(cases, name) for name in names)])
    return html.Table(["", *names], rows)


def _score(cases: list[Examination], name: str) -> str:
    won, lost = np.sum([case.better_than_median(name) for case in cases], axis=0)
    return summary.MISSING if name == MEDIAN else f"{won} : {lost}"


def _ways(cases: list[Examination]) -> html.Table:
    headings = ["", "expected [%]", "true [%]", "expected / true", "rank correlation", "sparsification", "if ideal"]
    rows = []
    for way, words in WAYS.items():
        found = [case.expected_lines[way] for case in cases]
        numbers = [
            (_mean(one.expected_percent for one in found), ".2f"),
            (_mean(one.true_percent for one in found), ".2f"),
            (_ratio(found), ".2f"),
            (_mean(one.rank_correlation for one in found if one.rank_correlation is not None), ".3f"),
            (_mean(one.area_sparsification for one in found), ".3f"),
            (_mean(one.area_ideal for one in found), ".3f"),
        ]
        rows.append([words, *(summary.cell(value, layout) for value, layout in numbers)])
    return html.Table(headings, rows)


def _deciles(cases: list[Examination]) -> html.Table:
    rows = []
    for way, words in WAYS.items():
        true = [[decile.true_percent for decile in case.expected_lines[way].deciles] for case in cases]
        rows.append([words, *(f"{value:.1f}" for value in np.mean(true, axis=0))])
    return html.Table(["least expected first", *map(str, range(1, len(rows[0])))], rows)


def _by_case(found: Mapping[str, Examination]) -> html.Table:
    """What shows in a mean only if all cases are alike."""
    first = next(iter(found.values()))
    others = [name for name in first.fusions if name != MEDIAN]
    rows = []
    for name, case in found.items():
        use = case.codebook.use[ALL_PLANES]["body"]
        scores = [":".join(map(str, case.better_than_median(other))) for other in others]
        numbers = [summary.cell(use and use.codes, ".0f"), summary.cell(use and use.perplexity, ".0f")]
        rows.append([name, *numbers, summary.cell(case.voxel_rank_correlation, ".3f"), *scores])
    headings = ["", "codes in the body", "perplexity", "spread and error of voxels, rank correlation"]
    return html.Table([*headings, *(f"{name} : median" for name in others)], rows)


def _ratio(found: list[ExpectedError]) -> float | None:
    """Of the mean error to expect and the mean true one."""
    expected, true = (sum(getattr(one, f"{what}_percent") for one in found) for what in ("expected", "true"))
    return expected / true if true > 0 else None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None
