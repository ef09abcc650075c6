"""A page as a list of blocks, rendered once as HTML and once as Markdown. Text is escaped here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal
from urllib.parse import quote

from research.text import clean


@dataclass(frozen=True)
class Link:
    """Text that leads to an id on this page (`#...`), a file beside it, or a source on the web."""

    text: str
    target: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed width."""

    text: str


@dataclass(frozen=True)
class Anchor:
    """Text that can be linked to."""

    text: str
    id: str


Span = str | Link | Code | Anchor
Line = Span | Sequence[Span]


@dataclass(frozen=True)
class Banner:
    """The verdict. kind colours it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    line: Line


@dataclass(frozen=True)
class Table:
    """Rows of lines below a head. align: one letter a column, l or r."""

    head: Sequence[str]
    rows: Sequence[Sequence[Line]]
    align: str


@dataclass(frozen=True)
class Figure:
    """A plot. name: of its file beside the Markdown page, without ending."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Listing:
    """Lines to copy, or a diff (lines that begin with + or -)."""

    text: str
    kind: Literal["", "diff"] = ""


Block = Banner | Heading | Paragraph | Table | Figure | Listing

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2933;
  background: #fff; max-width: 62rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #d9dee4;
  break-after: avoid; }
p { margin: .6rem 0; max-width: 52rem; }
a { color: #1d4f8c; text-decoration: none; } a:hover { text-decoration: underline; }
.banner { font-size: 1.12rem; padding: .9rem 1.1rem; border-left: 5px solid #5b6472; background: #f3f5f7;
  max-width: none; }
.banner.proven { border-color: #2f855a; background: #eef7f1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .7rem 0; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #9aa5b1; }
th, td { padding: .22rem .9rem .22rem 0; vertical-align: top; } td { border-bottom: 1px solid #e6eaee; }
.r { text-align: right; white-space: nowrap; } th.r { white-space: normal; vertical-align: bottom; }
tr:target, tr:has(:target) { background: #fff4ce; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
pre { background: #f6f8fa; padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.old { color: #a02b2b; } .new { color: #1e6b41; }
figure { margin: 1rem 0; break-inside: avoid; } figure svg { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #52606d; max-width: 45rem; }
@media print { body { font-size: 10.5pt; padding: 0; max-width: none; } a { color: inherit; }
  tr { break-inside: avoid; } table { font-size: 8pt; } .scroll { overflow: visible; } }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One self-contained page: no script, no font, no image is fetched."""
    body = "\n".join(_html(block) for block in blocks)
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
            f"<body>\n<h1>{_text(title)}</h1>\n{body}\n</body>\n</html>\n")


def _text(text: str) -> str:
    return escape(clean(text))


def _html(block: Block) -> str:
    match block:
        case Banner(kind, text):
            return f'<p class="banner {kind}">{_text(text)}</p>'
        case Heading(text):
            return f"<h2>{_text(text)}</h2>"
        case Paragraph(line):
            return f"<p>{_html_line(line)}</p>"
        case Figure(_, svg, caption):
            return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"
        case Listing(text, kind):
            return "<pre>" + "\n".join(_html_row(row, kind) for row in text.splitlines()) + "</pre>"
        case Table(head, rows, align):
            marks = ['<{} class="r">' if a == "r" else "<{}>" for a in align]
            top = "".join(m.format("th") + _text(h) + "</th>" for m, h in zip(marks, head, strict=True))
            body = "\n".join("<tr>" + "".join(m.format("td") + _html_line(c) + "</td>" for m, c in zip(
                marks, row, strict=True)) + "</tr>" for row in rows)
            table = f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
            return f'<div class="scroll">{table}</div>'


def _html_row(row: str, kind: str) -> str:
    side = {"-": "old", "+": "new"}.get(row[:1]) if kind == "diff" else None
    return f'<span class="{side}">{_text(row)}</span>' if side else _text(row)


def _html_line(line: Line) -> str:
    return "".join(_html_span(span) for span in _spans(line))


def _html_span(span: Span) -> str:
    match span:
        case Link(text, target):
            return f'<a href="{_text(target)}">{_text(text)}</a>'
        case Code(text):
            return f"<code>{_text(text)}</code>"
        case Anchor(text, id_):
            return f'<span id="{_text(id_)}">{_text(text)}</span>'
        case _:
            return _text(span)


def to_markdown(title: str, blocks: Sequence[Block], folder: str) -> str:
    """The same page as Markdown; figures are files in `folder`."""
    return f"# {_plain(title)}\n\n" + "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Banner(_, text):
            return f"> **{_plain(text)}**"
        case Heading(text):
            return f"## {_plain(text)}"
        case Paragraph(line):
            return _markdown_line(line)
        case Figure(name, _, caption):
            return f"![{_plain(caption)}]({folder}/{name}.svg)\n\n*{_plain(caption)}*"
        case Listing(text, kind):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return "\n".join([fence + kind, *map(clean, text.splitlines()), fence])
        case Table(head, rows, align):
            lines = [[_plain(h) for h in head], ["--:" if a == "r" else ":--" for a in align]]
            lines += [[_markdown_line(cell) for cell in row] for row in rows]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_line(line: Line) -> str:
    return "".join(_markdown_span(span) for span in _spans(line))


def _markdown_span(span: Span) -> str:
    match span:
        case Link(text, target):
            return f"[{_plain(text)}]({quote(target, safe='/#:?=&%')})"
        case Code(text):
            return f"<code>{_plain(text)}</code>"
        case Anchor(text, id_):
            return f'<a id="{_text(id_)}"></a>{_plain(text)}'
        case _:
            return _plain(span)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", escape(clean(text), quote=False))


def _spans(line: Line) -> Sequence[Span]:
    return [line] if isinstance(line, str | Link | Code | Anchor) else line
