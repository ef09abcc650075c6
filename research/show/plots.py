"""Plots as SVG text: they open anywhere without a script, print well, and their points link to the trials they show.

Each function returns one standalone `<svg>` element. Text from outside is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape as html_escape

from research.text import clean

COLOURS = ("#2563a8", "#c2570c", "#2f855a", "#7c4fa3", "#8a6d1a", "#5b6472")
INK, FAINT = "#1f2933", "#d9dee4"
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44
LABEL, GAP = 300, 34  # pixels of a legend's longest entry, and of its square and the space after it
# Pixels of a character of 12-pixel text, at least those of DejaVu Sans: which font a browser takes is not known here.
WIDE, CAPITAL, PLAIN, NARROW = 12.0, 10.2, 7.7, 4.8


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
    """A row of an interval plot: an interval around a mean, and beside it what was measured, on which seeds."""

    label: str
    mean: float
    low: float
    high: float
    measured: Sequence[float] = ()
    targets: Sequence[str] = ()
    seeds: Sequence[int] = ()


@dataclass(frozen=True)
class _Axis:
    """Maps low..high to pixels first..last. log: on a logarithmic scale."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        here = math.log10(max(value, self.low)) if self.log else value
        return self.first + (here - low) / (high - low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            leads = (1, 2, 5) if self.high < 100 * self.low else (1,)
            return [m * 10.0**p for p in powers for m in leads if self.low <= m * 10.0**p <= self.high]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
        start = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(start, math.floor(self.high / step + 1e-9) + 1)]


def _axis(values: Sequence[float], first: float, last: float, zero: bool = False, log: bool = False) -> _Axis:
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] + ([0.0] if zero else [])
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    if log:
        return _Axis(low / 1.3, high * 1.3, first, last, True)
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return _Axis(low if zero and low == 0 else low - room, high + room, first, last)


def escape(text: str) -> str:
    """Text fit for SVG, which allows no control characters."""
    return html_escape(clean(text))


def number(value: float) -> str:
    """A tick's text."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def xy(series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, log_y: bool = False) -> str:
    """Lines, steps and dots over two axes. zero: the y axis includes 0. log_y: it is logarithmic."""
    xs = [v for s in series for v in s.x]
    ys = [v for s in series for values in (s.y, s.low, s.high) for v in values]
    across = _axis(xs, LEFT, WIDTH - RIGHT, zero=True)
    up = _axis(ys, HEIGHT - BOTTOM, TOP + 18, zero=zero, log=log_y)
    body = [_grid(across, up, x_label, y_label, HEIGHT)]
    body += [_draw(s, COLOURS[i % len(COLOURS)], across, up) for i, s in enumerate(series)]
    return _svg(HEIGHT, [*body, _legend([s.label for s in series])])


def _finite(s: Series) -> Series:
    """The series without the points that have no place."""
    kept = [i for i, values in enumerate(zip(s.x, s.y, *filter(None, (s.low, s.high)), strict=True))
            if all(map(math.isfinite, values))]
    columns = {f: [values[i] for i in kept] for f in ("x", "y", "low", "high", "titles", "targets")
               if (values := getattr(s, f))}
    return replace(s, **columns)


def _draw(s: Series, colour: str, across: _Axis, up: _Axis) -> str:
    s = _finite(s)
    points = [(across(x), up(y)) for x, y in zip(s.x, s.y, strict=True)]
    if s.kind == "dots":
        return "".join(_dot(*p, colour, s.titles[i] if s.titles else "", s.targets[i] if s.targets else "")
                       for i, p in enumerate(points))
    band = ""
    if s.low:
        edge = _steps([(across(x), up(y)) for x, y in zip(s.x, s.high, strict=True)], s.kind)
        back = _steps([(across(x), up(y)) for x, y in zip(s.x, s.low, strict=True)], s.kind)[::-1]
        band = f'<path d="M{_path(edge + back)}Z" fill="{colour}" opacity="0.15"/>'
    path = _path(_steps(points, s.kind))
    return band + (f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>' if points else "")


def _steps(points: list[tuple[float, float]], kind: str) -> list[tuple[float, float]]:
    if kind != "step":
        return points
    corners = [(after[0], before[1]) for before, after in zip(points, points[1:], strict=False)]
    return [p for pair in zip(points, corners, strict=False) for p in pair] + points[-1:]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _dot(x: float, y: float, colour: str, title: str, target: str, radius: float = 3.2) -> str:
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.6" stroke="{colour}">'
    shape += f"<title>{escape(title)}</title></circle>"
    return f'<a href="#{escape(target)}">{shape}</a>' if target else shape


def intervals(rows: Sequence[Whisker], x_label: str) -> str:
    """One row each: a mean with its interval, and measured values as open rings."""
    shown = [_cut(row.label, LABEL) for row in rows]
    left = 16 + max(map(width, shown), default=0.0)
    height = TOP + 22 * len(rows) + BOTTOM
    values = [v for r in rows for v in (r.low, r.high, *r.measured)]
    across = _axis(values, left, WIDTH - RIGHT, zero=True)
    body = [_grid(across, None, x_label, "", height)]
    for i, (row, label) in enumerate(zip(rows, shown, strict=True)):
        y, colour = TOP + 22 * i + 11, COLOURS[0]
        body.append(_text(left - 8, y + 4, label, "end", row.label))
        body.append(f'<path d="M{across(row.low):.1f},{y}H{across(row.high):.1f}" stroke="{colour}" stroke-width="2"/>')
        body.append(_dot(across(row.mean), y, colour, f"{row.mean:+.4f}", "", 3.6))
        for value, target, seed in zip(row.measured, row.targets, row.seeds, strict=True):
            tint = COLOURS[1 + seed % (len(COLOURS) - 1)]
            ring = f'<circle cx="{across(value):.1f}" cy="{y}" r="4" fill="white" fill-opacity="0" ' \
                   f'stroke="{tint}" stroke-width="1.4"><title>seed {seed}: {value:+.4f}</title></circle>'
            body.append(f'<a href="#{escape(target)}">{ring}</a>')
    return _svg(height, body)


def bars(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], x_label: str,
         show: Callable[[float], str] = number) -> str:
    """Stacked horizontal bars: (label, one value for each of `parts`)."""
    shown = [_cut(label, 2 * LABEL / 3) for label, _ in rows]
    left = 16 + max(map(width, shown), default=0.0)
    height = TOP + 18 + 24 * len(rows) + BOTTOM
    across = _axis([sum(values) for _, values in rows], left, WIDTH - RIGHT - 40, zero=True)
    body = [_grid(across, None, x_label, "", height, TOP + 18)]
    for i, (label, values) in enumerate(rows):
        y, at = TOP + 18 + 24 * i, 0.0
        body.append(_text(left - 8, y + 16, shown[i], "end", label))
        for value, part, colour in zip(values, parts, COLOURS * len(parts), strict=False):
            x, end = across(at), across(at + value)
            box = f'x="{x:.1f}" y="{y + 4}" width="{end - x:.1f}" height="16" fill="{colour}" opacity="0.85"'
            body.append(f"<rect {box}><title>{escape(part)}: {show(value)}</title></rect>")
            at += value
        body.append(_text(across(at) + 5, y + 16, show(at), "start"))
    return _svg(height, [*body, _legend(parts)])


def _grid(across: _Axis, up: _Axis | None, x_label: str, y_label: str, height: int, top: float = TOP) -> str:
    floor, lines = height - BOTTOM, []
    for tick in across.ticks():
        x = across(tick)
        strong = INK if up is None and abs(tick) < 1e-12 else FAINT
        lines.append(f'<path d="M{x:.1f},{top}V{floor}" stroke="{strong}"/>')
        lines.append(_text(x, floor + 16, number(tick), "middle"))
    for tick in up.ticks() if up else ():
        y = up(tick) if up else 0.0
        lines.append(f'<path d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        lines.append(_text(LEFT - 6, y + 4, number(tick), "end"))
    lines.append(_text((across.first + across.last) / 2, height - 8, x_label, "middle"))
    if y_label:
        middle = (up.first + up.last) / 2 if up else 0.0
        lines.append(f'<g transform="translate(13,{middle:.1f}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>')
    return "".join(lines)


def _legend(labels: Sequence[str]) -> str:
    x, items = float(LEFT), []
    most = _share([width(label) for label in labels if label], WIDTH - LEFT - RIGHT)
    for i, label in enumerate(labels):
        if label:
            items.append(f'<rect x="{x:.0f}" y="4" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>')
            items.append(_text(x + 15, 13, _cut(label, most), "start", label))
            x += GAP + width(_cut(label, most))
    return "".join(items)


def _text(x: float, y: float, text: str, anchor: str, title: str = "") -> str:
    more = f"<title>{escape(title)}</title>" if title != text and title else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{more}</text>'


def width(text: str) -> float:
    """Pixels that 12-pixel text takes at most, about."""
    return sum(WIDE if c in "mwMW@%…—" or ord(c) > 0x2E80 else NARROW if c in "ijlt.,:;|!'()[] " else
               CAPITAL if c.isupper() or c in "+±=<>#&^~" else PLAIN for c in text)


def _share(wanted: Sequence[float], room: float) -> float:
    """The most pixels an entry may take so that all fit: short ones leave theirs to the long ones."""
    left, most = room - GAP * len(wanted), 0.0
    for n, pixels in enumerate(sorted(wanted)):
        most = left / (len(wanted) - n)
        if pixels > most:
            break
        left, most = left - pixels, pixels
    return min(float(LABEL), most)


def _cut(text: str, most: float) -> str:
    """The text, shortened to so many pixels."""
    if width(text) <= most:
        return text
    kept = next((n for n in range(len(text), 0, -1) if width(text[:n] + "…") <= most), 0)
    return text[:kept] + "…"


def _svg(height: int, body: Sequence[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">' + "".join(body) + "</svg>")
