"""Pages from templates, as HTML or as Markdown: one wording for both, over macros of the same names.

Whatever a template puts in is escaped here, for the form it is put into, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import Any, Literal
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jaxnano.config.edit import show
from research import text
from research.contract.trial import Trial

TD = "\x1f"  # between the cells of a row; `clean` leaves none in what comes from outside
Form = Literal["html", "md"]


def render(form: Form, template: str, title: str, **context: Any) -> str:
    """A page. HTML is self-contained: no script, no font, no image is fetched.

    Args: template: of the body, below templates/. context: what it reads.
    """
    page = environment(form).get_template(f"page.{form}").render(template=template, title=title, **context)
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


@cache
def environment(form: Form) -> Environment:
    """Templates with the macros of a form, which they need not import."""
    finalize = {"html": _html, "md": _markdown}[form]
    made = Environment(loader=PackageLoader("research.show"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=finalize)
    made.filters |= {"line": line, "fenced": fenced, "quoted": quoted, "paper": paper, "changed": changed, "show": show,
                     "clean": text.clean, "worth": text.effect, "clock": text.clock, "recipe_of": recipe_of}
    made.globals |= {"td": Markup(TD), "cells": cells} | {f.__name__: f for f in (
        text.by_seed, text.cost, text.count, text.effect, text.interval, text.loss, text.over_leader, text.spread)}
    for name in (f"macros.{form}", "links.j2"):
        macros = made.get_template(name).module
        made.globals |= {key: value for key, value in vars(macros).items() if not key.startswith("_")}
    return made


def _html(value: Any) -> Any:
    """What Jinja then escapes."""
    return value if hasattr(value, "__html__") else text.clean("" if value is None else str(value))


def _markdown(value: Any) -> Markup:
    """Text that Markdown shows as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", escape(_html(value), quote=False)))


def line(written: Markup) -> Markup:
    """What a template writes over several lines, as one."""
    return Markup(" ").join(written.split())


def cells(write: Callable[..., Markup], row: Any, align: str) -> list[tuple[str, Markup]]:
    """The cells that a table's caller writes of a row, each with its alignment."""
    written = write(*row) if type(row) is tuple else write(row)
    return list(zip(align, map(line, written.split(TD)), strict=True))


def fenced(lines: Sequence[str], kind: str) -> Markup:
    """Lines that Markdown leaves alone."""
    shown = "\n".join(map(text.clean, lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return Markup(f"{fence}{kind}\n{shown}\n{fence}")


def quoted(target: str) -> Markup:
    """A link's target for Markdown."""
    return Markup(quote(target, safe="/#:?=&%"))


def paper(source: str) -> str | None:
    """The address of the paper that a source names by its number; None if it names none."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", source)
    return f"https://arxiv.org/abs/{found[1]}" if found else None


def recipe_of(key: str) -> str:
    """The recipe id in a trial's key."""
    return Trial.of(key).recipe_id


def changed(edits: Sequence[dict[str, Any]]) -> list[str]:
    """Edits as removed and added lines."""
    return [row for e in edits for row in (f"- {e['path']}: {show(e['old'])}", f"+ {e['path']}: {show(e['new'])}")]
