"""Grokfast: slow gradients, amplified."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative
from ..._order import Place
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Updates


class GrokfastState(NamedTuple):
    """The slow part of the gradients."""

    count: Count  # () int64, steps taken
    mean: Updates  # running mean of the gradients, like params


@factory
def grokfast(alpha: Scalar = 0.98, lamb: Scalar = 2.0) -> GradientTransformation:
    """Add to each gradient a multiple of the running mean of all of them; a front for any rule.

    Models that generalise long after they fit do so sooner.

    Maths:
        mean <- alpha mean + (1 - alpha) g,  mean = g at the first step
        update <- g + lamb mean

    Args:
        alpha: Decay of the mean, no unit, in [0, 1).
        lamb: Weight of the mean, no unit, >= 0.

    Shapes:
        state: count () int64; mean like params, float32 for float16 and bfloat16. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Lee et al., 2024, arXiv:2405.20233, Algorithm 2 ("Grokfast-EMA").

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.grokfast()
        >>> tx.update(torch.tensor([1.0]), tx.init(torch.ones(1)))[0]
        tensor([3.])
    """
    check_decay(alpha=alpha)
    check_nonnegative(lamb=lamb)

    def init(params: Params) -> GrokfastState:
        return GrokfastState(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: GrokfastState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, GrokfastState]:
        weight = torch.where(state.count == 0, 0.0, tree.wide(state.count) * 0 + alpha)
        mean = tree.update_moment(updates, state.mean, weight, 1)
        loud = tree.add_scale(updates, lamb, mean)
        return tree.cast_like(loud, updates), GrokfastState(state.count + 1, tree.carry(mean, state.mean))

    return GradientTransformation(init, update, leafwise=True, elementwise=True, place=Place.FRONT)
