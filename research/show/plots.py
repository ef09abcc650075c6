"""Plots as SVG text: they open anywhere without a script, print well, and their points link to the trials they show.

Each function returns one standalone `<svg>` element, and the same bytes for the same data. Text from outside is shown
as it is; matplotlib, which draws, is imported with the first plot.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import numpy as np

from research.text import clean

COLOURS = ("#2563a8", "#c2570c", "#2f855a", "#7c4fa3", "#8a6d1a", "#5b6472")
INK, FAINT = "#1f2933", "#d9dee4"
WIDTH, FONT = 720, 12  # pixels
LEGEND, ROW = 56, 40  # characters of a label at most: even of the widest letters, as many fit
# Letters stay text, set out as the font that comes with matplotlib has them: it is the same on every machine, and wide.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT,
    "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "legend.frameon": False, "legend.borderpad": 0, "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Series:
    """Points of one colour. kind: line, step (holds its value until the next point) or dots.

    low, high: of a band behind a line. titles: what a dot says when pointed at. targets: ids a dot links to.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    titles: Sequence[str] = ()
    targets: Sequence[str] = ()


@dataclass(frozen=True)
class Whisker:
    """A row of an interval plot: a mean, half its interval, and beside it what was measured, on which seeds."""

    label: str
    mean: float
    half: float
    measured: Sequence[float] = ()
    targets: Sequence[str] = ()
    seeds: Sequence[int] = ()


def number(value: float, _: Any = None) -> str:
    """A tick's text."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def xy(series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, log_y: bool = False) -> str:
    """Lines, steps and dots over two axes. zero: the y axis includes 0. log_y: it is logarithmic."""
    with _Picture.of(300, (series, x_label, y_label)) as picture:
        axes = picture.axes
        for s, colour in zip(series, COLOURS * len(series), strict=False):
            picture.draw(s, colour)
        if zero:
            axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
        if log_y and any(y > 0 for s in series for y in s.y):
            axes.set_yscale("log", nonpositive="mask")
            low, high = axes.get_ylim()
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if high < 100 * low else (1,))
            axes.yaxis.set_major_formatter(number)
            axes.minorticks_off()
        if not any(x < 0 for s in series for x in s.x):
            axes.set_xlim(left=0)
        axes.set(xlabel=clean(x_label), ylabel=clean(y_label))
    return picture.svg


def intervals(rows: Sequence[Whisker], x_label: str) -> str:
    """One row each: a mean with its interval, and measured values as open rings, a colour a seed."""
    with _Picture.of(56 + 24 * len(rows), (rows, x_label)) as picture:
        axes, places = picture.axes, range(len(rows))
        axes.hlines(places, [r.mean - r.half for r in rows], [r.mean + r.half for r in rows], color=COLOURS[0])
        picture.dots([r.mean for r in rows], places, [f"{r.mean:+.4f}" for r in rows], color=COLOURS[0])
        for seed in sorted({seed for r in rows for seed in r.seeds}):
            found = [(value, i, f"seed {seed}: {value:+.4f}", target) for i, r in enumerate(rows)
                     for value, target, own in zip(r.measured, r.targets, r.seeds, strict=True) if own == seed]
            rings = picture.dots(*zip(*found, strict=True), facecolors="none",
                                 edgecolors=COLOURS[1 + seed % (len(COLOURS) - 1)], linewidths=1.4)
            picture.entries.append((rings, f"seed {seed}"))
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        picture.rows([r.label for r in rows], x_label)
    return picture.svg


def bars(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], x_label: str,
         show: Callable[[float], str] = number) -> str:
    """Stacked horizontal bars: (label, one value for each of `parts`)."""
    with _Picture.of(76 + 24 * len(rows), (rows, parts, x_label)) as picture:
        ends = np.zeros(len(rows))
        for i, (part, colour) in enumerate(zip(parts, COLOURS * len(parts), strict=False)):
            values = [row[i] for _, row in rows]
            boxes = picture.axes.barh(range(len(rows)), values, 0.7, ends, color=colour, alpha=0.85)
            for box, value in zip(boxes, values, strict=True):
                box.set_url(picture.mark(f"{part}: {show(value)}"))
            picture.entries.append((boxes, part))
            ends = ends + values
        for i, end in enumerate(ends):
            picture.axes.annotate(show(end), (end, i), (5, 0), textcoords="offset points", va="center")
        picture.axes.margins(x=0.12)
        picture.axes.set_xlim(left=0)
        picture.rows([label for label, _ in rows], x_label)
    return picture.svg


class _Picture:
    """Axes to draw on. entries: what the legend shows, with its label. svg: the text, once the drawing has ended."""

    def __init__(self, height: int):
        from matplotlib.figure import Figure

        self.figure = Figure((WIDTH / 72, height / 72), 72, layout="constrained")  # to SVG a pixel is a point
        self.axes: Any = self.figure.subplots()
        self.axes.tick_params(length=0)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.set_major_formatter(number)
        self.entries: list[tuple[Any, str]] = []
        self.marks: list[tuple[str, str]] = []
        self.svg = ""

    @classmethod
    @contextmanager
    def of(cls, height: int, data: Any):
        """A picture to draw in a style of its own, whatever a person has set. data: its ids are made of them."""
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser has other fonts
            matplotlib.rcdefaults()
            matplotlib.rcParams.update({**STYLE, "svg.hashsalt": repr(data)})
            picture = cls(height)
            yield picture
            picture.svg = picture._finish()

    def draw(self, s: Series, colour: str) -> None:
        """A series; points that have no place are left out."""
        if s.kind == "dots":
            found = self.dots(s.x, s.y, s.titles, s.targets, color=colour, alpha=0.6)
        else:
            step = "post" if s.kind == "step" else None
            (found,) = self.axes.plot(s.x, s.y, color=colour, drawstyle="steps-post" if step else "default")
            if len(s.low):
                self.axes.fill_between(s.x, s.low, s.high, step=step, color=colour, alpha=0.15, linewidth=0)
        self.entries.append((found, s.label))

    def dots(self, x: Any, y: Any, titles: Sequence[str] = (), targets: Sequence[str] = (), **look: Any) -> Any:
        """Dots that say and link to something, where there is something to say."""
        dots = self.axes.scatter(x, y, 36, zorder=3, clip_on=False, **look)
        dots.set_urls([self.mark(title, targets[i] if targets else "") for i, title in enumerate(titles)] or [None])
        return dots

    def mark(self, title: str, target: str = "") -> str:
        """What matplotlib is given as the address of a shape; it is replaced by these at the end."""
        self.marks.append((title, target))
        return f"mark-{len(self.marks) - 1}"

    def rows(self, labels: Sequence[str], x_label: str) -> None:
        """Name the rows, the first of them on top."""
        self.axes.grid(visible=False, axis="y")
        self.axes.set_yticks(range(len(labels)), [_cut(label, ROW) for label in labels])
        self.axes.set(ylim=(max(len(labels), 1) - 0.5, -0.5), xlabel=clean(x_label))

    def _finish(self) -> str:
        self._legend()
        written = StringIO()
        self.figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = "<svg" + written.getvalue().partition("<svg")[2]
        text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing leads to these ids
        text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text, count=2)
        return re.sub(r'<a xlink:href="mark-(\d+)"[^>]*>(.*?)</a>', self._marked, text, flags=re.DOTALL)

    def _marked(self, found: re.Match[str]) -> str:
        title, target = (escape(clean(text)) for text in self.marks[int(found[1])])
        inner = f"<title>{title}</title>{found[2]}"
        return f'<a href="#{target}">{inner}</a>' if target else f"<g>{inner}</g>"

    def _legend(self) -> None:
        """Above the axes, in as many columns as fit; of scripts that the font lacks, nothing says how wide they get."""
        shapes, labels = [shape for shape, _ in self.entries], [_cut(label, LEGEND) for _, label in self.entries]
        for columns in range(len(labels) if max("".join(labels), default="") < "\u2e80" else 1, 0, -1):
            legend = self.figure.legend(shapes, labels, loc="outside upper left", ncols=columns, handlelength=1.2)
            if columns == 1 or legend.get_window_extent().width < WIDTH:
                break
            legend.remove()
        else:
            return
        self.figure.set_figheight(self.figure.get_figheight() + 18 * math.ceil(len(labels) / columns) / 72)


def _cut(text: str, most: int) -> str:
    """The text, or its two ends: names that share a beginning differ in what was added last."""
    text = clean(text)
    return text if len(text) <= most else f"{text[:most // 2 - 1].rstrip()}…{text[-most // 2:].lstrip()}"
