"""What concerns the process as a whole: forks, and the collection of garbage."""

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar


class Process:
    """OpenMP's threads do not live on in a child, nor do the threads that hold a lock."""

    forked = False
    owners: ClassVar["weakref.WeakSet[Any]"] = weakref.WeakSet()

    @classmethod
    def give_lock(cls, owner: Any) -> None:
        """Set `owner.lock`, now and again in every forked child."""
        owner.lock = threading.Lock()
        cls.owners.add(owner)

    @classmethod
    def after_fork(cls) -> None:
        """Make a child ready to step."""
        cls.forked = True
        for owner in cls.owners:
            owner.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Process.after_fork)


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """For what makes many objects, none of them garbage yet: a collection would come again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
