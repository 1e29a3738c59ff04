"""Code that the steps of a process share: what one has traced, planned and compiled, another finds.

Steps share it if their transformations were made alike, or are one and the same, and their arguments are of one kind. A
transformation that holds tensors, or functions of the user, is like no other than itself: nobody knows what they hold.
"""

import functools
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any

from ..._base import GradientTransformation
from ..._recipe import fingerprint, is_own
from ._flatten import Form
from ._process import Process

_MOST = 128  # a program of a thousand leaves takes a few MB


class Shared:
    """The most recently used values, of the whole process."""

    lock: threading.Lock

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[Hashable, Hashable], Any] = OrderedDict()
        self._gone: deque[Hashable] = deque()
        Process.give_lock(self)

    def get(self, keys: "Keys", rest: Hashable) -> Any:
        """What is known under one of the keys, or `None`."""
        with self.lock:
            for own in keys.all:
                value = self._found.get((own, rest))
                if value is not None:
                    self._found.move_to_end((own, rest))
                    return value
        return None

    def put(self, keys: "Keys", rest: Hashable, value: Any, *, is_own: bool) -> None:
        """Keep a value under the widest key; if it is the transformation's own, under that of itself while it lives."""
        if is_own or len(keys.all) == 1:
            weakref.finalize(keys.tx, self._gone.append, keys.all[-1])
        with self.lock:
            self._found[keys.all[-1 if is_own else 0], rest] = value
            if self._gone:  # not when they go, which may be in the midst of anything, with the lock held
                gone = {self._gone.popleft() for _ in range(len(self._gone))}
                for key in [key for key in self._found if key[0] in gone]:
                    del self._found[key]
            while len(self._found) > _MOST:
                self._found.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._found.clear()


shared = Shared()


class Keys:
    """Under what a transformation finds code: what it computes, if that is known, and itself.

    Args:
        tx: The transformation.
    """

    def __init__(self, tx: GradientTransformation) -> None:
        self.tx, own = tx, itself(tx)
        self.all: tuple[Hashable, ...] = (own,) if own.made is None else (own.made, own)


class Itself:
    """Stands for one transformation, and has what is known of it; a copy of that has none yet.

    Args:
        tx: The transformation.
    """

    def __init__(self, tx: GradientTransformation) -> None:
        self.made, self._tx = fingerprint(tx), weakref.ref(tx)
        self.forms: list[Form] = []  # of the arguments with which it is called
        self.opened = frozenset[str]()  # the arguments into which it looks

    @functools.cached_property
    def is_own(self) -> bool:
        """Whether it calls no function of others."""
        return is_own(self._tx())

    def __reduce__(self) -> Any:
        return type(None), ()


def itself(tx: GradientTransformation) -> Itself:
    """What stands for a transformation."""
    own = vars(tx)
    if own.get("_itself") is None:
        own["_itself"] = Itself(tx)
    found: Itself = own["_itself"]
    return found
