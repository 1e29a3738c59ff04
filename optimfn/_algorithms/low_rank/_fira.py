"""Fira and APOLLO: full rank updates, scaled by what a rule makes of a few directions."""

import math
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, identity
from ..._checks import check_choice, check_nonnegative, check_positive
from ..._recipe import factory
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ..adam._adam_in_two import adam_before_correction, corrected_and_decayed_last
from ..parts._norm_growth import limit_norm_growth
from ._space import Answer, Left, Space, down, in_low_rank, up

_EPS = 1e-8  # of the authors, added to the norm that is divided by


def _growth(a: Answer, per: str) -> Any:
    """How much longer the rule has made what it saw, for each row or column that it saw whole, or in all."""
    axis = None if per == "tensor" else 0 if isinstance(a.basis, Left) else 1
    sizes = [torch.linalg.vector_norm(tree.wide(x.abs()), dim=axis, keepdim=axis is not None) for x in (a.step, a.low)]
    return sizes[0] / (sizes[1] + _EPS)


@factory
def scale_by_fira(
    rule: GradientTransformation,
    rank: int = 128,
    update_proj_gap: int = 200,
    alpha: Scalar = 1.0,
    side: str = "short",
    growth: Scalar | None = 1.01,
) -> GradientTransformation:
    """`project` a rule, and let what it does not see pass too, scaled as the rule scales what it sees.

    Maths:
        low = g in the directions of P, as in `project`;  u = rule(low)
        rest = (g - alpha P low) |u_i| / (|low_i| + 1e-8),  i the rows or columns that P leaves whole
        update <- alpha P u + `limit_norm_growth` of the rest

    Args:
        rule: Any rule that needs no parameters.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        alpha: Factor of what comes back, no unit, >= 0.
        side: Which side becomes small, see `project`.
        growth: Largest growth of the norm of the rest in a step, no unit, >= 1; `None` for any.

    Shapes:
        state: that of `project`, and that of `limit_norm_growth`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Chen et al., 2024, arXiv:2410.01623.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_fira(of.scale(2.0), rank=1)  # a rule that is the same in all directions
        >>> g = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> tx.update(g, tx.init(g))[0].round(decimals=3)
        tensor([[4., 0.],
                [2., 2.]])
    """
    check_nonnegative(alpha=alpha)
    space = Space(rank, update_proj_gap, side, "svd", period_name="update_proj_gap")

    def rest(a: Answer) -> Tensor:
        unseen = a.g - alpha * up(down(a.g, a.basis), a.basis)
        return tree.cast_leaf(unseen * _growth(a, "channel"), a.g.dtype)

    def whole(a: Answer, rest: Tensor) -> Tensor:
        return tree.cast_leaf(alpha * up(a.step, a.basis), rest.dtype) + rest

    limiter = identity() if growth is None else limit_norm_growth(growth, _EPS)
    return in_low_rank(rule, space, rest, limiter, whole)


@factory
def scale_by_apollo(
    rule: GradientTransformation,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    side: str = "short",
    by: str = "gaussian",
    per: str = "channel",
    growth: Scalar | None = 1.01,
    *,
    seed: int = 0,
) -> GradientTransformation:
    """Scale each row or column of a matrix as a rule scales it in a few directions: the memory of a few, of full rank.

    Maths:
        low = g in the directions of P, as in `project`;  u = rule(low)
        update <- sqrt(scale) times `limit_norm_growth` of  g |u_i| / (|low_i| + 1e-8)

    Args:
        rule: Any rule that needs no parameters.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        scale: Square of a factor, no unit, > 0.
        side: Which side becomes small, see `project`.
        by: "gaussian" or "svd", see `project`.
        per: "channel": a factor for each row or column that the projection leaves whole; "tensor": one for the leaf.
        growth: Largest growth of the norm in a step, no unit, >= 1; `None` for any.
        seed: Of the random directions.

    Shapes:
        state: that of `project`, and that of `limit_norm_growth`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code in the random numbers.

    Source: Zhu et al., 2024, arXiv:2412.05270.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_apollo(of.scale(2.0), rank=1)
        >>> tx.update(torch.ones(2, 3), tx.init(torch.ones(2, 3)))[0]
        tensor([[2., 2., 2.],
                [2., 2., 2.]])
    """
    check_positive(scale=scale)
    check_choice("per", per, ("channel", "tensor"))
    space = Space(rank, update_proj_gap, side, by, seed, period_name="update_proj_gap")

    def scaled(a: Answer) -> Tensor:
        return tree.cast_leaf(a.g * _growth(a, per), a.g.dtype)

    def whole(a: Answer, limited: Tensor) -> Tensor:
        root = torch.sqrt(tree.wide(scale)) if isinstance(scale, Tensor) else math.sqrt(scale)
        return tree.cast_leaf(limited * root, limited.dtype)

    limiter = identity() if growth is None else limit_norm_growth(growth, _EPS)
    return in_low_rank(rule, space, scaled, limiter, whole)


@factory
def fira(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    alpha: Scalar = 1.0,
    side: str = "short",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by Adam on the leading directions of each matrix, and by scaled gradients on the others.

    `scale_by_fira` gives the maths; the rest is as in `galore_adamw`.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        alpha: Factor of what comes back, no unit, >= 0.
        side: Which side becomes small, see `project`.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added to the root before its bias is corrected, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_fira` of Adam.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Chen et al., 2024, arXiv:2410.01623.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.fira(0.1, rank=1)
        >>> w = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> tx.update(w, tx.init(w), w)[0].round(decimals=4)[0, 0]
        tensor(-0.1000)
    """
    directions = scale_by_fira(adam_before_correction(b1, b2, eps), rank, update_proj_gap, alpha, side)
    return corrected_and_decayed_last(directions, learning_rate, b1, b2, weight_decay, mask)


@factory
def apollo(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    side: str = "short",
    by: str = "gaussian",
    per: str = "channel",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    seed: int = 0,
) -> GradientTransformation:
    """Step by gradients of full rank, scaled as Adam scales a few directions of them.

    `scale_by_apollo` gives the maths; the rest is as in `galore_adamw`. The authors' APOLLO-Mini has `rank=1`,
    `per="tensor"` and `scale=128.0`.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank: Number of directions, >= 1.
        update_proj_gap: Steps between two choices of them, >= 1.
        scale: Square of a factor, no unit, > 0.
        side: Which side becomes small, see `project`.
        by: "gaussian" or "svd", see `project`.
        per: "channel" or "tensor", see `scale_by_apollo`.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added to the root before its bias is corrected, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        seed: Of the random directions.

    Shapes:
        params: needed. state: that of `scale_by_apollo` of Adam.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: the authors' code in the random numbers.

    Source: Zhu et al., 2024, arXiv:2412.05270.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.apollo(0.1, rank=1, per="tensor"), torch.ones(2, 2)
        >>> tx.update(w, tx.init(w), w)[0].shape
        torch.Size([2, 2])
    """
    directions = scale_by_apollo(
        adam_before_correction(b1, b2, eps), rank, update_proj_gap, scale, side, by, per, seed=seed
    )
    return corrected_and_decayed_last(directions, learning_rate, b1, b2, weight_decay, mask)
