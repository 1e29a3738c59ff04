"""What stands for an argument that is neither a tensor nor a bool, a string or a function, while a rule is traced."""

import reprlib
from collections.abc import Collection
from typing import Any, NoReturn

import torch

from ... import tree
from ..._in_place._write import is_number
from ..ir._graph import Untraceable


class Unread:
    """As long as nobody does anything with the argument, it does not matter; who does is told.

    Args:
        value: The argument.
    """

    def __init__(self, value: Any) -> None:
        self._problem: Untraceable = Untraceable(
            f"it reads an argument that holds {reprlib.repr(value)}; pass numbers that may change as 0-dim tensors"
        )

    def __getattr__(self, name: str) -> Any:
        """Refuse."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def _refuse(self, *_: Any) -> NoReturn:
        raise self._problem


class Held:
    """A list or the like among the arguments, as one leaf, as long as nobody looks into it.

    Args:
        key: The name of the argument.
        value: The argument.
    """

    def __init__(self, key: str, value: Any) -> None:
        self.key, self.value = key, value


class Opened(Untraceable):
    """Somebody looks into arguments that are held.

    Args:
        keys: The names of the arguments.
    """

    def __init__(self, *keys: str) -> None:
        super().__init__(f"it looks into {', '.join(keys)}")
        self.keys = frozenset(keys)


class UnreadHeld(Unread):
    """Stands for an argument that is held.

    Args:
        held: The argument.
    """

    def __init__(self, held: Held) -> None:
        self._problem = Opened(held.key)

    def __getattribute__(self, name: str) -> Any:
        """Refuse also what `isinstance` asks."""
        if name == "__class__":
            self._refuse()
        return super().__getattribute__(name)


def _refuse_whatever_is_done(names: str) -> None:
    for name in names.split():
        setattr(Unread, f"__{name}__", Unread._refuse)


_refuse_whatever_is_done("bool len iter contains getitem int float index complex eq ne lt le gt ge abs neg pos invert")
_refuse_whatever_is_done("add sub mul truediv floordiv mod pow matmul radd rsub rmul rtruediv rfloordiv rmod rpow")


def live_arguments(extra: dict[str, Any], opened: Collection[str], is_own: bool) -> dict[str, Any]:
    """The extra arguments with tensors for numbers, such as a loss or a count, which differ from step to step.

    Lists and the like, which may grow, are leaves unless the rule looks into them; for functions of others, which may
    look in ways that leave no trace, they are what they are.

    Args:
        extra: The arguments.
        opened: Names of those that the rule looks into.
        is_own: Whether all functions of the rule are this package's.
    """

    def live(name: str, x: Any) -> Any:
        if _fits(x):
            return torch.tensor(float(x), dtype=torch.float64)
        is_plain = x is None or tree.is_leaf(x) or name in opened or not is_own
        return x if is_plain else Held(name, x)

    return {name: live(name, x) for name, x in extra.items()}


def _fits(x: Any) -> bool:
    return is_number(x) and (isinstance(x, float) or abs(x) <= 2**53)
