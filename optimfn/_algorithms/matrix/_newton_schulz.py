"""Orthogonal matrices by polynomials, on matrices made of any axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ... import tree
from ..._typing import Params, Tree


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf make the sides of its matrices; the others are those of a batch."""

    reduction_axis: int | Sequence[int] = 0  # those of the inputs, which are summed over
    output_axis: int | Sequence[int] = 1  # those of the outputs


TORCH_LAYOUT = MuonDimensionNumbers(reduction_axis=1, output_axis=0)
DimensionNumbers = Tree | Callable[[Params], Tree]


def resolve_dimensions(given: DimensionNumbers | None, params: Params) -> Tree:
    """The dimension numbers of each leaf, `None` where it is no matrix."""
    if given is None:
        return tree.map(lambda p: Box(TORCH_LAYOUT if p.ndim == 2 else None), params)
    found = given(params) if callable(given) and not isinstance(given, MuonDimensionNumbers) else given
    return _spread(found, params)


class Box:
    """Keeps a named tuple from being walked into."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _spread(found: Any, params: Params) -> Tree:
    """A prefix of dimension numbers, over all leaves below."""
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
            f"reduction_axis and output_axis must be different axes of a leaf with two or more, got {tuple(dims)} "
            f"for the shape {tuple(x.shape)}"
        )
    return tuple([axis for axis in range(x.ndim) if axis not in inputs + outputs]), inputs, outputs


def _axes(given: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple([axis % max(ndim, 1) for axis in ([given] if isinstance(given, int) else given)])


def fans(x: Tensor, dims: MuonDimensionNumbers) -> tuple[int, int]:
    """Numbers of inputs and of outputs."""
    _, inputs, outputs = sides(x, dims)
    return math.prod([x.shape[axis] for axis in inputs]), math.prod([x.shape[axis] for axis in outputs])


def on_matrices(f: Callable[[list[Tensor], MuonDimensionNumbers], list[Tensor]], leaves: Tree, dims: Tree) -> Tree:
    """Apply a function to whole leaves, together those of the same dimension numbers, which it is given."""
    boxes = tree.leaves(tree.map(lambda _, box: box, leaves, dims))
    for x, box in zip(tree.leaves(leaves), boxes, strict=True):  # by every process, see `tree.on_full_matrix`
        if box.content is None:
            raise ValueError(f"scale_by_muon takes matrices only, got a leaf of shape {tuple(x.shape)}; mask it out")
        sides(x, box.content)
    done = leaves
    for kind in {str(box.content): box.content for box in boxes}.values():

        def turn(xs: list[Tensor], kind: MuonDimensionNumbers = kind) -> list[Tensor]:
            return f(xs, kind)

        own = tree.map(lambda x, box, kind=kind: x if box.content == kind else None, leaves, dims)
        found = tree.on_full_matrix(turn, own, together=True)
        done = tree.map(lambda was, new: was if new is None else new, done, found)
    return done


def orthogonal(xs: list[Tensor], dims: MuonDimensionNumbers, iterate: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What an iteration makes of the matrices (..., rows, cols) of some leaves, which are not tall."""

    def opened(x: Tensor) -> Tensor:
        batch, inputs, outputs = sides(x, dims)
        fan_in, fan_out = fans(x, dims)
        moved = x.permute(batch + inputs + outputs)
        y = moved.reshape([x.shape[axis] for axis in batch] + [fan_in, fan_out])
        return y.mT if fan_in > fan_out else y

    def closed(x: Tensor, y: Tensor) -> Tensor:
        batch, inputs, outputs = sides(x, dims)
        order = batch + inputs + outputs
        fan_in, fan_out = fans(x, dims)
        y = (y.mT if fan_in > fan_out else y).reshape([x.shape[axis] for axis in order])
        return y.permute([order.index(axis) for axis in range(x.ndim)])

    return [*tree.map(closed, xs, tree.batched(iterate, [opened(x) for x in xs]))]


def is_turned(x: Tensor) -> bool:
    """Whether a tall matrix is to be transposed: a small one, to share the products of those that are wide."""
    return x.shape[-2] > x.shape[-1] and x.shape[-1] <= 128
