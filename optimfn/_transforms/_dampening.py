"""Momentum that takes new updates at less than their full weight."""

from typing import Any, NamedTuple

import torch

from .. import tree
from .._base import GradientTransformation
from .._checks import check_fraction
from .._recipe import factory
from .._typing import Count, Params, Scalar, Updates


class DampenedTraceState(NamedTuple):
    """The momentum."""

    count: Count  # () int64, steps taken
    trace: Params  # decayed sum of the updates, like params


@factory
def dampened_trace(decay: Scalar, dampening: Scalar = 0.0, nesterov: bool = False) -> GradientTransformation:
    """Replace the updates by their decayed sum, in which all but the first enter dampened.

    Maths:
        t <- g at the first step, then decay t + (1 - dampening) g
        update <- t, or g + decay t with `nesterov`

    Args:
        decay: Factor on the sum so far, no unit, in [0, 1].
        dampening: How much of a new update is left out, no unit, in [0, 1].
        nesterov: Look one step ahead.

    Shapes:
        state: count () int64; trace like params (float32 for float16 and bfloat16). Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `trace`, which is the case without dampening; `ema`, which also dampens the first update.

    Source: torch.optim.SGD.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.dampened_trace(0.5, dampening=0.5)
        >>> _, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> tx.update(torch.ones(1), state)[0]
        tensor([1.])
    """
    check_fraction(decay=decay, dampening=dampening)

    def init(params: Params) -> DampenedTraceState:
        return DampenedTraceState(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: DampenedTraceState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DampenedTraceState]:
        weight = torch.where(state.count == 0, 1.0, 1.0 - tree.wide(dampening))
        total = tree.add_scale(tree.scale(weight, updates), decay, state.trace)
        ahead = tree.add_scale(updates, decay, total) if nesterov else total
        new_state = DampenedTraceState(state.count + 1, tree.carry(total, state.trace))
        return tree.cast_like(ahead, updates), new_state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)
