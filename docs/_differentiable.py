"""Write which rules are differentiable into the page on meta-learning, from the cases of the tests.

python docs/_differentiable.py
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cases import CASES  # noqa: E402 - it lies beside the tests

import optimfn as of  # noqa: E402 - this checkout, whatever is installed

PAGE = ROOT / "docs" / "guides" / "meta-learning.md"
MARKED = re.compile(r"(<!-- differentiable -->\n).*?(\n<!-- end -->)", re.DOTALL)


def table() -> str:
    """What the page says about every transformation."""
    names: dict[str, list[str]] = {}
    for case in CASES:
        for name in case.covers or (case.make.__name__,):
            reason = case.skips.get("differentiable") or case.skips.get("sensitive") or ""
            if getattr(getattr(of, name, None), "__module__", "").startswith("optimfn"):
                names.setdefault(name, []).append(reason)
    smooth = ", ".join(f"`{name}`" for name, reasons in sorted(names.items()) if not any(reasons)) + "."
    because: dict[str, list[str]] = {}
    for name, reasons in sorted(names.items()):
        for reason in sorted(set(filter(None, reasons))):
            because.setdefault(reason, []).append(f"`{name}`")
    lines = textwrap.wrap(smooth, 118, break_long_words=False, break_on_hyphens=False)
    lines += ["", "| these do not, or not always | why |", "|---|---|"]
    return "\n".join([*lines, *(f"| {', '.join(own)} | {reason} |" for reason, own in because.items())])


def page(text: str) -> str:
    """The text of the page with the table of today between its marks."""
    if not MARKED.search(text):
        raise SystemExit(f"{PAGE} has lost its marks, <!-- differentiable --> and <!-- end -->")
    return MARKED.sub(lambda found: found[1] + table() + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
