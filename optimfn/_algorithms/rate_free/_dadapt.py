"""D-Adaptation: Adam whose rate is an estimate of the distance to the solution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_growth, check_nonnegative, check_positive, check_rate, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates
from ._dadapt_sgd import largest


class DAdaptAdamWState(NamedTuple):
    """D-Adaptation's memory."""

    exp_avg: Updates  # running mean of the gradients times the rate, like params
    exp_avg_sq: Updates  # running mean of the squared magnitudes of the gradients, like params but real
    grad_sum: Updates  # running mean, slower, of the gradients times the rate, like params
    estim_lr: Tensor  # () float64, the estimate of the distance
    numerator_weighted: Tensor  # () float64, running mean of what the gradients have gained
    count: Count  # () int64, steps taken


@factory
def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    growth_rate: Scalar | None = None,
    use_bias_correction: bool = True,
) -> GradientTransformation:
    """Step as AdamW does, with a rate that is a lower bound of the distance to the solution.

    The learning rate is a factor for schedules; leave it at 1. `prodigy` finds the distance faster.

    Maths:
        r = d learning_rate sqrt(1 - b2^t) / (1 - b1^t), or d learning_rate without `use_bias_correction`;  q = sqrt(b2)
        n <- q n + (1 - q) r <g, s / (sqrt(v) + eps)>
        m <- b1 m + (1 - b1) r g,  v <- b2 v + (1 - b2) |g|^2,  s <- q s + (1 - q) r g
        update <- -m / (sqrt(v) + eps) - weight_decay r p
        d <- max(d, min(n / ((1 - q) |s|_1), growth_rate d))

    Args:
        learning_rate: Factor on the rate, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        betas: Decays of the mean and of the mean square, no unit, in [0, 1).
        eps: Added to the root, in the unit of `|g|`, > 0.
        estim_lr0: First estimate of the distance, in the unit of the parameters, > 0.
        weight_decay: Decay per unit of the rate, >= 0.
        growth_rate: How much the estimate may grow in a step, >= 1; `None` means any.
        use_bias_correction: Whether the rate has Adam's correction of its means; the authors' code has none by itself.

    Shapes:
        params: needed, real leaves. state: exp_avg, exp_avg_sq, grad_sum like params; three scalars.
        Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, where the estimate has the dtype of the parameters, and gradients of zero make it NaN.

    Source: Defazio and Mishchenko, 2023, arXiv:2301.07733, Algorithm 5.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dadapt_adamw(estim_lr0=0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    b1, b2 = betas
    check_rate(learning_rate=learning_rate)
    check_decay(**{"betas[0]": b1, "betas[1]": b2})
    check_positive(eps=eps, estim_lr0=estim_lr0)
    check_nonnegative(weight_decay=weight_decay)
    check_growth(**({} if growth_rate is None else {"growth_rate": growth_rate}))

    def init(params: Params) -> DAdaptAdamWState:
        zero = tree.wide(tree.count(params))
        moments = tree.init_moment(params), tree.init_moment(params, real=True), tree.init_moment(params)
        return DAdaptAdamWState(*moments, zero + estim_lr0, zero.clone(), tree.count(params))

    def update(
        updates: Updates, state: DAdaptAdamWState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DAdaptAdamWState]:
        need_params("dadapt_adamw", params)
        count, q = state.count + 1, b2**0.5
        rate = (learning_rate(state.count) if callable(learning_rate) else learning_rate) * state.estim_lr
        if use_bias_correction:
            rate = rate * torch.sqrt(tree.one_minus_power(b2, count)) / tree.one_minus_power(b1, count)
        along = tree.map(lambda _, s, v: s / (torch.sqrt(v) + eps), updates, state.grad_sum, state.exp_avg_sq)
        gain = q * state.numerator_weighted + (1 - q) * rate * tree.vdot(updates, along, wide=True)
        rated = tree.map(
            lambda g, m: tree.cast_leaf(g * rate, torch.promote_types(g.dtype, m.dtype)), updates, state[0]
        )
        mean, total = tree.update_moment(rated, state.exp_avg, b1, 1), tree.update_moment(rated, state.grad_sum, q, 1)
        square = tree.update_moment_per_elem_norm(updates, state.exp_avg_sq, b2, 2)
        total = tree.carry(total, state.grad_sum)
        step = tree.add_scale(tree.div_by_root(mean, square, eps), weight_decay * rate, params)
        new = largest(state.estim_lr, gain, (1 - q) * tree.norm(total, 1, wide=True), growth_rate)
        kept = tree.carry(mean, state.exp_avg), tree.carry(square, state.exp_avg_sq)
        return tree.cast_like(tree.scale(-1.0, step), updates), DAdaptAdamWState(*kept, total, new, gain, count)

    return GradientTransformation(init, update, elementwise=True)
