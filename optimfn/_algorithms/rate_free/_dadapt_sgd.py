"""D-Adaptation for gradient descent."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_growth, check_nonnegative, check_positive, check_rate, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class DAdaptSGDState(NamedTuple):
    """D-Adaptation's memory for gradient descent."""

    start: Params  # the parameters at the start, like params
    grad_sum: Updates  # sum of the gradients times the rate, like params
    estim_lr: Tensor  # () float64, the estimate of the distance
    numerator: Tensor  # () float64, what the gradients have gained
    first_norm: Tensor  # () float64, the norm of the first gradient that was not zero
    count: Count  # () int64, steps taken


@factory
def dadapt_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    momentum: Scalar = 0.0,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    growth_rate: Scalar | None = None,
) -> GradientTransformation:
    """Descend with a rate that is a lower bound of the distance to the solution, over the norm of the first gradient.

    The learning rate is a factor for schedules; leave it at 1.

    Maths:
        r = d learning_rate / |g_1|,  g <- g + weight_decay p
        n <- n + r <g, s>,  s <- s + r g
        d <- max(d, min(2 n / |s|, growth_rate d))
        p <- momentum p + (1 - momentum) (p_0 - s)

    Args:
        learning_rate: Factor on the rate, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Weight of the parameters as they are, no unit, in [0, 1).
        estim_lr0: First estimate of the distance, in the unit of the parameters, > 0.
        weight_decay: Added to the gradient times the parameters, >= 0.
        growth_rate: How much the estimate may grow in a step, >= 1; `None` means any.

    Shapes:
        params: needed, real leaves. state: start, grad_sum like params; four scalars. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: the authors' code, which gives up on a first gradient of zero.

    Source: Defazio and Mishchenko, 2023, arXiv:2301.07733, Algorithm 4.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dadapt_sgd(estim_lr0=0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    check_rate(learning_rate=learning_rate)
    check_decay(momentum=momentum)
    check_positive(estim_lr0=estim_lr0)
    check_nonnegative(weight_decay=weight_decay)
    check_growth(**({} if growth_rate is None else {"growth_rate": growth_rate}))

    def init(params: Params) -> DAdaptSGDState:
        zero, sums = tree.wide(tree.count(params)), tree.init_moment(params)
        numbers = zero + estim_lr0, zero.clone(), zero.clone()
        return DAdaptSGDState(tree.keep(params, sums), sums, *numbers, tree.count(params))

    def update(
        updates: Updates, state: DAdaptSGDState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DAdaptSGDState]:
        need_params("dadapt_sgd", params)
        factor = learning_rate(state.count) if callable(learning_rate) else learning_rate
        first = torch.where(state.first_norm == 0, tree.norm(updates, wide=True), state.first_norm)
        rate = state.estim_lr * factor * torch.where(first == 0, 0.0, 1 / torch.where(first == 0, 1.0, first))
        decayed = tree.add_scale(updates, weight_decay, params)
        gain = state.numerator + rate * tree.vdot(decayed, state.grad_sum, wide=True)
        total = summed(decayed, rate, state.grad_sum)
        new = largest(state.estim_lr, 2 * gain, tree.norm(total, wide=True), growth_rate)
        step = from_start(updates, params, state.start, total, momentum)
        return step, DAdaptSGDState(state.start, total, new, gain, first, state.count + 1)

    return GradientTransformation(init, update, elementwise=True)


def summed(updates: Updates, rate: Tensor, total: Updates) -> Updates:
    """The sum of the gradients so far, each times the rate of its step."""
    new = tree.map(lambda g, s: s + tree.cast_leaf(g * rate, s.dtype), updates, total)
    return tree.carry(new, total)


def from_start(updates: Updates, params: Params | None, start: Params, way: Updates, momentum: Scalar) -> Updates:
    """What takes the parameters toward the point that lies a way from the start; momentum holds them back."""

    def leaf(u: Tensor, p: Tensor, p0: Tensor, s: Tensor) -> Tensor:
        return tree.cast_leaf((p0 - s - p) * (1 - momentum), u.dtype)

    return tree.map(leaf, updates, params, start, way)


def largest(estimate: Tensor, gain: Tensor, size: Tensor, growth: Scalar | None) -> Tensor:
    """The larger of the estimate so far and a new one, `gain / size`, which may not grow too fast."""
    new = torch.where(size == 0, 0.0, gain / torch.where(size == 0, 1.0, size))
    return torch.maximum(estimate, new if growth is None else torch.minimum(new, estimate * growth))
