"""Tables for people: drawn on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from .tables import Table

BOLD = "**"
MARKS = ("WRONG", "INEXACT", "BEYOND")  # of outputs that differ by more than they may


def show(tables: Iterable[Table], console: Console) -> None:
    """Prints tables."""
    for table in tables:
        if console.is_terminal:
            console.print(_drawn(table))
        else:
            console.print(plain(table), end="\n\n", markup=False, highlight=False, soft_wrap=True)


def _drawn(table: Table) -> Drawn:
    caption = table.caption or None
    made = Drawn(title=table.title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(table.headings):
        made.add_column(heading, justify="right" if i else "left")
    for row in table.rows:
        title = row[0].startswith(BOLD)
        style = "bold" if title else "red" if any(mark in row[0] for mark in MARKS) else ""
        made.add_row(*(Text(cell.strip("*") if title else cell) for cell in row), style=style)
    return made


def plain(table: Table) -> str:
    """Columns aligned by spaces."""
    lines = [list(table.headings), *table.rows]
    widths = [max(len(line[i]) for line in lines if not line[0].startswith(BOLD)) for i in range(len(table.headings))]
    text = [table.title]
    for line in lines:
        if line[0].startswith(BOLD):
            text.append(line[0].strip("*"))
            continue
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        text.append("  ".join([first, *rest]).rstrip())
    return "\n".join([*text, *([table.caption] if table.caption else [])])


def markdown(table: Table, title: bool = True) -> str:
    """For documents; ends without a newline."""
    lines = [f"**{table.title}**", ""] if title else []
    lines += [f"| {' | '.join(table.headings)} |", f"| --- |{' ---: |' * (len(table.headings) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join([*lines, *(["", table.caption] if table.caption else [])])
