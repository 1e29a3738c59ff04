"""What the printers share: functions under names that say what they compute."""

import hashlib
import re
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


def comment(mark: str, line: str) -> str:
    """Where a rule says what a line of a kernel computes, as a comment after it."""
    return f"  {mark} {line}" if line else ""


def without_comments(text: str) -> str:
    """What the compiler sees: where a rule stands must not tell kernels apart."""
    return re.sub(r"  (//|#) \S+:\d+$", "", text, flags=re.MULTILINE)
