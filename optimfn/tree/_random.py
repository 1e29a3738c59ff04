"""Random numbers as a function of a key: the same key gives the same numbers, however and wherever they are drawn.

A key is an int, or a 0-dim int64 tensor, which may be batched. There is no global state: whoever wants other numbers
folds something else into the key, such as a count.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .._typing import Tree
from ._core import cast_leaf, map, paths, wide
from ._shards import index_in, wrapped

Key: TypeAlias = int | Tensor
"""What random numbers are a function of."""

_GOLDEN = -0x61C8864680B583EB  # the odd number next to 2^64 / golden ratio, as int64
_MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))


def fold_in(key: Key, data: Key | str) -> Tensor:
    """Another key, made of a key and a number or a name.

    Args:
        key: An int or a 0-dim int64 tensor.
        data: An int, a 0-dim int64 tensor, or a string such as a path.

    Example:
        >>> import optimfn as of
        >>> [int(of.tree.fold_in(7, data)) % 1000 for data in (0, 1, "head.weight")]
        [975, 239, 999]
    """
    data = _hash(data) if isinstance(data, str) else data
    return _mix(_mix(_as_tensor(key)) + _as_tensor(data) * _GOLDEN)


def split_key_like(key: Key, tree: Tree) -> Tree:
    """A key for every leaf, made of the key and the path of the leaf, so that it does not hang on other leaves."""
    return map(lambda path: fold_in(key, path), paths(tree))


def uniform(key: Key, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) in the shape and on the device of a tensor, in float64."""
    return wrapped((wide(_bits(key, like) >> 12 & (1 << 52) - 1) + 0.5) * 2.0**-52, like)


def bits(key: Key, like: Tensor) -> Tensor:
    """64 random bits for each element of a tensor, as int64."""
    return wrapped(_bits(key, like), like)


def _bits(key: Key, like: Tensor) -> Tensor:
    return _mix(_mix(_as_tensor(key).to(like.device)) + (index_in(like) + 1) * _GOLDEN)


def noise(key: Key, like: Tensor) -> Tensor:
    """16 random bits for each element of a tensor, as int32, for a fraction of the work of `bits`.

    The number of the element and half of the key go through lowbias32 (Wellons, 2018), with the other half in between.
    """
    key = _mix(_as_tensor(key).to(like.device))
    place, high = index_in(like), (key >> 32).to(torch.int32)
    if like.numel() > 2**32:
        high = high ^ (place >> 32).to(torch.int32)
    x = place.to(torch.int32) ^ key.to(torch.int32)
    x = ((x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D) ^ high
    x = (x ^ (x >> 15 & 0x1FFFF)) * -0x7B935975
    return wrapped(x >> 16 & 0xFFFF, like)


def normal(key: Key, like: Tensor) -> Tensor:
    """Standard normal numbers in the shape and on the device of a tensor, in float64."""
    radius = torch.sqrt(-2 * torch.log(uniform(fold_in(key, 0), like)))
    return radius * torch.cos(2 * math.pi * uniform(fold_in(key, 1), like))


def rademacher(key: Key, like: Tensor) -> Tensor:
    """Numbers that are -1 or 1 with equal odds in the shape and on the device of a tensor, in float64."""
    return torch.where(uniform(key, like) < 0.5, -1.0, 1.0).to(torch.float64)


def random_like(
    key: Key,
    tree: Tree,
    sampler: Callable[[Key, Tensor], Tensor] = normal,
    dtype: torch.dtype | None = None,
) -> Tree:
    """Random leaves in the shapes, and unless `dtype` is given the dtypes, of the leaves of a tree.

    The numbers of a leaf depend on the key, its path and its shape only: not on other leaves, on the device, on the
    number of threads or on whether the code is compiled, transformed or captured.

    Args:
        key: An int or a 0-dim int64 tensor.
        tree: The tree to mirror.
        sampler: `f(key, leaf) -> numbers` for a real leaf, such as `normal`, `uniform` or `rademacher`. A complex leaf
            gets two independent parts, each over the root of 2.
        dtype: Dtype of the result.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.random_like(0, {"w": torch.ones(2), "b": torch.ones(1)})
        {'w': tensor([0.7488, 0.5018]), 'b': tensor([0.4045])}
    """

    def leaf(own_key: Tensor, x: Tensor) -> Tensor:
        if (x.dtype if dtype is None else dtype).is_complex:
            parts = [cast_leaf(sampler(fold_in(own_key, part), x), torch.float64) for part in (2, 3)]
            return cast_leaf(torch.complex(*parts) / math.sqrt(2), x.dtype if dtype is None else dtype)
        return cast_leaf(sampler(own_key, x), x.dtype if dtype is None else dtype)

    return map(leaf, split_key_like(key, tree), tree)


def _as_tensor(value: Key) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) in wrapping int64; shifts are logical."""
    for shift, factor in _MIX:
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def _hash(text: str) -> int:
    """FNV-1a in 32 bits: Python's own hash changes from run to run."""
    value = 0x811C9DC5
    encoded = text.encode()
    for i in range(len(encoded)):  # not over the bytes themselves: torch 2.10 cannot trace that
        byte = encoded[i]
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
