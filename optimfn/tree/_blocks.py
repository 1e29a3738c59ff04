"""The elements of a tensor in their order: their numbers, and blocks of them, of which the last may be short."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Blocking(Protocol):
    """Goes over blocks in a way of its own; what it does not know it answers with `None`."""

    def largest_of_blocks(self, x: Tensor, size: int) -> Tensor | None:
        """See the function."""

    def to_blocks(self, values: Tensor, like: Tensor, size: int) -> Tensor | None:
        """A value for each block, repeated for its elements."""

    def index(self, like: Tensor) -> Tensor | None:
        """See the function."""

    def packed(self, codes: Tensor, size: int) -> Tensor | None:
        """See the function."""

    def unpacked(self, codes: Tensor, shape: tuple[int, ...], size: int) -> Tensor | None:
        """See the function."""


class _Blocking(threading.local):
    """Who goes over blocks in this thread, instead of us."""

    by: Blocking | None = None


_blocking = _Blocking()


@contextlib.contextmanager
def blocks_by(by: Blocking | None) -> Iterator[None]:
    """Have another go over blocks in this thread."""
    before, _blocking.by = _blocking.by, by
    try:
        yield
    finally:
        _blocking.by = before


def _asked(question: Callable[[Blocking], Tensor | None]) -> Tensor | None:
    """The answer of who goes over blocks instead of us, if there is one."""
    by = None if torch.compiler.is_compiling() else _blocking.by
    return None if by is None else question(by)


def largest_of_blocks(x: Tensor, size: int) -> Tensor:
    """The largest magnitude in each block: one vector."""
    found = _asked(lambda by: by.largest_of_blocks(x, size))
    if found is not None:
        return found
    return _rows(x, size).abs().amax(1)


def in_blocks(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, values: Tensor, size: int) -> Tensor:
    """Apply a function to the elements of a tensor, each with the value of its block.

    Args:
        f: A function that works element by element.
        x: The tensor.
        values: A value for each block.
        size: Elements of a block.
    """
    repeated = _asked(lambda by: by.to_blocks(values, x, size))
    if repeated is not None:
        return f(x, repeated)
    found, numel = f(_rows(x, size), values.unsqueeze(1)), math.prod(x.shape)
    return (found if found.numel() == numel else found.reshape(-1)[:numel]).reshape(x.shape)


def index(like: Tensor) -> Tensor:
    """The number of each element of a tensor, in the order of rows, as int64."""
    found = _asked(lambda by: by.index(like))
    if found is not None:
        return found
    return torch.arange(like.numel(), device=like.device).reshape(like.shape)


def packed(codes: Tensor, size: int) -> Tensor:
    """Two codes of 4 bits in a byte, the first in the upper half; along the last axis if its length is even.

    Args:
        codes: The codes, as bytes.
        size: Elements of a block, in which they were made.
    """
    found = _asked(lambda by: by.packed(codes, size))
    if found is not None:
        return found
    flat = codes.reshape(-1)
    if codes.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    pairs = flat.reshape(-1, 2)
    return (pairs[:, 0] * 16 + pairs[:, 1]).reshape(packed_shape(codes.shape))


def unpacked(codes: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """The codes that `packed` put together, in their shape."""
    found = _asked(lambda by: by.unpacked(codes, shape, size))
    if found is not None:
        return found
    flat = codes.reshape(-1)
    return torch.stack([flat // 16, flat % 16], 1).reshape(-1)[: math.prod(shape)].reshape(shape)


def packed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of codes of 4 bits."""
    if shape and shape[-1] % 2 == 0:
        return (*shape[:-1], shape[-1] // 2)
    return ((math.prod(shape) + 1) // 2,)


def _rows(x: Tensor, size: int) -> Tensor:
    """A row for each block, with zeros behind the last."""
    left = -x.numel() % size
    if left:
        flat = x.reshape(-1)
        x = torch.cat([flat, flat.new_zeros(left)])
    return x.reshape(-1, size)
