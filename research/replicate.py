"""Does a record hold on seeds that nobody has seen? It and what it beat are trained on fresh seeds, paired.

    python -m research.replicate FOLDER --seeds 6       # one that research.record wrote
    python -m research.replicate rotary --seeds 6       # a rung of configs/records/ladder.yaml, beside the one below

Verdict: `replicated` where the interval of 95 % lies above 0, `refuted` where it lies below what matters on the track,
`not separated` else. Losses are of the search split: the protected one is not opened.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from jaxnano.cli import Command, Output, UserError, above_zero, report_errors, seed_number
from research.execute import executors
from research.text import beginning, clean, effect, interval, the_one

PARSER = Command("research.replicate", __doc__)
PARSER.add_argument("record", help="a folder of research.record, or how a rung's name begins")
PARSER.add_argument("--seeds", type=int, default=6)
PARSER.add_argument("--first-seed", type=seed_number, help="to repeat a replication; drawn by default")
PARSER.add_argument("--track", default="tiny", help="of a rung")
PARSER.add_argument("--workers", type=int)
executors.add_options(PARSER)
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

from jaxnano import data
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe
from research.contract.proposal import build
from research.contract.rungs import ladder, stacks
from research.contract.track import Track, load_track
from research.contract.trial import FRESH
from research.execute.batch import paired
from research.learn.compare import compare

FILE = "record.json"


class Claim(NamedTuple):
    """What is to be replicated: that recipe is better than rival by so many nats, on that data, where that is told."""

    name: str
    track: Track
    recipe: Recipe
    rival: Recipe
    effect: float | None
    data_hash: str | None = None


def claim_of(record: str, track: str) -> Claim:
    """The claim of a record's folder, or of a rung. Raises: UserError where there is neither."""
    path = Path(record) / FILE
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        try:
            found = validate(Track, told["contract"], str(path))
            recipe, rival = (validate(Recipe, told[name], str(path)) for name in ("recipe", "against"))
            vars(found)["base_recipe"] = validate(Recipe, told["base"], str(path))
            return Claim(told["name"], found, recipe, rival, told["effect"], told.get("data_hash"))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: no record: {error}; a folder of research.record would do") from None
    rungs, on = ladder(), load_track(track)
    names = {rung.name.lower(): at for at, rung in enumerate(rungs) if at}
    at = names[the_one(record, beginning(record.lower(), names), f"no folder with {FILE}, and no rung; one of "
                       + ", ".join(repr(rungs[at].name) for at in names.values()) + " would do")]
    below, own = (build(on.base_recipe, parts) for parts in stacks(rungs, on.base_recipe)[at - 1:at + 1])
    return Claim(rungs[at].name, on, own, below, None)


def verdict(found: dict[str, Any], epsilon: float) -> str:
    """What the paired test of fresh seeds says of a claim."""
    low, high = found["interval"]
    return "replicated" if low > 0 else "refuted" if high < epsilon else "not separated"


def main(argv: list[str] | None = None) -> int:
    """The command: trains both on each seed; exit code 0 whatever the verdict is."""
    options = PARSER.options(argv)
    if options.seeds < 2:
        raise UserError(f"--seeds: {options.seeds}: 2 or more would do")
    above_zero(options, "workers")
    executors.check(options)
    claim = claim_of(options.record, options.track)
    first = FRESH + secrets.randbelow(10**9) if options.first_seed is None else options.first_seed
    seeds, track = range(first, first + options.seeds), claim.track
    rival, own = paired(track, [("what it beat", claim.rival), (claim.name, claim.recipe)], seeds, options.workers,
                        "replicate", options)
    found = compare(rival, own, alternative="two-sided").as_dict()
    said, here = verdict(found, track.epsilon), data.load(claim.recipe.data).data_hash
    if options.json:
        print(json.dumps(found | {"verdict": said, "claimed": claim.effect, "seeds": list(seeds), "data_hash": here,
                                  "claimed_data_hash": claim.data_hash}))
        return 0
    told = "" if claim.effect is None else f"; claimed was {effect(claim.effect)}"
    if claim.data_hash not in (None, here):
        told += f" on other data, {claim.data_hash[:12]} (here {here[:12]}): README.md says of which packages"
    print(clean(f"{claim.name}: {said}: effect {effect(found['effect'])} nats ({interval(found)}, 95 %), "
                f"n = {found['n']}{told}"))
    Output(False).table("by seed, nats: what it beat, and it", {
        str(seed): f"{rival[seed]:.4f}  {own[seed]:.4f}" for seed in seeds})
    print(f"again: python -m research.replicate {options.record} --seeds {options.seeds} --first-seed {first}")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
