"""Adafactor: a second moment of matrices kept as one row and one column."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_nonnegative, check_nonpositive
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Tree, Updates
from ._factored import mixed


class RowColState(NamedTuple):
    """The second moment, factored where a leaf has two or more axes."""

    count: Count  # () int64, steps taken
    v_row: Updates  # (..., m, 1) means of the squares over the last axis; (0,) for leaves with fewer than two axes
    v_col: Updates  # (..., 1, n) means over the last axis but one; (0,) for the same leaves
    v: Updates  # means of the squares of the other leaves, like params but real; (0,) for the factored ones


@factory
def scale_by_row_col_rms(beta2_decay: Scalar = -0.8, eps: Scalar | None = None) -> GradientTransformation:
    """Divide the updates by the root of a running mean of their squares, kept as a row and a column.

    A leaf with two or more axes is a stack of matrices over its last two; its mean square is taken to be an
    outer product. The memory falls from `m n` to `m + n` numbers a matrix.

    Maths:
        w = t^beta2_decay
        R <- R + w (mean over n of |g|^2 - R)         of a stack of m x n matrices
        C <- C + w (mean over m of |g|^2 - C)
        V = R C / max(mean over m of R, eps)
        V <- V + w (|g|^2 - V)                        of a leaf with fewer axes
        update <- g / sqrt(max(V, eps^2))

    Args:
        beta2_decay: Power with which the weight of the newest square falls, no unit, <= 0.
        eps: Least root mean square, in the unit of `|g|`, >= 0; `None` means the machine epsilon of the
            dtype of the moments.

    Shapes:
        state: count () int64; v_row (..., m, 1) and v_col (..., 1, n) for leaves (..., m, n); v like the
            other leaves; (0,) for what a leaf does not need; all real, float32 for float16 and bfloat16.
        Memory: (1/m + 1/n) x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adafactor, of which this is the second moment, for float16 and bfloat16 leaves:
        their moments are float32 here, and `eps=None` is float32's, not the 0.0078 of bfloat16. Complex
        leaves work here.

    Source: Shazeer and Stern, 2018, arXiv:1804.04235, Algorithm 4.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_row_col_rms()
        >>> tx.update(torch.tensor([[1.0, -2.0], [-2.0, 4.0]]), tx.init(torch.ones(2, 2)))[0]
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    check_nonpositive(beta2_decay=beta2_decay)
    if eps is not None:
        check_nonnegative(eps=eps)

    def init(params: Params) -> RowColState:
        # Only the shapes of these means are of use.
        parts = [tree.outline(part, params) for part in (row_means, col_means, unfactored)]
        parts = [tree.init_moment(part, real=True) for part in parts]
        return RowColState(tree.count(params), *parts)

    def update(
        updates: Updates, state: RowColState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, RowColState]:
        count = state.count + 1
        weight = tree.wide(count) ** beta2_decay
        g = tree.map(lambda u: tree.cast_leaf(u, torch.promote_types(u.dtype, torch.float32)), updates)
        square = tree.abs_sq(g)
        row = mixed(state.v_row, row_means(square), weight)
        col = mixed(state.v_col, col_means(square), weight)
        v = mixed(state.v, unfactored(square), weight)

        def leaf(g: Tensor, r: Tensor, c: Tensor, v: Tensor, mean: Tensor) -> Tensor:
            if is_factored(g):
                # The inner axis of the matrix product R C has length one, so it is an elementwise product.
                mean = tree.clip(mean, min_value=_floor(r, eps))
                v = torch.where(torch.isinf(mean), mean, r * c / mean)  # squares without room stop the leaf
            return g * torch.rsqrt(tree.clip(v, min_value=_floor(v, eps) ** 2))

        direction = tree.map(leaf, g, row, col, v, col_means(row))
        return tree.cast_like(direction, updates), RowColState(
            count, tree.carry(row, state.v_row), tree.carry(col, state.v_col), tree.carry(v, state.v)
        )

    return GradientTransformation(init, update, leafwise=True)


def is_factored(x: Tensor) -> bool:
    return x.ndim >= 2 and x.numel() > 0


def row_means(square: Tree) -> Tree:
    """The mean of each row of the matrices."""
    return tree.fold_each("mean", lambda x: (-1,) if is_factored(x) else None, _matrices(square), keepdim=True)


def col_means(square: Tree) -> Tree:
    """The mean of each column of the matrices."""
    return tree.fold_each("mean", lambda x: (-2,) if is_factored(x) else None, _matrices(square), keepdim=True)


def _matrices(square: Tree) -> Tree:
    return tree.map(lambda x: x if is_factored(x) else _nothing(x), square)


def unfactored(square: Tree) -> Tree:
    return tree.map(lambda x: _nothing(x) if is_factored(x) else x, square)


def _nothing(x: Tensor) -> Tensor:
    """A leaf without elements: `None` would be lighter, but `vmap` does not let it through."""
    return x.new_empty(0)


def _floor(moment: Tensor, eps: Scalar | None) -> Scalar:
    return torch.finfo(moment.dtype).eps if eps is None else eps
