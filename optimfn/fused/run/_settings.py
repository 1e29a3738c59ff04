"""What steps do with memory, as the user wants it."""

import os
from typing import NamedTuple

from ..._checks import check_choice

_WORDS = {"1": True, "0": False}


class MemorySettings(NamedTuple):
    """What `memory_settings` returns: what holds from now on."""

    recycle: bool  # whether large results of steps that make new trees lie in memory that is used again
    huge_pages: bool  # whether the pages of what donating steps write to are joined into huge ones


class _Settings:
    """Each is what was said last, else what the environment says, else on."""

    def __init__(self) -> None:
        self._said: dict[str, bool] = {}

    @property
    def recycle(self) -> bool:
        return self._holds("recycle", "OPTIMFN_RECYCLE")

    @property
    def huge_pages(self) -> bool:
        return self._holds("huge_pages", "OPTIMFN_HUGE_PAGES")

    def say(self, **values: bool | None) -> None:
        self._said.update({name: value for name, value in values.items() if value is not None})

    def _holds(self, name: str, variable: str) -> bool:
        said = self._said.get(name)
        if said is not None:
            return said
        word = os.environ.get(variable) or "1"
        check_choice(variable, word, tuple(_WORDS))
        return _WORDS[word]


settings = _Settings()


def memory_settings(*, recycle: bool | None = None, huge_pages: bool | None = None) -> MemorySettings:
    """Say what steps on the CPU may do with memory; what is left out stays as it is.

    Neither changes a value. Without a word here the environment variables `OPTIMFN_RECYCLE` and `OPTIMFN_HUGE_PAGES`
    decide, `1` or `0`; without these both are on, where the system offers it (Linux does).

    Args:
        recycle: Steps that make new trees keep the memory of large results that are gone, of one set at most, for the
            next ones; see `release_memory`. The storage of such a result cannot be enlarged (`resize_`).
        huge_pages: A donating step, when it meets parameters and state for the first time, has the system join the
            pages on which they and the gradients lie into huge ones.

    Returns:
        What holds from now on.

    Raises:
        TypeError: for anything but a bool.

    Example:
        >>> import optimfn as of
        >>> of.fused.memory_settings(recycle=False).recycle
        False
        >>> of.fused.memory_settings(recycle=True).recycle
        True
    """
    for name, value in (("recycle", recycle), ("huge_pages", huge_pages)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} must be True, False or None, got {value!r}")
    settings.say(recycle=recycle, huge_pages=huge_pages)
    return MemorySettings(settings.recycle, settings.huge_pages)
