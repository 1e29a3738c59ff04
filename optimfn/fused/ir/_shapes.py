"""Shapes and strides."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor


def dense_stride(x: Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor that fills its memory without holes or overlaps, in any order; else `None`.

    Axes of length one, of which the stride does not matter, get that of a contiguous tensor of this order.
    """
    if x.is_contiguous() or x.numel() < 2:
        return contiguous_stride(tuple(x.shape))
    order = sorted(range(x.ndim), key=lambda axis: (x.stride(axis), axis) if x.shape[axis] > 1 else (0, axis))
    strides, step = [0] * x.ndim, 1
    for axis in order:
        if x.shape[axis] > 1 and x.stride(axis) != step:
            return None
        strides[axis] = step
        step *= x.shape[axis]
    return tuple(strides)


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether several elements fill their memory without holes or overlaps, in any order of the axes."""
    step = 1
    for distance, size in sorted([(s, n) for s, n in zip(stride, shape, strict=True) if n > 1]):
        if distance != step:
            return False
        step *= size
    return True


def axes_between(small: tuple[int, ...], large: tuple[int, ...]) -> tuple[int, int] | None:
    """How often a shape is repeated to make another, and how many elements lie in the axes after the repeated ones.

    `None` if that cannot be said with two numbers: axes that are not repeated lie between those that are.
    """
    small = (1,) * (len(large) - len(small)) + small
    if len(small) != len(large) or any(a not in (1, b) for a, b in zip(small, large, strict=True)):
        return None
    if small == large:
        return 1, 1
    repeated = [axis for axis, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    if any(small[axis] != 1 for axis in range(repeated[0], repeated[-1] + 1)):
        return None
    return math.prod(large[repeated[0] : repeated[-1] + 1]), math.prod(large[repeated[-1] + 1 :])


def broadcast(shapes: Collection[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that tensors of several shapes make together. That of torch imports sympy, a quarter of a second.

    Raises:
        ValueError: if they do not go together.
    """
    most = max(map(len, shapes), default=0)
    axes = zip(*[(1,) * (most - len(shape)) + shape for shape in shapes], strict=True)
    sizes = [set(axis) - {1} or {1} for axis in axes]
    if any(len(size) > 1 for size in sizes):
        raise ValueError(f"shapes {', '.join(map(str, shapes))} do not go together")
    return tuple([size.pop() for size in sizes])


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def without(shape: tuple[int, ...], axes: Any, *, keepdim: bool) -> tuple[int, ...]:
    """A shape after a reduction; no axes are all."""
    gone = {axis % len(shape) for axis in (axes or range(len(shape)))} if shape else set()
    if keepdim:
        return tuple(1 if axis in gone else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def all_axes(axes: Any, shape: tuple[int, ...]) -> bool:
    """Whether a reduction over these axes, as ATen gives them, takes in the whole tensor."""
    if not isinstance(axes, tuple):
        return False
    return not axes or len({axis % len(shape) for axis in axes if shape}) == len(shape)
