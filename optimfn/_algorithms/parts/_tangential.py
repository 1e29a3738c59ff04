"""The projection of AdamP and SGDP: no step along parameters whose scale does not matter."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, check_transformation
from ..._checks import check_nonnegative, check_positive, need_params
from ..._order import Place
from ..._recipe import factory
from ..._typing import Mask, Params, Scalar, State, Tree, Updates
from ._cautious import rule_and_rest

Axes = tuple[int, ...]


@factory
def tangential(
    rule: GradientTransformation,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    eps: Scalar = 1e-8,
) -> GradientTransformation:
    """Take what points along the parameters out of a rule's direction, where the loss does not see their scale.

    That is where gradient and parameters are at right angles, as in front of a normalisation: there, momentum only
    makes the parameters grow, and the steps as angles shrink. Decay is weaker there. Leaves with fewer than two axes
    pass.

    Maths:
        c = |<p, g>| / (|p| |g|)                   of each row, all of one output: the first axis
        where max c < delta / sqrt(elements of a row):    d <- d - p <p, d> / |p|^2, row by row
        else the same for the whole leaf as one row
        update <- d + weight_decay (wd_ratio where d was changed, else 1) p

    Args:
        rule: A rule without learning rate and decay, such as `scale_by_adam()`.
        weight_decay: Decay per unit of learning rate, >= 0.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        delta: How far from right angles, no unit, >= 0.
        wd_ratio: Share of the decay that is left where the direction is changed, no unit, >= 0.
        eps: Added to norms, > 0.

    Shapes:
        params: needed. state: that of the rule.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; also for a rule with a learning rate
            or decay of its own.
        ValueError: in `update` if no parameters are given.

    Source: Heo et al., 2021, arXiv:2006.08217, Algorithms 1 and 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.tangential(of.trace(0.9)), torch.tensor([[2.0, 0.0]])
        >>> _, state = tx.update(torch.tensor([[5.0, 1.0]]), tx.init(params), params)
        >>> tx.update(torch.tensor([[0.0, 1.0]]), state, params)[0].round(decimals=4)
        tensor([[0.0000, 1.9000]])
    """
    check_transformation(rule=rule)
    check_nonnegative(weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio)
    check_positive(eps=eps)
    _, rest = rule_and_rest("tangential", rule)
    if any(member.recipe is not None and member.recipe.factory.__name__ != "identity" for member in rest):
        raise ValueError(
            f"tangential goes before the learning rate and has the decay itself; give the rule without {rest}"
        )

    return projected(rule, lambda: weight_decay, mask, delta, wd_ratio, eps)


def projected(
    rule: GradientTransformation,
    weight_decay: Callable[[], Scalar],
    mask: Mask | None,
    delta: Scalar,
    wd_ratio: Scalar,
    eps: Scalar,
) -> GradientTransformation:
    """`tangential` with a decay that is asked for at every step."""

    def view(axes: Any, g: Updates, p: Params, d: Updates) -> tuple[Tree, Tree]:
        """Whether the rows are at right angles to their gradients, and the direction without what is along them."""
        unit_p, unit_g = _units(p, axes, eps), _units(g, axes, eps)
        cosines = tree.map(torch.abs, _inner(unit_p, unit_g, axes))
        largest = tree.fold_each("max", _all_axes, cosines)
        bounds = tree.map(lambda x: delta / math.sqrt(max(math.prod([x.shape[i] for i in axes(x) or ()]), 1)), p)
        along = _inner(unit_p, d, axes)
        rest = tree.map(lambda d, u, a: tree.cast_leaf(d - u * a, d.dtype), d, unit_p, along)
        return tree.map(torch.lt, largest, bounds), rest

    def leaf(d: Tensor, rows: Tensor, by_row: Tensor, one: Tensor, at_once: Tensor) -> Tensor:
        return d if d.ndim < 2 else torch.where(rows, by_row, torch.where(one, at_once, d))

    def shrunk(p: Tensor, rows: Tensor, one: Tensor) -> Tensor:
        return p if p.ndim < 2 else torch.where(rows | one, tree.cast_leaf(p * wd_ratio, p.dtype), p)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        need_params("tangential", params)
        direction, state = rule.rule(updates, state, params, **extra)
        own = tree.map(lambda _, p: p, updates, params)
        (rows, by_row), (one, at_once) = (view(axes, updates, own, direction) for axes in (_row_axes, _all_axes))
        left = tree.map(leaf, direction, rows, by_row, one, at_once)
        share = tree.map(shrunk, own, rows, one)
        return tree.cast_like(tree.add_scale(left, weight_decay(), tree.select(mask, share)), direction), state

    update.__qualname__ = "tangential"  # by which it is named where it cannot go
    return GradientTransformation(
        rule.init, update, leafwise=rule.leafwise and tree.sees_leaves(mask), place=Place.RULE
    )


def _row_axes(x: Tensor) -> Axes | None:
    return tuple(range(1, x.ndim)) if x.ndim > 1 else None


def _all_axes(x: Tensor) -> Axes | None:
    return tuple(range(x.ndim)) if x.ndim > 1 else None


def _units(x: Tree, axes: Any, eps: Scalar) -> Tree:
    """The rows over their lengths, in float64, so that no product of large numbers is taken."""
    return tree.map(lambda x, n: x / (n + eps), x, tree.fold_each("norm", axes, x, keepdim=True))


def _inner(x: Tree, y: Tree, axes: Any) -> Tree:
    products = tree.map(lambda x, y: (x.conj() * y).real if x.is_complex() else x * y, x, y)
    return tree.fold_each("sum", axes, products, keepdim=True)
