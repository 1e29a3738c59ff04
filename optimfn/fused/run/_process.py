"""What a fork changes, where there are forks."""

import os
import threading
import weakref
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
