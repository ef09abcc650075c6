"""How numbers, times and names from outside are written, the same on the terminal, in the report and in its plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxnano.cli import UserError


def clean(text: str) -> str:
    """Text without control characters: names come from outside, and a terminal obeys what it is sent."""
    return "".join(c if c.isprintable() else " " for c in text)


def cut(text: str, most: int) -> str:
    """Text without control characters and, where it is longer than `most`, without its end."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def one_line(text: str, most: int) -> str:
    """Text on one line, cut; of a long one, not even looked at."""
    return cut(" ".join(clean(text[:4096]).split()), most)


def listed(items: Sequence[str], most: int) -> str:
    """The first items, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def beginning(text: str, names: Iterable[str]) -> list[str]:
    """The names that begin with `text`, or the one that is it; nothing begins with no text."""
    found = [name for name in names if text and name.startswith(text)]
    return [text] if text in found else found


def the_one(said: str, found: Sequence[str], none: str) -> str:
    """The only name that begins as somebody said. Raises: UserError if there is none, or several."""
    if not found:
        raise UserError(f"{said}: {none}")
    if len(found) > 1:
        raise UserError(f"{said}: {listed(found, 4)} begin with it; a longer beginning would do")
    return found[0]


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def duration(seconds: float) -> str:
    """A length of time, in the largest unit of which it has two."""
    unit, size = next(((u, n) for u, n in (("days", 86400), ("hours", 3600), ("minutes", 60)) if seconds >= 2 * n),
                      ("s", 1))
    return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.2g} {unit}"


def ago(seconds: float | None) -> str:
    """How long ago something was; nothing if that is not known."""
    if seconds is None:
        return ""
    unit, size = next(((u, n) for u, n in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= n), ("s", 1))
    return f"{seconds / size:.0f} {unit} ago"


def loss(value: float | None) -> str:
    """A loss in nats; nothing for none."""
    return "" if value is None else f"{value:.4f}"


def effect(value: float | None) -> str:
    """An effect in nats, with its sign; nothing for none."""
    return "" if value is None else f"{value:+.4f}"


def by_seed(gains: Mapping[int, float], most: int = 3) -> str:
    """Gains with the seeds they were measured on: those of two recipes compare on one seed and on no other."""
    return listed([f"{gain:+.4f} on seed {seed}" for seed, gain in gains.items()], most)


def over_leader(row: Mapping[str, Any]) -> str:
    """What a row of the frontier gained over the leader (Facts.frontier), with the seeds; nothing without common ones.
    """
    mean, seeds = row["over_leader"]["mean"], row["over_leader"]["seeds"]
    return "" if mean is None else f"{mean:+.4f} (n = {len(seeds)})"


def spread(mean: float, sd: float) -> str:
    """A mean with its standard deviation."""
    return f"{mean:+.4f} ± {sd:.4f}"


def interval(test: Mapping[str, Any]) -> str:
    """The interval of a comparison; nothing if there was none."""
    return "{:+.4f} … {:+.4f}".format(*test["interval"]) if test.get("interval") else ""


def count(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}" + "s" * (number != 1)


def cost(spent: Mapping[str, Any], each: bool = False) -> str:
    """What language models have cost (Facts.llm): tokens and, where it is known, USD. each: per accepted proposal."""
    tokens = spent["tokens_per_accepted"] if each else spent["tokens_in"] + spent["tokens_out"]
    usd = spent["cost_per_accepted"] if each else spent["cost"]
    if tokens is None:
        return "nothing was accepted"
    return f"{tokens:,.0f} tokens" + (f", {usd:.4g} USD" if usd is not None else "")


def carried(line: Mapping[str, Any]) -> str:
    """A line of a transfer card: where, the gain, and its share of the one at home; or why there is none."""
    if line["gain"] is None:
        return f"{line['setting']}: {line['why']}"
    told = f"{line['setting']}: {loss(line['base'])} -> {loss(line['champion'])}, {effect(line['gain'])}"
    return told + ("" if line["share"] is None else f" ({line['share']:.0%} of that at home)")
