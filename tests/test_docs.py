"""What the documents tell people to type exists: each command, and each of its options."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "tpu" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = re.compile(r"python -m ((?:jaxnano|research)[\w.]*)((?: [^\n`|#]*)?)")
PACKAGES = ("research.ledger", "jaxnano.data", "research.check.bench")  # that are commands by their __main__
GROUPS = ("research.check.bench",)  # whose first word is a command of its own


def commands(text):
    """(module, options) of what is to be typed; a line that ends in a backslash goes on."""
    for module, rest in TYPED.findall(text.replace("\\\n", " ").replace("\\|", " ")):
        words = rest.split()
        if module in GROUPS:
            for word in [w for w in words[:1] if re.fullmatch(r"[a-z]+", w)]:
                yield f"{module}.{word}", set(re.findall(r"--[a-z][\w-]*", rest))
        else:
            yield module, set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_to_be_typed_exists(page):
    for module, options in commands(page.read_text(encoding="utf-8")):
        found = importlib.import_module(f"{module}.__main__" if module in PACKAGES else module)
        if hasattr(found, "PARSER"):
            assert options <= set(found.PARSER._option_string_actions), (module, options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_linked_is_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), target
