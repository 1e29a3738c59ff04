"""Leaves with small axes merged and long ones cut, as Distributed Shampoo takes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._axes import Layout


@dataclass(frozen=True)
class Blocking:
    """Which blocks a leaf is made of."""

    largest: int  # size of an axis of a block at most
    target: int | None  # number of axes below which none are merged; `None`: none are merged at all
    sides: str = "both"

    def view(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a leaf with neighbouring axes merged, from the last to the first."""
        if self.target is None:
            return tuple(shape)
        sizes = [size for size in reversed(shape) if size != 1] or [1]
        found = [sizes[0]]
        for i, size in enumerate(sizes[1:], start=1):
            if len(found) + len(sizes) - i > self.target and found[-1] * size <= self.largest:
                found[-1] *= size
            else:
                found.append(size)
        return tuple(reversed(found))

    def layouts(self, shape: Sequence[int]) -> list[Layout]:
        """How the blocks of a leaf are seen, in their order; none of a leaf without elements."""
        if not math.prod(shape):
            return []
        found: list[tuple[int, ...]] = [()]
        for size in self.view(shape):
            found = [(*block, length) for block in found for length in self._lengths(size)]
        return [Layout(len(block), block, self._sides(block)) for block in found]

    def split(self, x: Tensor) -> list[Tensor]:
        """The blocks of a whole leaf."""
        if not x.numel():
            return []
        blocks = [x.reshape(self.view(x.shape))]
        for axis in range(blocks[0].ndim):
            blocks = [part for block in blocks for part in torch.split(block, self.largest, axis)]
        return blocks

    def join(self, blocks: Sequence[Tensor], like: Tensor) -> Tensor:
        """The leaf that blocks make."""
        if not blocks:
            return like
        view = self.view(like.shape)
        for axis in reversed(range(len(view))):
            n = len(self._lengths(view[axis]))
            if n > 1:
                blocks = [torch.cat(list(blocks[i : i + n]), axis) for i in range(0, len(blocks), n)]
        return blocks[0].reshape(like.shape)

    def _lengths(self, size: int) -> list[int]:
        return [min(self.largest, size - start) for start in range(0, size, self.largest)]

    def _sides(self, block: tuple[int, ...]) -> tuple[int, ...]:
        axes = range(len(block))
        return (min(axes, key=block.__getitem__),) if self.sides == "one" and block else tuple(axes)
