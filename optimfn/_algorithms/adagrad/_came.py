"""CAME: Adafactor whose mean update is divided by how much the updates differ from it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_positive
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Tree, Updates
from ._adafactor import col_means, is_factored, row_means, unfactored
from ._factored import mixed


class CameState(NamedTuple):
    """CAME's memory."""

    mu: Updates  # running mean of the clipped updates, like params
    v_row: Updates  # (..., m, 1) means of the squared gradients over the last axis; (0,) for leaves with one axis
    v_col: Updates  # (..., 1, n) means over the last axis but one; (0,) for the same leaves
    v: Updates  # means of the squares of the other leaves; (0,) for the factored ones
    res_row: Updates  # as v_row, of the squared differences of updates and their mean
    res_col: Updates  # as v_col, of the same


@factory
def scale_by_came(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    eps: Scalar = 1e-30,
    eps_res: Scalar = 1e-16,
    clip_threshold: Scalar = 1.0,
) -> GradientTransformation:
    """Average clipped Adafactor updates, and divide them by a factored root mean square of what they are off by.

    Maths, of a stack of m x n matrices; leaves with fewer axes keep V whole and take m as it is:
        R <- b2 R + (1 - b2) mean over n of (|g|^2 + eps),  C the same over m
        u = g / sqrt(R C / mean of R),  u <- u / max(1, rms(u) / clip_threshold)
        m <- b1 m + (1 - b1) u
        S <- b3 S + (1 - b3) mean over n of (|u - m|^2 + eps_res),  T the same over m
        update <- m / sqrt(S T / mean of S)

    Args:
        b1: Decay of the mean update, no unit, in [0, 1).
        b2: Decay of the mean squares, no unit, in [0, 1).
        b3: Decay of the mean squared differences, no unit, in [0, 1).
        eps: Added to the squares, in the unit of `|g|^2`, >= 0.
        eps_res: Added to the squared differences, no unit, >= 0.
        clip_threshold: Largest root mean square of an update, no unit, > 0.

    Shapes:
        state: mu like params; two rows and two columns for leaves (..., m, n); v like the other leaves; (0,) for what
            a leaf does not need. Memory: (1 + 2/m + 2/n) x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Luo et al., 2023, arXiv:2307.02047, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_came(b1=0.0, b3=0.0, eps_res=1.0)
        >>> tx.update(torch.tensor([[1.0, -2.0], [-2.0, 4.0]]), tx.init(torch.ones(2, 2)))[0]
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    check_decay(b1=b1, b2=b2, b3=b3)
    check_nonnegative(eps=eps, eps_res=eps_res)
    check_positive(clip_threshold=clip_threshold)

    def init(params: Params) -> CameState:
        parts = [tree.outline(part, params) for part in (row_means, col_means, unfactored, row_means, col_means)]
        return CameState(tree.init_moment(params), *(tree.init_moment(part, real=True) for part in parts))

    def update(
        updates: Updates, state: CameState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, CameState]:
        square = _raised(updates, eps)
        row, col = _means(square, state.v_row, state.v_col, b2)
        v = mixed(state.v, unfactored(square), 1 - b2)
        u = _divided(updates, row, col, v)
        u = tree.map(
            lambda u, r: tree.scale(1 / torch.clamp(r / clip_threshold, min=1), u), u, tree.norms(u, mean=True)
        )
        mu = tree.update_moment(u, state.mu, b1, 1)
        res_row, res_col = _means(_raised(tree.sub(u, mu), eps_res), state.res_row, state.res_col, b3)
        direction = _divided(mu, res_row, res_col, None)
        news = (mu, row, col, v, res_row, res_col)
        return tree.cast_like(direction, updates), CameState(*map(tree.carry, news, state))

    return GradientTransformation(init, update, leafwise=True)


def _raised(x: Tree, eps: Scalar) -> Tree:
    return tree.map(lambda s: tree.cast_leaf(s + eps, s.dtype), tree.abs_sq(x))


def _means(square: Tree, row: Tree, col: Tree, decay: Scalar) -> tuple[Tree, Tree]:
    return mixed(row, row_means(square), 1 - decay), mixed(col, col_means(square), 1 - decay)


def _divided(x: Tree, row: Tree, col: Tree, v: Tree | None) -> Tree:
    """Leaves over the root of an outer product, or of what is kept whole; without that they stay."""

    def leaf(x: Tensor, r: Tensor, c: Tensor, mean: Tensor, v: Tensor) -> Tensor:
        if not is_factored(x):
            return x if v is None else x * torch.rsqrt(v)
        r = torch.where(torch.isinf(mean), mean, r / mean)  # squares without room stop the leaf, as in Adam
        return x * torch.rsqrt(r) * torch.rsqrt(c)

    return tree.map(leaf, x, row, col, col_means(row), tree.map(lambda _: None, x) if v is None else v)


@factory
def came(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    eps: Scalar = 1e-30,
    eps_res: Scalar = 1e-16,
    clip_threshold: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by a mean Adafactor update over how much the updates differ from it.

    `scale_by_came` gives the maths. The authors use a rate of 2e-4.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean update, no unit, in [0, 1).
        b2: Decay of the mean squares, no unit, in [0, 1).
        b3: Decay of the mean squared differences, no unit, in [0, 1).
        eps: Added to the squares, in the unit of `|g|^2`, >= 0.
        eps_res: Added to the squared differences, no unit, >= 0.
        clip_threshold: Largest root mean square of an update, no unit, > 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_came`. Memory: (1 + 2/m + 2/n) x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Luo et al., 2023, arXiv:2307.02047, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.came(0.1, b1=0.0, b2=0.0), torch.ones(2)
        >>> tx.update(torch.tensor([1.0, -7.0]), tx.init(params), params)[0]
        tensor([-0.1000,  0.1000])
    """
    return chain(
        scale_by_came(b1, b2, b3, eps, eps_res, clip_threshold),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
