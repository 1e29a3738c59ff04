"""Reductions of leaves along some of their axes, which resolve where leaves lie in shards on several processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import is_dtensor, replicate, shard_like, without_parts, wrapped_like
from .._typing import Tree
from ._core import leaves, map, wide_dtype
from ._shards import all_reduce, local, map_rows

Axes = tuple[int, ...]

_PLAIN: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "sum": lambda x, axes, keepdim: x.sum(axes, keepdim),
    "mean": lambda x, axes, keepdim: x.mean(axes, keepdim),
    "max": lambda x, axes, keepdim: x.amax(axes, keepdim),
    "norm": lambda x, axes, keepdim: torch.linalg.vector_norm(
        x, dim=axes, keepdim=keepdim, dtype=wide_dtype(x.dtype, x.device)
    ),
}


def fold(how: str, x: Tensor, axes: Axes, *, keepdim: bool = False) -> Tensor:
    """One leaf reduced along some axes, as `fold_each`."""
    folded: Tensor = fold_each(how, lambda x: axes, x, keepdim=keepdim)
    return folded


def fold_each(how: str, axes: Callable[..., Axes | None], tree: Tree, *rest: Tree, keepdim: bool = False) -> Tree:
    """Each leaf reduced along some of its axes.

    Where leaves lie in shards, what is reduced along an axis that is cut is the same on all processes, by one
    collective for all leaves, as large as the results; what is cut along another axis stays so.

    Args:
        how: `"sum"`, `"mean"`, `"max"` (of nonnegative numbers: 0 where there are none), or `"norm"`, the 2-norm in
            float64.
        axes: A function of a leaf of each tree that says along which axes; a leaf of the first for which it says
            `None` stays as it is.
        tree: The tree.
        *rest: Others like it.
        keepdim: Whether the axes stay, with one element.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.fold_each("mean", lambda x: (1,), {"w": torch.tensor([[1.0, 3.0], [5.0, 7.0]])})
        {'w': tensor([2., 6.])}
    """

    def leaf(x: Tensor, *others: Any) -> Tensor:
        own = axes(x, *others)
        return x if own is None else _plain(how, x, own, keepdim)

    if not any(is_dtensor(x) for x in leaves(tree)):
        return map(leaf, tree, *rest)
    return map_rows(lambda rows: _folded(how, [(x, axes(x, *others)) for x, *others in rows], keepdim), tree, *rest)


def _plain(how: str, x: Tensor, axes: Axes, keepdim: bool) -> Tensor:
    if how == "max" and not x.numel():
        return x.sum(axes, keepdim)
    return _PLAIN[how](x, axes, keepdim)


def _folded(how: str, pairs: Sequence[tuple[Tensor, Axes | None]], keepdim: bool) -> list[Tensor]:
    made: list[Any] = []
    parts: list[Tensor] = []
    groups: list[tuple[Any, ...]] = []
    for x, axes in pairs:
        if axes is None or not is_dtensor(x):
            made.append(x if axes is None else _plain(how, x, axes, keepdim))
            continue
        x = without_parts(x)
        gone = {axis % x.ndim for axis in axes}
        cut = [p.is_shard() and p.dim in gone for p in x.placements]
        own = local(x)
        part = _plain("sum" if how == "mean" else how, own, axes, keepdim)
        parts.append(part.square() if how == "norm" else part)
        groups.append(tuple(x.device_mesh.get_group(i) for i, it_is in enumerate(cut) if it_is))
        made.append(_Waiting(x, gone, keepdim))
    found = iter(all_reduce(parts, "sum" if how == "mean" else how, groups))
    return [one.filled(how, next(found)) if isinstance(one, _Waiting) else one for one in made]


class _Waiting:
    """A DTensor, and along which of its axes it is being reduced."""

    def __init__(self, x: Any, gone: set[int], keepdim: bool) -> None:
        self.x, self.gone, self.keepdim = x, gone, keepdim

    def filled(self, how: str, value: Tensor) -> Any:
        """What comes of it, given what it has here."""
        x = self.x
        if how == "norm":
            value = value.sqrt()
        if how == "mean":
            count = 1
            for axis in self.gone:
                count *= x.shape[axis]
            value = value / count
        kept = [axis for axis in range(x.ndim) if self.keepdim or axis not in self.gone]
        shape = [1 if axis in self.gone else x.shape[axis] for axis in kept]
        return wrapped_like(value, x, shape, [self._placed(p, kept) for p in x.placements])

    def _placed(self, p: Any, kept: list[int]) -> Any:
        if not p.is_shard() or p.dim in self.gone:
            return replicate()
        return shard_like(p, kept.index(p.dim))
