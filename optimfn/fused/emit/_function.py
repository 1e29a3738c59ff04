"""Functions under names that say what they compute, and the text that stands around them."""

import hashlib
import re
from importlib import resources
from string import Template
from typing import NamedTuple


class Function(NamedTuple):
    """A function in C or Triton; its name says what it computes and holds a digest of its text."""

    name: str
    text: str

    @classmethod
    def named(cls, stem: str, text: str) -> "Function":
        """Put the name in the place of `$`."""
        plain = re.sub(r"[^a-z0-9_]+", "_", stem.lower())[:60]
        name = f"{plain}_{hashlib.sha256(without_comments(text).encode()).hexdigest()[:12]}"
        return cls(name, text.replace("$", name))


def without_comments(text: str) -> str:
    """What the compiler sees: where a rule stands must not tell kernels apart."""
    return re.sub(r"  (//|#) \S+:\d+$", "", text, flags=re.MULTILINE)


def prelude(file: str, **values: object) -> str:
    """A file that lies beside this one, with values in the place of their names behind a `$`."""
    return Template(resources.files(__package__).joinpath(file).read_text("utf-8")).substitute(values)


def indented(lines: list[str], width: int) -> str:
    """Lines as text."""
    return "".join(f"{' ' * width}{line}\n" for line in lines)
