"""States print as what they are, shapes and dtypes, and not as all of their numbers."""

import sys
from typing import Any

from . import optim, tree
from ._hints import say_what_is_missing
from ._typing import Assign
from ._wrappers._lookahead import LookaheadParams
from .tree import summary

_PACKAGE = __name__.partition(".")[0] + "."
_WITHOUT_TREES = (f"{_PACKAGE}fused.", f"{_PACKAGE}_seeing.")
_OF_PARAMS = (Assign, LookaheadParams)  # parameters and updates print with their numbers, as dicts of them do


def _show(self: Any) -> str:
    return summary(self)


def _named_tuples() -> list[Any]:
    """Those of this package that stand in states."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(_PACKAGE)]
    return [
        value
        for module in modules
        if not module.__name__.startswith(_WITHOUT_TREES)
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and hasattr(value, "_fields")
        and value not in _OF_PARAMS
        and value.__repr__.__module__ == "collections"
    ]


for module in (optim, tree):
    say_what_is_missing(module)

# Here, once, when all modules are there: a state is a plain named tuple, of whose printing its author need not think.
for kind in _named_tuples():
    kind.__repr__ = _show
