"""Orthogonal matrices by polynomials, on matrices made of any axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._typing import Params, Scalar, Tree


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf make the sides of its matrices; the others are those of a batch."""

    reduction_axis: int | Sequence[int] = 0  # those of the inputs, which are summed over
    output_axis: int | Sequence[int] = 1  # those of the outputs
    blocks: int | Sequence[int] | None = None  # matrices that lie below each other: how many, or the outputs of each


TORCH_LAYOUT = MuonDimensionNumbers(reduction_axis=1, output_axis=0)
LAYOUTS = ("flatten", "batch", "positions")
DimensionNumbers = Tree | Callable[[Params], Tree]


def resolve_dimensions(given: DimensionNumbers | None, params: Params) -> Tree:
    """The dimension numbers of each leaf, `None` where it is no matrix."""
    if given is None:
        return tree.map(lambda p: Box(TORCH_LAYOUT if p.ndim == 2 else None), params)
    found = given(params) if callable(given) and not isinstance(given, MuonDimensionNumbers) else given
    return _spread(found, params)


def fit_all(given: DimensionNumbers | None) -> bool:
    """Whether a leaf finds its dimension numbers by itself, wherever in a tree it is."""
    return given is None or isinstance(given, str | MuonDimensionNumbers)


def _named(layout: str, x: Tensor) -> MuonDimensionNumbers | None:
    """The dimension numbers that a word means for a leaf; `None` for one that is no matrix."""
    if layout not in LAYOUTS:
        words = ", ".join(map(repr, LAYOUTS))
        raise ValueError(f"a layout must be dimension numbers, None or one of {words}, got {layout!r}")
    if x.ndim < 2:
        return None
    if layout == "flatten":
        return MuonDimensionNumbers(tuple(range(1, x.ndim)), 0)
    return MuonDimensionNumbers(-1, -2) if layout == "batch" else TORCH_LAYOUT


class Box:
    """Keeps a named tuple from being walked into."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _spread(found: Any, params: Params) -> Tree:
    """A prefix of dimension numbers, over all leaves below."""
    if isinstance(found, str):
        return tree.map(lambda x: Box(_named(found, x)), params)
    if found is None or isinstance(found, MuonDimensionNumbers):
        return tree.map(lambda _: Box(found), params)
    if isinstance(found, dict):
        return {key: _spread(found[key], part) for key, part in params.items()}
    parts = [_spread(own, part) for own, part in zip(found, params, strict=True)]
    return type(params)(*parts) if hasattr(params, "_fields") else type(params)(parts)


def sides(x: Tensor, dims: MuonDimensionNumbers) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The axes of the batch, of the inputs and of the outputs."""
    inputs, outputs = _axes(dims.reduction_axis, x.ndim), _axes(dims.output_axis, x.ndim)
    if x.ndim < 2 or set(inputs) & set(outputs):
        raise ValueError(
            f"reduction_axis and output_axis must be different axes of a leaf with two or more, got {tuple(dims[:2])} "
            f"for the shape {tuple(x.shape)}"
        )
    return tuple([axis for axis in range(x.ndim) if axis not in inputs + outputs]), inputs, outputs


def _axes(given: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple([axis % max(ndim, 1) for axis in ([given] if isinstance(given, int) else given)])


def fans(x: Tensor, dims: MuonDimensionNumbers) -> tuple[int, int]:
    """Numbers of inputs and of outputs."""
    _, inputs, outputs = sides(x, dims)
    return math.prod([x.shape[axis] for axis in inputs]), math.prod([x.shape[axis] for axis in outputs])


def rows_of(x: Tensor, dims: MuonDimensionNumbers) -> list[int]:
    """The number of outputs of each block of a leaf."""
    _, outputs = fans(x, dims)
    if dims.blocks is None:
        return [outputs]
    if isinstance(dims.blocks, int):
        if dims.blocks < 1 or outputs % dims.blocks:
            raise ValueError(f"blocks must divide the {outputs} outputs of a leaf, got {dims.blocks}")
        return [outputs // dims.blocks] * dims.blocks
    if not dims.blocks or sum(dims.blocks) != outputs or any(size < 0 for size in dims.blocks):
        raise ValueError(f"blocks must add up to the {outputs} outputs of a leaf, got {tuple(dims.blocks)}")
    return [*dims.blocks]


def check_matrices(rule: str, leaves: Tree, dims: Tree) -> None:
    """Raise where a leaf is no matrix, on every process, see `tree.on_full_matrix`."""
    for x, box in zip(tree.leaves(leaves), tree.leaves(tree.map(lambda _, box: box, leaves, dims)), strict=True):
        if box.content is None:
            raise ValueError(f"{rule} takes matrices only, got a leaf of shape {tuple(x.shape)}; mask it out")
        sides(x, box.content)
        rows_of(x, box.content)


def on_matrices(
    f: Callable[[list[Tensor], MuonDimensionNumbers], list[Tensor]],
    leaves: Tree,
    dims: Tree,
    rule: str = "scale_by_muon",
) -> Tree:
    """Apply a function to whole leaves, together those of the same dimension numbers, which it is given."""
    check_matrices(rule, leaves, dims)

    def by_kind(xs: list[Tensor], boxes: list[Box]) -> list[Tensor]:
        found: list[Any] = [None] * len(xs)
        kinds: list[MuonDimensionNumbers] = []
        for box in boxes:
            if box.content not in kinds:
                kinds.append(box.content)
        for kind in kinds:
            own = [i for i, box in enumerate(boxes) if box.content == kind]
            for i, done in zip(own, f([xs[i] for i in own], kind), strict=True):
                found[i] = done
        return found

    return tree.on_full_matrix(by_kind, leaves, dims, together=True)


def orthogonal(
    xs: list[Tensor],
    dims: MuonDimensionNumbers,
    iterate: Callable[[Tensor], Tensor],
    *,
    squares_by_outputs: bool = False,
) -> list[Tensor]:
    """What an iteration makes of the matrices (..., rows, cols) of some leaves, which are not tall.

    The rows of a square one are its inputs, if not said otherwise; for what treats rows alike that is all the same.
    """

    def is_tall(fan_in: int, rows: int) -> bool:
        return fan_in > rows or (squares_by_outputs and fan_in == rows)

    def opened(x: Tensor) -> list[Tensor]:
        batch, inputs, outputs = sides(x, dims)
        moved = x.permute(batch + inputs + outputs)
        y = moved.reshape([x.shape[axis] for axis in batch] + [*fans(x, dims)])
        parts = [y] if dims.blocks is None else torch.split(y, rows_of(x, dims), -1)
        return [part.mT if is_tall(*part.shape[-2:]) else part for part in parts]

    def closed(x: Tensor, parts: list[Tensor]) -> Tensor:
        batch, inputs, outputs = sides(x, dims)
        order, (fan_in, _) = batch + inputs + outputs, fans(x, dims)
        parts = [part.mT if is_tall(fan_in, rows) else part for part, rows in zip(parts, rows_of(x, dims), strict=True)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        y = y.reshape([x.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(x.ndim)])
        # A view of axes in another order would be another graph in the next step of `torch.compile`.
        return y if x.ndim == 2 else y.clone(memory_format=torch.contiguous_format)

    return [*tree.map(closed, xs, tree.batched(iterate, [opened(x) for x in xs]))]


def scaled_by_shape(factor: Callable[[int, int], Scalar], leaves: Tree, dims: Tree, rule: str) -> Tree:
    """Leaves times a factor of the rows and columns of their matrices."""
    check_matrices(rule, leaves, dims)

    def scaled(x: Tensor, box: Box) -> Any:
        fan_in, _ = fans(x, box.content)
        rows = rows_of(x, box.content)
        return tree.scale(factor(rows[0], fan_in), x) if len({*rows}) == 1 else _each_block(x, box.content, factor)

    return tree.map(scaled, leaves, dims)


def _each_block(x: Tensor, dims: MuonDimensionNumbers, factor: Callable[[int, int], Scalar]) -> Tensor:
    """A leaf times the factor of each of its blocks, which differ."""
    batch, inputs, outputs = sides(x, dims)
    fan_in, _ = fans(x, dims)
    rows = rows_of(x, dims)
    numbers = torch.cat([torch.ones(r, dtype=x.dtype, device=x.device) * factor(r, fan_in) for r in rows])
    shape = [x.shape[axis] for axis in outputs]
    order = batch + inputs + outputs
    spread = numbers.reshape([1] * (x.ndim - len(outputs)) + shape)
    factors = tree.cast_leaf(spread.permute([order.index(axis) for axis in range(x.ndim)]), x.dtype)
    spread_out: Tensor = tree.settled(factors.expand(x.shape), x)
    return x * spread_out


def is_turned(x: Tensor) -> bool:
    """Whether a tall matrix is to be transposed: a small one, to share the products of those that are wide."""
    return x.shape[-2] > x.shape[-1] and x.shape[-1] <= 128
