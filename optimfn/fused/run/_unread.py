"""What stands for an argument that is neither a tensor nor a bool, a string or a function, while a rule is traced."""

import reprlib
from typing import Any, NoReturn

from ..ir._graph import Untraceable


class Unread:
    """As long as nobody does anything with the argument, it does not matter; who does is told.

    Args:
        value: The argument.
    """

    def __init__(self, value: Any) -> None:
        self._shown = reprlib.repr(value)

    def __getattr__(self, name: str) -> Any:
        """Refuse."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def _refuse(self, *_: Any) -> NoReturn:
        raise Untraceable(
            f"it reads an argument that holds {self._shown}; pass numbers that may change as 0-dim tensors"
        )


def _refuse_whatever_is_done(names: str) -> None:
    for name in names.split():
        setattr(Unread, f"__{name}__", Unread._refuse)


_refuse_whatever_is_done("bool len iter contains getitem int float index complex eq ne lt le gt ge abs neg pos invert")
_refuse_whatever_is_done("add sub mul truediv floordiv mod pow matmul radd rsub rmul rtruediv rfloordiv rmod rpow")
