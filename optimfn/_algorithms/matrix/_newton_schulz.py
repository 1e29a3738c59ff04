"""Orthogonal matrices by polynomials, on matrices made of any axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._typing import Params, Scalar, Tree

Coefficients = tuple[float, float, float]


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a leaf make the sides of its matrices; the others are those of a batch."""

    reduction_axis: int | Sequence[int] = 0  # those of the inputs, which are summed over
    output_axis: int | Sequence[int] = 1  # those of the outputs


TORCH_LAYOUT = MuonDimensionNumbers(reduction_axis=1, output_axis=0)
DimensionNumbers = Tree | Callable[[Params], Tree]


def resolve_dimensions(given: DimensionNumbers | None, params: Params) -> Tree:
    """The dimension numbers of each leaf, `None` where it is no matrix."""
    if given is None:
        return tree.map(lambda p: _Box(TORCH_LAYOUT if p.ndim == 2 else None), params)
    found = given(params) if callable(given) and not isinstance(given, MuonDimensionNumbers) else given
    return _spread(found, params)


class _Box:
    """Keeps a named tuple from being walked into."""

    def __init__(self, content: MuonDimensionNumbers | None) -> None:
        self.content = content


def _spread(found: Any, params: Params) -> Tree:
    """A prefix of dimension numbers, over all leaves below."""
    if found is None or isinstance(found, MuonDimensionNumbers):
        return tree.map(lambda _: _Box(found), params)
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


def on_matrices(f: Callable[[Tensor, MuonDimensionNumbers], Tensor], leaves: Tree, dims: Tree) -> Tree:
    """Apply a function to each leaf as a whole, given its dimension numbers."""
    boxes = tree.leaves(tree.map(lambda _, box: box, leaves, dims))
    for x, box in zip(tree.leaves(leaves), boxes, strict=True):  # by every process, see `tree.on_full_matrix`
        if box.content is None:
            raise ValueError(f"scale_by_muon takes matrices only, got a leaf of shape {tuple(x.shape)}; mask it out")
        sides(x, box.content)
    done = leaves
    for kind in {str(box.content): box.content for box in boxes}.values():

        def turn(x: Tensor, kind: MuonDimensionNumbers = kind) -> Tensor:
            return f(x, kind)

        own = tree.map(lambda x, box, kind=kind: x if box.content == kind else None, leaves, dims)
        found = tree.on_full_matrix(turn, own)
        done = tree.map(lambda was, new: was if new is None else new, done, found)
    return done


def orthogonal(
    x: Tensor, dims: MuonDimensionNumbers, steps: Sequence[Coefficients], eps: Scalar, preconditioning: str
) -> Tensor:
    """The matrices of a leaf with their singular values driven to one, in the dtype of the leaf."""
    batch, inputs, outputs = sides(x, dims)
    order = batch + inputs + outputs
    fan_in, fan_out = fans(x, dims)
    moved = x.permute(order)
    y = moved.reshape(-1, fan_in, fan_out) if x.numel() else moved.new_zeros(0, fan_in, fan_out)
    turned = fan_in > fan_out
    y = _iterate(y.mT if turned else y, steps, eps, preconditioning)
    y = (y.mT if turned else y).reshape(moved.shape)
    return y.permute([order.index(axis) for axis in range(x.ndim)])


def _iterate(x: Tensor, steps: Sequence[Coefficients], eps: Scalar, preconditioning: str) -> Tensor:
    if preconditioning == "frobenius":
        x = x / (_root_of_squares(x) + eps)
    elif preconditioning == "spectral":
        x = x / (torch.linalg.matrix_norm(x, 2, keepdim=True) + eps)
    # The others divide by what grows with the matrix; one that is large is brought down first, and their eps with it.
    large = torch.clamp(_root_of_squares(x), min=1)
    if preconditioning in ("aol", "schatten"):
        x = x / large
    for number, (a, b, c) in enumerate(steps):
        gram = x @ x.mH
        if number == 0 and preconditioning == "aol":
            rows = torch.rsqrt(tree.clip(gram.abs().sum(-1, keepdim=True), min_value=eps / large / large))
            x, gram = x * rows, gram * rows * rows.mT
        elif number == 0 and preconditioning == "schatten":
            size = torch.rsqrt(tree.clip(_root_of_squares(gram), min_value=eps / large / large))
            x, gram = x * size, gram * size * size
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _root_of_squares(x: Tensor) -> Tensor:
    wide = tree.wide_dtype(x.dtype, x.device)  # in which the squares of all float32 have room
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    return tree.cast_leaf(norm, tree.real_dtype(x.dtype))
