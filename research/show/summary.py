"""A session on one picture, to be shared: what came out, how far it has come, what earned its place."""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any

from research.show.facts import Facts
from research.show.plots import COLOURS, FAINT, INK
from research.show.spent import climb, rise
from research.show.verdict import verdict
from research.text import clean, count, cut, effect

HEADS = {"refuted": "Refuted on fresh seeds", "verified": "Verified, not crowned"}
DIM = "#5b6776"
SIZE, DPI = (12.0, 6.3), 100  # inches; 1200 x 630 pixels, as links are previewed
ROWS = 8  # parts


def summary_png(facts: Facts) -> bytes:
    """The picture; the same bytes for the same facts and matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK, "text.parse_math": False})
        figure = Figure(SIZE, DPI, facecolor="white")
        kind, text = verdict(facts)
        champion = facts.champion()
        head = HEADS.get(kind, "No improvement proven") if champion is None else \
            f"{champion['name']}: {effect(champion['effect'])} {facts.unit}"
        figure.text(0.05, 0.88, clean(head), fontsize=27, weight="bold")
        figure.text(0.05, 0.80, f"track {clean(facts.track.name)}: {cut(facts.track.summary, 96)}", fontsize=13,
                    color=DIM)
        figure.text(0.05, 0.755, _wrapped(clean(text)), fontsize=12.5, va="top")
        _worth(figure.add_axes((0.25, 0.12, 0.30, 0.44)), facts, champion)
        _climb(figure.add_axes((0.64, 0.12, 0.32, 0.44)), facts)
        state, ran = facts.state, sum(facts.state.counts().values())
        beside = facts.beside()
        bits = f"{beside['champion']:.4f} bits per byte, {beside['preset']} {beside['bits']:.4f}; " if (
            beside and beside["champion"] and beside["bits"]) else ""
        figure.text(0.05, 0.025, f"{bits}{count(ran, 'run')}, {state.wall_s / 60:.0f} minutes on "
                    f"{count(state.session.workers, 'worker')}; {count(len(state.sealed), 'sealed attempt')}; data "
                    f"{state.session.data_hash[:12]}", fontsize=11, color=DIM)
        written = io.BytesIO()
        figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _wrapped(text: str) -> str:
    """Whole sentences, as many as there is room for."""
    shown = ""
    for sentence in re.split(r"(?<=[.:;]) ", text):
        if len(lines := textwrap.wrap(f"{shown} {sentence}".strip(), 118)) > 3:
            break
        shown = " ".join(lines)
    return "\n".join(textwrap.wrap(shown.rstrip(" ;:"), 118))


def _worth(axes: Any, facts: Facts, champion: dict[str, Any] | None) -> None:
    """What each of the champion's parts is worth, the most first; without one, what leads."""
    tested = [part for part in (champion or {}).get("parts", ()) if (part["ablation"] or {}).get("effect") is not None]
    rows = sorted(((part["name"], float(part["ablation"]["effect"])) for part in tested), key=lambda r: -r[1])[:ROWS]
    title = "what each part is worth" if rows else "what leads, as expected and not proven"
    rows = rows or [(row["name"], row["mean"]) for row in facts.frontier(ROWS)]
    axes.set_title(title if rows else "", fontsize=12, loc="left", color=INK)
    axes.barh(range(len(rows)), [worth for _, worth in rows], 0.62, color=COLOURS[0])
    for i, (_, worth) in enumerate(rows):
        axes.annotate(effect(worth), (max(worth, 0.0), i), (4, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks(range(len(rows)), [cut(name, 26) for name, _ in rows], fontsize=10.5)
    axes.set(ylim=(max(len(rows), 1) - 0.4, -0.6), xticks=[])
    axes.margins(x=0.2)
    _bare(axes, left=bool(rows))


def _climb(axes: Any, facts: Facts) -> None:
    """Every recipe where its first run ended, at what is believed of it now, and the best so far."""
    rows = climb(facts)
    axes.set_title("expected effect, over device-seconds", fontsize=12, loc="left", color=INK)
    axes.scatter([x for x, _ in rows], [row["mean"] for _, row in rows], 20, facecolors="none", edgecolors=COLOURS[2])
    axes.plot(*zip(*rise(facts, rows), strict=True), drawstyle="steps-post", color=COLOURS[0], linewidth=2)
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.tick_params(length=0, labelsize=10, labelcolor=DIM)
    _bare(axes, left=True, bottom=True)


def _bare(axes: Any, left: bool = False, bottom: bool = False) -> None:
    for side, kept in (("top", False), ("right", False), ("left", left), ("bottom", bottom)):
        axes.spines[side].set_visible(kept)
        axes.spines[side].set_color(FAINT)
    axes.tick_params(length=0)
