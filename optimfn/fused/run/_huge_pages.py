"""Have the system join the pages of tensors that are there already into huge ones, once.

A donating step reads and writes all of them each time, and how fast that goes depends on how many pages they are on.
No value changes, and nothing depends on whether it succeeds.
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ._settings import settings

LEAST = 1 << 16  # bytes of a tensor
WORTH = 1 << 25  # bytes of all of them, from which on it is done
_HUGE = 1 << 21
_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1
_MOST = 1 << 16  # ranges that are remembered

_done: set[int] = set()  # huge pages by their numbers: memory that is given away and mapped anew is not joined again


def join_pages(tensors: Iterable[Tensor]) -> int:
    """Join the pages of large tensors of the CPU, out to the borders of huge pages; how many stretches were tried."""
    large = [x for x in tensors if x.is_cpu and x.nbytes >= LEAST]
    if not sys.platform.startswith("linux") or sum(x.nbytes for x in large) < WORTH or not settings.huge_pages:
        return 0
    advise = _madvise()
    if advise is None:
        return 0
    wanted = {page for x in large for page in _pages(x)} - _done
    if len(_done) > _MOST:
        _done.clear()
    _done.update(wanted)
    stretches = list(_stretches(sorted(wanted)))
    for first, last in stretches:
        advise(first * _HUGE, (last + 1 - first) * _HUGE, _COLLAPSE)  # whatever it answers
    return len(stretches)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found: Callable[[int, int, int], int] = advise
    return found


def _pages(x: Tensor) -> range:
    start = x.data_ptr()
    return range(start // _HUGE, (start + x.nbytes - 1) // _HUGE + 1)


def _stretches(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of pages that follow each other."""
    first = last = None
    for page in pages:
        if last is not None and page == last + 1:
            last = page
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = page
    if first is not None and last is not None:
        yield first, last
