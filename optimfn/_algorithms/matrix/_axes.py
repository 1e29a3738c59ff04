"""Matrices along the axes of a leaf: which axes have one, and how they act."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._checks import check_steps
from ..._typing import Tree


class Axes(NamedTuple):
    """What belongs to those axes of a leaf that have a matrix."""

    axes: tuple[Tensor, ...]


class Layout(NamedTuple):
    """How a leaf is seen."""

    ndim: int  # axes that it has itself
    shape: tuple[int, ...]  # after neighbouring axes are merged
    axes: tuple[int, ...]  # which of these have a matrix


@dataclass(frozen=True)
class Layouts:
    """Which axes of leaves have a matrix."""

    largest: int
    merge: bool = False
    vectors: bool = False
    sides: str = "both"
    others: bool = True  # whether leaves of more than two axes have matrices

    def of(self, x: Tensor) -> Layout:
        """That of a leaf; matrices of size 1 are none."""
        shape = tuple(x.shape)
        if not x.numel() or (len(shape) == 1 and not self.vectors) or (len(shape) > 2 and not self.others):
            return Layout(x.ndim, shape, ())
        view = merged(shape, self.largest) if self.merge and len(shape) > 1 else shape
        axes = [axis for axis, size in enumerate(view) if 1 < size <= self.largest]
        if self.sides == "one" and axes:
            axes = [min(axes, key=lambda axis: view[axis])]
        return Layout(x.ndim, view, tuple(axes))


def merged(shape: Sequence[int], largest: int) -> tuple[int, ...]:
    """Neighbouring sizes multiplied from the front, as long as the product is small enough."""
    found: list[int] = []
    product = 1
    for size in shape:
        if product * size <= largest:
            product *= size
        elif product > 1:
            found.append(product)
            product = size
        else:
            found.append(size)
    return (*found, product) if product > 1 or not found else tuple(found)


def adjoint(x: Tensor) -> Tensor:
    """The conjugate transpose, resolved: it may rest in a state."""
    return torch.conj_physical(x.transpose(-1, -2))


def outer(layout: Layout, i: int, x: Tensor) -> Tensor:
    """The product of the unfolding of a leaf along one axis with its adjoint; there may be axes in front."""
    y = seen(layout, x)
    d = len(layout.shape)
    rows = y.movedim(layout.axes[i] - d, -d).reshape(*y.shape[: y.ndim - d], layout.shape[layout.axes[i]], -1)
    return rows @ rows.transpose(-1, -2).conj()


def apply(layout: Layout, x: Tensor, *matrices: Tensor) -> Tensor:
    """Multiply a leaf by a matrix along each of its axes that have one; there may be axes in front."""
    y = seen(layout, x)
    for axis, matrix in zip(layout.axes, matrices, strict=True):
        y = times(y, axis - len(layout.shape), matrix)
    return y.reshape(x.shape).contiguous()  # as it comes out of a branch of a graph: sums depend on it


def times(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply by a matrix along one axis, counted from the end; there may be axes in front, of both."""
    if axis == -1 and x.ndim == matrix.ndim - 1:
        return (matrix @ x.unsqueeze(-1)).squeeze(-1)
    if axis == -2:
        return _lined_up(matrix, x) @ x
    moved = x if axis == -1 else x.movedim(axis, -1)
    found = moved @ _lined_up(matrix.transpose(-1, -2), moved)
    return found if axis == -1 else found.movedim(-1, axis)


def _lined_up(matrix: Tensor, x: Tensor) -> Tensor:
    """A stack of matrices, with axes of size 1 for those of a leaf that are not multiplied."""
    front = matrix.ndim - 2
    return (
        matrix if not front else matrix.reshape(*matrix.shape[:front], *[1] * (x.ndim - front - 2), *matrix.shape[-2:])
    )


def scaled(layout: Layout, x: Tensor, vectors: Sequence[Tensor | None]) -> Tensor:
    """Multiply a leaf, as it is seen, by a vector along each axis that has a matrix."""
    d = len(layout.shape)
    for axis, vector in zip(layout.axes, vectors, strict=True):
        if vector is not None:
            x = x * vector.reshape(*vector.shape[:-1], *[-1 if i == axis else 1 for i in range(d)])
    return x


def sorted_along(layout: Layout, x: Tensor, *orders: Tensor) -> Tensor:
    """A leaf with its slices along each axis in another order."""
    y = seen(layout, x)
    for axis, order in zip(layout.axes, orders, strict=True):
        y = y.index_select(axis, order)
    return y.reshape(x.shape)


def in_batches(
    f: Callable[..., Any],
    rows: Sequence[tuple[Layout, Sequence[Tensor]]],
    own: Sequence[Any] = (),
    like: Sequence[Sequence[Tensor]] = (),
) -> list[Any]:
    """What `f(layout, *tensors)` makes of each row, small ones of the same layout and shapes at once.

    Where the leaves that rows belong to are given and lie in shards, processes share the work, see `tree.shared`; then
    `like` has tensors as results are, for each row.
    """
    if len(own) < len(rows) or not len(rows):
        return _by_layout(f, rows)

    def some(chosen: list[int]) -> list[tuple[Tensor, ...]]:
        made = _by_layout(f, [rows[i] for i in chosen])
        return [tuple(x) if isinstance(x, tuple | list) else (x,) for x in made]

    found = tree.shared(some, own, like)
    return found if isinstance(like[0], tuple) else [x for (x,) in found]


def _by_layout(f: Callable[..., Any], rows: Sequence[tuple[Layout, Sequence[Tensor]]]) -> list[Any]:
    groups: dict[Any, list[int]] = {}
    for i, (layout, row) in enumerate(rows):
        groups.setdefault((layout, len(row)), []).append(i)
    found: list[Any] = [None] * len(rows)
    for (layout, _), members in groups.items():
        columns = [list(column) for column in zip(*[rows[i][1] for i in members], strict=True)]
        made = tree.batched(functools.partial(f, layout), *columns)
        parts = zip(*made, strict=True) if isinstance(made, tuple) else made
        for i, part in zip(members, parts, strict=True):
            found[i] = part
    return found


def nodes(given: Tree, updates: Tree) -> list[Axes]:
    """Those of the leaves that have an update, in the order of the leaves."""
    found: list[Axes] = []

    def look(path: tuple[Any, ...], node: Any, update: Any) -> tuple[bool, Any]:
        if isinstance(node, Axes) and update is not None:
            found.append(node)
        return isinstance(node, Axes), node

    tree.map_nodes(look, given, updates)
    return found


def parted(given: Tree, updates: Tree, spread: int, kind: type[tuple[Any, ...]] = Axes) -> list[Tree]:
    """The updates of some leaves at a time, of which work is done in steps of its own: leaf i is in part i mod spread.

    Leaves are counted by what belongs to them, whether there is an update or not: where gradients come and go, each
    keeps its steps.
    """
    if spread == 1:
        return [updates]

    def part(j: int) -> Tree:
        numbers = itertools.count()

        def keep(path: tuple[Any, ...], node: Any, update: Any) -> tuple[bool, Any]:
            if not isinstance(node, kind):
                return False, node
            return True, update if not any(node) or next(numbers) % spread == j else None

        return tree.map_nodes(keep, given, updates)

    return [part(j) for j in range(spread)]


def ahead(part: int, spread: int, period: int) -> int:
    """By how many steps the work on a part comes earlier than that on the first."""
    return part * period // spread


def check_spread(spread: int, **period: int) -> None:
    """Whether work done once in a period can be spread over so many steps of it."""
    check_steps(spread=spread, at_least=1)
    ((name, steps),) = period.items()
    if spread > steps:
        raise ValueError(f"spread must be at most {name}, {steps}, got {spread}")


def replaced(given: Tree, updates: Tree, new: Sequence[Sequence[Tensor]]) -> Tree:
    """Others in their place, cast as those; leaves without an update keep theirs."""
    left = iter(new)

    def change(path: tuple[Any, ...], node: Any, update: Any) -> tuple[bool, Any]:
        if not isinstance(node, Axes) or update is None:
            return isinstance(node, Axes), node
        return True, tree.carry(Axes(tuple(next(left))), node)

    return tree.map_nodes(change, given, updates)


def split(flat: Sequence[Any], like: Sequence[Axes]) -> list[list[Any]]:
    """A list of what belongs to all axes, as lists for the leaves."""
    left = iter(flat)
    return [[next(left) for _ in node.axes] for node in like]


def seen(layout: Layout, x: Tensor) -> Tensor:
    """A leaf with its axes merged; those in front of them stay."""
    return x.reshape([*x.shape[: x.ndim - layout.ndim], *layout.shape])
