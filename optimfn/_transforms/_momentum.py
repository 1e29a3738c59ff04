"""Running sums and means of the updates."""

from typing import Any, NamedTuple

import torch

from .. import tree
from .._base import GradientTransformation
from .._checks import check_decay, check_dtype, check_fraction
from .._recipe import factory
from .._typing import Count, Params, Scalar, Updates


class TraceState(NamedTuple):
    """The momentum."""

    trace: Params  # decayed sum of the updates, like params


class EmaState(NamedTuple):
    """A running mean."""

    count: Count  # () int64, steps taken
    ema: Params  # running mean of the updates, like params


@factory
def trace(
    decay: Scalar, nesterov: bool = False, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Replace the updates by their decayed sum: heavy-ball or Nesterov momentum.

    Maths:
        t <- g + decay t
        update <- t, or g + decay t with `nesterov`

    Args:
        decay: Factor on the sum so far, no unit, in [0, 1].
        nesterov: Look one step ahead.
        accumulator_dtype: Dtype of the sum; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        state: trace like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `ema`, which weighs the new update by `1 - decay`; optax, which keeps the sum of
        bfloat16 leaves in bfloat16.

    Source: Polyak, 1964; Nesterov, 1983; Sutskever et al., 2013.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.trace(0.5)
        >>> state = tx.init(torch.ones(1))
        >>> _, state = tx.update(torch.ones(1), state)
        >>> tx.update(torch.ones(1), state)[0]
        tensor([1.5000])
    """
    check_fraction(decay=decay)
    check_dtype(accumulator_dtype=accumulator_dtype)

    def init(params: Params) -> TraceState:
        return TraceState(tree.init_moment(params, accumulator_dtype))

    def update(
        updates: Updates, state: TraceState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, TraceState]:
        total = tree.add_scale(updates, decay, state.trace)
        ahead = tree.add_scale(updates, decay, total) if nesterov else total
        return tree.cast_like(ahead, updates), TraceState(tree.carry(total, state.trace))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def ema(
    decay: Scalar, debias: bool = True, accumulator_dtype: torch.dtype | None = None, *, nesterov: bool = False
) -> GradientTransformation:
    """Replace the updates by their exponential moving average.

    Maths:
        m <- decay m + (1 - decay) g
        update <- m, or decay m + (1 - decay) g with `nesterov`
        with `debias`, m / (1 - decay^t)
                       or decay m / (1 - decay^(t+1)) + (1 - decay) g / (1 - decay^t)

    Args:
        decay: Weight of the mean so far, no unit, in [0, 1).
        debias: Correct for the mean having begun at zero.
        accumulator_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead; with `debias`, as `scale_by_adam` does.

    Shapes:
        state: count () int64; ema like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which keeps the mean of bfloat16 leaves in bfloat16 and has no `nesterov`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.ema(0.9)
        >>> tx.update(torch.tensor([2.0]), tx.init(torch.ones(1)))[0]
        tensor([2.])
    """
    check_decay(decay=decay)
    check_dtype(accumulator_dtype=accumulator_dtype)

    def init(params: Params) -> EmaState:
        return EmaState(tree.count(params), tree.init_moment(params, accumulator_dtype))

    def update(
        updates: Updates, state: EmaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmaState]:
        count = state.count + 1
        mean = tree.update_moment(updates, state.ema, decay, 1)
        if debias:
            shown = tree.debiased_mean(updates, mean, decay, count, nesterov=nesterov)
        else:
            shown = tree.update_moment(updates, mean, decay, 1) if nesterov else mean
        return tree.cast_like(shown, updates), EmaState(count, tree.carry(mean, state.ema))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)
