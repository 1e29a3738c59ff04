"""MADGRAD: dual averaging with momentum, over a cube root."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_fraction, check_nonnegative, check_rate, need_params
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class MadgradState(NamedTuple):
    """MADGRAD's memory."""

    count: Count  # () int64, steps taken
    grad_sum_sq: Updates  # weighted sum of the squared magnitudes of the gradients, like params but real
    s: Updates  # weighted sum of the gradients, like params
    x0: Params  # the parameters at the start, like params


@factory
def scale_by_madgrad(
    learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9, eps: Scalar = 1e-6
) -> GradientTransformation:
    """Step towards the start minus the sum of all gradients over a cube root; the learning rate is inside.

    Maths:
        lam = (learning_rate + eps) sqrt(t),  t from 1
        s <- s + lam g,  nu <- nu + lam |g|^2
        z = x0 - s / (nu^(1/3) + eps)
        update <- (1 - momentum) (z - p)

    Args:
        learning_rate: Unit of the parameter^(3/2) per gradient^(1/2), >= 0; a number, a 0-dim tensor or a schedule.
        momentum: How much of the parameters stays, no unit, in [0, 1]; at 1 they stand still.
        eps: Added to the learning rate and to the root, >= 0.

    Shapes:
        params: needed. state: count () int64; grad_sum_sq, s, x0 like params. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio and Jelassi, 2021, arXiv:2101.11075, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_madgrad(1.0, momentum=0.0, eps=0.0)
        >>> tx.update(torch.tensor([8.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-2.])
    """
    check_rate(learning_rate=learning_rate)
    check_fraction(momentum=momentum)
    check_nonnegative(eps=eps)

    def init(params: Params) -> MadgradState:
        sums = tree.init_moment(params, real=True), tree.init_moment(params)
        return MadgradState(tree.count(params), *sums, tree.keep(params, params))

    def update(
        updates: Updates, state: MadgradState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MadgradState]:
        need_params("scale_by_madgrad", params)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        lam = (rate + eps) * torch.sqrt(tree.wide(state.count + 1))
        total = tree.add_scale(state.grad_sum_sq, lam, tree.abs_sq(updates))
        s = tree.add_scale(state.s, lam, updates)
        moved = tree.map(lambda g, s, nu: s / (nu ** (1 / 3) + eps), updates, s, total)
        away = tree.map(lambda d, x0, p: tree.cast_leaf(x0, d.dtype) - p, moved, state.x0, params)
        step = tree.scale(1 - momentum, tree.sub(away, moved))
        state = MadgradState(state.count + 1, tree.carry(total, state.grad_sum_sq), tree.carry(s, state.s), state.x0)
        return tree.cast_like(step, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def madgrad(
    learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9, weight_decay: ScalarOrSchedule = 0.0, eps: Scalar = 1e-6
) -> GradientTransformation:
    """Dual averaging with momentum over a cube root: `scale_by_madgrad` of decayed gradients.

    As well as gradient descent with momentum on vision models, and as easily tuned as Adam. Decay less than for these.

    Args:
        learning_rate: Unit of the parameter^(3/2) per gradient^(1/2), >= 0; a number, a 0-dim tensor or a schedule.
        momentum: How much of the parameters stays, no unit, in [0, 1].
        weight_decay: Added to the gradient times the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        eps: Added to the learning rate and to the root, >= 0.

    Shapes:
        params: needed. state: that of `scale_by_madgrad`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio and Jelassi, 2021, arXiv:2101.11075, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.madgrad(1.0, momentum=0.5, eps=0.0)
        >>> tx.update(torch.tensor([8.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-1.])
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
