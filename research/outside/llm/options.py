"""What the loop's command line says of the lane llm."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The --llm-* options."""
    group = parser.add_argument_group("the lane llm", "asks GEMINI_API_KEY's or OPENAI_BASE_URL's model")
    group.add_argument("--llm-model", metavar="[gemini:|openai:]NAME", help="gemini's flash by default")
    group.add_argument("--llm-tokens", type=int, metavar="N", help="in and out, at most (default 1000000)")
    group.add_argument("--llm-cost", type=float, metavar="USD", help="at most; needs --llm-price")
    group.add_argument("--llm-price", metavar="IN,OUT", help="USD per million tokens")
    group.add_argument("--llm-prompt", type=int, metavar="N", help="tokens of a question (default 14000)")
    group.add_argument("--llm-answer", type=int, metavar="N", help="tokens of an answer, at most (default 16384)")
    group.add_argument("--llm-timeout", type=float, dest="llm_timeout_s", metavar="S", help="of a request "
                                                                                            "(default 120)")
