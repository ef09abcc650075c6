"""How much better is one recipe than another? Both are trained on the same seeds at a track's full budget.

    python -m research.compare configs/gpt2-tiny.yaml configs/modern-tiny.yaml --seeds 6
"""

from __future__ import annotations

from jaxnano.cli import Command, Output, UserError, above_zero, report_errors, seed_number
from research.execute import executors

PARSER = Command("research.compare", "How much better is B than A, in nats?")
PARSER.add_argument("a", metavar="A.yaml")
PARSER.add_argument("b", metavar="B.yaml")
PARSER.add_argument("--seeds", type=int, default=6)
PARSER.add_argument("--first-seed", type=seed_number, default=0)
PARSER.add_argument("--track", default="tiny", help="whose budget and evaluation")
PARSER.add_argument("--workers", type=int)
executors.add_options(PARSER)
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

from jaxnano.config.file import load
from research.contract.track import load_track
from research.execute.batch import paired
from research.learn.compare import compare


def main(argv: list[str] | None = None) -> int:
    """The command: trains both recipes on each seed and shows the paired test."""
    options = PARSER.options(argv)
    if options.seeds < 2:
        raise UserError(f"--seeds: {options.seeds}: 2 or more would do")
    above_zero(options, "workers")
    executors.check(options)
    track, recipes = load_track(options.track), [load(options.a), load(options.b)]
    if recipes[0].data != recipes[1].data:
        raise UserError(f"{options.b}: its data differs from that of {options.a}; equal data would do")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    named = list(zip((options.a, options.b), recipes, strict=True))
    a, b = paired(track, named, seeds, options.workers, "compare", options)
    found = compare(a, b)
    Output(options.json).table(f"{options.b} against {options.a}, nats", found.as_dict())
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
