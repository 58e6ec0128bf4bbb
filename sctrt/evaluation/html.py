"""One HTML page that holds all it shows: no network, no script, pictures inside; opens on a hospital PC."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html import escape

# The browser itself refuses whatever is not in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid #ccc; padding-top: 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; border-bottom: 1px solid #e4e4e4 }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums } th { text-align: left; font-weight: 600 }
img { max-width: 100%; height: auto; margin: .5rem 1rem .5rem 0; vertical-align: top }
.warning { border-left: .3rem solid #d55e00; padding: .3rem .8rem; background: #fdf1e9 }
.note { color: #555 } .wide { overflow-x: auto }
@media print { body { max-width: none } h2 { break-before: auto } img, table { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Table:
    """Headings and rows of text."""

    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page; whoever measures something else adds one."""

    title: str
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, bytes]] = field(default_factory=list)  # what it shows, PNG


def page(title: str, sections: list[Section], foot: str) -> str:
    """The whole page.

    Args:
        title: plain text, as all that is passed.
        sections: from top to bottom.
        foot: a line at the end, of where it comes from.
    """
    body = "\n".join(_section(one) for one in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'{body}\n<p class="note">{escape(foot)}</p>\n</body>\n</html>\n'
    )


def _section(one: Section) -> str:
    parts = [f"<h2>{escape(one.title)}</h2>"]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in one.warnings]
    parts += [f'<p class="note">{escape(text)}</p>' for text in one.notes]
    parts += [_table(table) for table in one.tables]
    parts += [_figure(alt, png) for alt, png in one.figures]
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.headings)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>\n" for row in table.rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{rows}</table></div>'


def _figure(alt: str, png: bytes) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
