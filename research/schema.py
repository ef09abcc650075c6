"""What a recipe may hold: every place, with ranges and defaults.

    python -m research.schema                          the whole tree
    python -m research.schema model.attention          a place and what is below it
    python -m research.schema --page > docs/tree.md    the page for people, with sources and examples
"""

from __future__ import annotations

from jaxnano.cli import Command, UserError, report_errors

PARSER = Command("research.schema", __doc__)
PARSER.add_argument("path", nargs="?", default="", help="a place, written as in an edit")
PARSER.add_argument("--page", action="store_true", help="the page for people, in Markdown")
PARSER.early(__name__)

from research.contract.schema import describe
from research.contract.tree_page import page


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    if options.page and options.path:
        raise UserError(f"--page: of {options.path}: the page is of the whole tree; either alone would do")
    print(page() if options.page else "\n".join(describe(options.path)), end="" if options.page else "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
