"""Memory for the results of steps that make new trees, used again as soon as nobody holds the old ones.

Fresh memory costs more than what is written into it: the system hands it out page by page. So large results come from
blocks that stay mapped, in huge pages. A block is lent as a memoryview of its own, which the storage of a tensor keeps
alive, and a weak reference to that brings the block back when the storage is gone: the last tensor, view, array or
saved tensor on it, in whatever thread. Nobody ever asks whether a block is still in use.

The mappings are private: what a forked child writes, its parent does not see.
"""

import contextlib
import itertools
import math
import mmap
import weakref
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ..ir._graph import Layout

LEAST = 1 << 18  # bytes of a tensor; what is smaller is allocated as ever
WORTH = 1 << 24  # bytes of all new tensors of a step from which on it is done
_IDLE = 32  # steps of others after which what nobody uses is given back
_HUGE = 1 << 21  # a huge page
_SLAB = 1 << 25  # what is mapped at once, if blocks are smaller
_PAGE = mmap.PAGESIZE
# Each block begins so much further into its first page than the one before, so that equal places of parameters and
# their moments do not meet in the caches.
_SHIFT = 11 * 64
_MADVISE = hasattr(mmap.mmap, "madvise") and hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MAP_ANONYMOUS")


class _Block:
    """A part of a mapping, which is unmapped when all its blocks are gone."""

    __slots__ = ("_size", "_slab", "_start", "memory")

    def __init__(self, slab: mmap.mmap, start: int, size: int, skipped: int) -> None:
        self._slab, self._start, self._size = slab, start, size
        self.memory = memoryview(slab)[start + skipped : start + size]

    def give_back(self) -> int:
        """Let the system have its pages now, though others of the mapping may be in use; how many bytes."""
        with contextlib.suppress(OSError, ValueError):
            self._slab.madvise(mmap.MADV_DONTNEED, self._start, self._size)
        return self._size


class _Loan(weakref.ref[memoryview]):
    """Notices that a block is free again."""

    __slots__ = ("block", "shelf")
    block: _Block
    shelf: "_Shelf"


class _Shelf:
    """The blocks of one size of one pool; `most` of them at most are kept while nobody uses them.

    A loan may end at any moment, in any thread, so all that is done to what is shared is one operation of a list or a
    dict.
    """

    def __init__(self, size: int) -> None:
        self.size, self.most = size, 0
        self.free: list[_Block] = []
        self.lent: dict[int, _Loan] = {}
        self._skips = itertools.cycle(range(0, _PAGE, _SHIFT))

    def lend(self, nbytes: int) -> memoryview:
        """So many bytes, for as long as anybody holds them.

        Raises:
            OSError: if there is no memory.
        """
        try:
            block = self.free.pop()
        except IndexError:
            block = self._map()
        lent = block.memory[:nbytes]
        loan = _Loan(lent, _Shelf.take_back)
        loan.block, loan.shelf = block, self
        self.lent[id(loan)] = loan
        return lent

    @staticmethod
    def take_back(loan: "_Loan") -> None:
        """Put a block back that nobody holds any more."""
        shelf = loan.shelf
        shelf.lent.pop(id(loan), None)
        shelf.free.append(loan.block)
        shelf.keep(shelf.most)

    def keep(self, most: int) -> int:
        """Give back blocks until no more than so many are kept; how many bytes."""
        given = 0
        while len(self.free) > most:
            try:
                given += self.free.pop(0).give_back()
            except IndexError:  # another thread was faster
                break
        return given

    def _map(self) -> _Block:
        """A new block; others of the same mapping are free from now on."""
        count = max(1, min(_SLAB // self.size, self.most))
        slab = mmap.mmap(-1, count * self.size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a system without huge pages
            slab.madvise(mmap.MADV_HUGEPAGE)
        start = -torch.frombuffer(slab, dtype=torch.uint8).data_ptr() % _HUGE
        first, *others = [_Block(slab, start + i * self.size, self.size, next(self._skips)) for i in range(count)]
        self.free += others
        return first


class Pool:
    """The large results of one program: one set of them is kept at most while nobody uses them.

    Args:
        layouts: What they are like.
    """

    _all: ClassVar[dict[int, "weakref.ref[Pool]"]] = {}
    _steps: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, layouts: Iterable[Layout]) -> None:
        self._shelves: dict[int, _Shelf] = {}
        self._places: dict[Layout, tuple[int, _Shelf]] = {}
        self._used = 0
        for layout in layouts:
            nbytes = nbytes_of(layout)
            size = -(-(nbytes + _PAGE) // _PAGE) * _PAGE
            shelf = self._shelves.setdefault(size, _Shelf(size))
            shelf.most += 1
            self._places[layout] = nbytes, shelf
        Pool._all[id(self)] = weakref.ref(self)
        # Not kept alive by what is still lent, and then nobody needs what comes back.
        weakref.finalize(self, _close, id(self), list(self._shelves.values())).atexit = False

    def take(self, layouts: Iterable[Layout]) -> list[Tensor] | None:
        """A new tensor of each layout, all or some of those the pool is for; `None` if nothing can be mapped."""
        self._used = next(Pool._steps)
        if self._used % _IDLE == 0:
            Pool.give_back(self._used - _IDLE)
        made = []
        try:
            for layout in layouts:
                nbytes, shelf = self._places[layout]
                # The storage is as long as the tensor, which is no view.
                flat = torch.frombuffer(shelf.lend(nbytes), dtype=layout.dtype)
                made.append(flat.as_strided_(layout.shape, layout.stride))
        except OSError:
            return None
        return made

    @classmethod
    def give_back(cls, since: float = math.inf) -> int:
        """Give the system what nobody uses, of pools that were not used since a step; how many bytes."""
        pools = [reference() for reference in list(cls._all.values())]
        idle = [pool for pool in pools if pool is not None and pool._used < since]
        return sum(shelf.keep(0) for pool in idle for shelf in pool._shelves.values())


def _close(pool: int, shelves: Iterable[_Shelf]) -> None:
    Pool._all.pop(pool, None)
    for shelf in shelves:
        shelf.most = 0
        shelf.keep(0)


def nbytes_of(layout: Layout) -> int:
    """The size of a tensor."""
    return math.prod(layout.shape) * layout.dtype.itemsize


def is_large(layout: Layout) -> bool:
    """Whether a result of this kind is to lie in a pool."""
    return _MADVISE and nbytes_of(layout) >= LEAST


def release_memory() -> int:
    """Give the memory back to the system that steps keep for their next results.

    A step that makes new trees of 16 MB or more keeps the memory of one set of results, of those that are gone, for the
    next, since fresh memory costs more than what is written into it. Call this where training ends and something else
    needs memory; steps go on as before, and take new memory first. What belongs to tensors that are still there is
    not touched.

    Returns:
        How many bytes were given back.

    Example:
        >>> import optimfn as of
        >>> of.fused.release_memory()
        0
    """
    return Pool.give_back()
