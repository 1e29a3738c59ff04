"""D-Adaptation for Lion."""

from typing import Any, NamedTuple

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative, check_positive, check_rate, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates
from ._dadapt_sgd import largest


class DAdaptLionState(NamedTuple):
    """D-Adaptation's memory for Lion."""

    exp_avg: Updates  # running mean of the gradients times the rate, like params
    sign_sum: Updates  # running mean, slower, of the steps, like params
    estim_lr: Tensor  # () float64, the estimate of the distance
    numerator_weighted: Tensor  # () float64, running mean of what the steps have gained
    count: Count  # () int64, steps taken


@factory
def dadapt_lion(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    """Step as Lion does, with a rate that is an estimate of the distance to the solution.

    The learning rate is a factor for schedules; leave it at 1. Its authors think little of it; `prodigy` is stronger.

    Maths:
        r = d learning_rate,  q = sqrt(b2),  u = sign(b1 m + (1 - b1) g)
        n <- q n + (1 - q) r <u, s>,  s <- q s + (1 - q) r u,  m <- b2 m + (1 - b2) r g
        update <- -r (u + weight_decay p)
        d <- max(d, n / ((1 - q) |s|_1))

    Args:
        learning_rate: Factor on the rate, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        betas: Weight of the mean in the step and its decay, no unit, in [0, 1).
        estim_lr0: First estimate of the distance, in the unit of the parameters, > 0.
        weight_decay: Decay per unit of the rate, >= 0.

    Shapes:
        params: needed, real leaves. state: exp_avg, sign_sum like params; three scalars. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio and Mishchenko, 2023, arXiv:2301.07733, in the authors' code.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dadapt_lion(estim_lr0=0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    b1, b2 = betas
    check_rate(learning_rate=learning_rate)
    check_decay(**{"betas[0]": b1, "betas[1]": b2})
    check_positive(estim_lr0=estim_lr0)
    check_nonnegative(weight_decay=weight_decay)

    def init(params: Params) -> DAdaptLionState:
        zero, mean = tree.wide(tree.count(params)), tree.init_moment(params)
        numbers = zero + estim_lr0, zero.clone(), tree.count(params)
        return DAdaptLionState(mean, tree.init_moment(params), *numbers)

    def update(
        updates: Updates, state: DAdaptLionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DAdaptLionState]:
        need_params("dadapt_lion", params)
        rate, q = state.estim_lr * (learning_rate(state.count) if callable(learning_rate) else learning_rate), b2**0.5
        sign = tree.sign(tree.update_moment(updates, state.exp_avg, b1, 1))
        gain = q * state.numerator_weighted + (1 - q) * rate * tree.vdot(sign, state.sign_sum, wide=True)
        mean = tree.update_moment(tree.scale(rate, updates), state.exp_avg, b2, 1)
        total = tree.carry(tree.update_moment(tree.scale(rate, sign), state.sign_sum, q, 1), state.sign_sum)
        new = largest(state.estim_lr, gain, (1 - q) * tree.norm(total, 1, wide=True), None)
        step = tree.scale(-rate, tree.add_scale(sign, weight_decay, params))
        kept = tree.carry(mean, state.exp_avg), total
        return tree.cast_like(step, updates), DAdaptLionState(*kept, new, gain, state.count + 1)

    return GradientTransformation(init, update, elementwise=True)
