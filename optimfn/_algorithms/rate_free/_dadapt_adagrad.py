"""D-Adaptation for AdaGrad."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_growth, check_nonnegative, check_positive, check_rate, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates
from ._dadapt_sgd import from_start, largest, summed


class DAdaptAdaGradState(NamedTuple):
    """D-Adaptation's memory for AdaGrad."""

    start: Params  # the parameters at the start, like params
    grad_sum: Updates  # sum of the gradients times the rate, like params
    sum_of_squares: Updates  # sum of the squared gradients, like params
    estim_lr: Tensor  # () float64, the estimate of the distance
    squares_weighted: Tensor  # () float64, what the steps alone would have gained
    count: Count  # () int64, steps taken


@factory
def dadapt_adagrad(
    learning_rate: ScalarOrSchedule = 1.0,
    momentum: Scalar = 0.0,
    eps: Scalar = 1e-6,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    growth_rate: Scalar | None = None,
    initial_accumulator_value: Scalar = 1e-6,
) -> GradientTransformation:
    """Step as AdaGrad does, with a rate that is a lower bound of the distance to the solution.

    The learning rate is a factor for schedules; leave it at 1.

    Maths:
        r = d learning_rate,  g <- g + weight_decay p
        a <- a + g^2,  w = sqrt(a) + eps,  s <- s + r g,  q <- q + r^2 sum(g^2 / w)
        d <- max(d, min((sum(s^2 / w) - q) / |s|_1, growth_rate d))
        p <- momentum p + (1 - momentum) (p_0 - s / w)

    Args:
        learning_rate: Factor on the rate, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Weight of the parameters as they are, no unit, in [0, 1).
        eps: Added to the root, in the unit of `|g|`, > 0.
        estim_lr0: First estimate of the distance, in the unit of the parameters, > 0.
        weight_decay: Added to the gradient times the parameters, >= 0.
        growth_rate: How much the estimate may grow in a step, >= 1; `None` means any.
        initial_accumulator_value: What the sum of squares starts from, in the unit of `|g|^2`, >= 0.

    Shapes:
        params: needed, real leaves. state: start, grad_sum, sum_of_squares like params; three scalars.
        Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio and Mishchenko, 2023, arXiv:2301.07733, Algorithm 3, with the decay of the authors' code.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dadapt_adagrad(estim_lr0=0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    check_rate(learning_rate=learning_rate)
    check_decay(momentum=momentum)
    check_positive(eps=eps, estim_lr0=estim_lr0)
    check_nonnegative(weight_decay=weight_decay, initial_accumulator_value=initial_accumulator_value)
    check_growth(**({} if growth_rate is None else {"growth_rate": growth_rate}))

    def init(params: Params) -> DAdaptAdaGradState:
        zero, sums = tree.wide(tree.count(params)), tree.init_moment(params)
        squares = tree.map(lambda s: s + initial_accumulator_value, tree.init_moment(params))
        numbers = zero + estim_lr0, zero.clone(), tree.count(params)
        return DAdaptAdaGradState(tree.keep(params, sums), sums, tree.cast_like(squares, sums), *numbers)

    def update(
        updates: Updates, state: DAdaptAdaGradState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DAdaptAdaGradState]:
        need_params("dadapt_adagrad", params)
        rate = (learning_rate(state.count) if callable(learning_rate) else learning_rate) * state.estim_lr
        decayed = tree.add_scale(updates, weight_decay, params)
        squares = tree.map(lambda g, a: a + g * g, decayed, state.sum_of_squares)
        squares = tree.carry(squares, state.sum_of_squares)
        total = summed(decayed, rate, state.grad_sum)
        ahead = tree.div_by_root(total, squares, eps)
        own = tree.map(lambda g, a: g / (torch.sqrt(a) + eps), decayed, squares)
        alone = state.squares_weighted + rate**2 * tree.vdot(decayed, own, wide=True)
        gain = tree.vdot(total, ahead, wide=True) - alone
        new = largest(state.estim_lr, gain, tree.norm(total, 1, wide=True), growth_rate)
        step = from_start(updates, params, state.start, ahead, momentum)
        return step, DAdaptAdaGradState(state.start, total, squares, new, alone, state.count + 1)

    return GradientTransformation(init, update, elementwise=True)
