"""Rprop: steps that look at signs only, for gradients without noise."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_growth, check_nonnegative, check_rising
from ..._recipe import factory
from ..._transforms._rate import scale
from ..._typing import Params, Scalar, Updates


class ScaleByRpropState(NamedTuple):
    """How far each element goes, and which way it last went."""

    step_sizes: Updates  # length of the next step, like params
    prev_updates: Updates  # last gradient, 0 where its sign had changed, like params


@factory
def scale_by_rprop(
    learning_rate: Scalar,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> GradientTransformation:
    """Replace the updates by steps that grow while an element keeps its sign and shrink when it changes.

    Where the sign has just changed, the element rests for one step; so it does where the gradient is NaN.

    Maths:
        s = sign(g) sign(g_prev)
        step <- clip(step eta_plus, min, max)   where s > 0
                clip(step eta_minus, min, max)  where s < 0
                clip(step, min, max)            where s = 0
        g_prev <- 0 where s < 0, else g
        update <- step sign(g_prev)

    Args:
        learning_rate: Length of the first step, in parameter units, >= 0; a number or a 0-dim tensor. It is
            read once, by `init`.
        eta_minus: Factor of the step after a change of sign, no unit, in [0, 1).
        eta_plus: Factor of the step as long as the sign stays, no unit, >= 1.
        min_step_size: Shortest step, in parameter units, >= 0.
        max_step_size: Longest step, in parameter units, >= `min_step_size`.

    Shapes:
        updates: real leaves; state: step_sizes, prev_updates like params (float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax (0.2.8 and before), which emits the step of the update before, so that its first
        update is 0. The rule here is that of torch.optim.Rprop; there the real and imaginary parts of
        complex leaves are two elements.

    Source: Riedmiller and Braun, 1993; without weight backtracking, as in Igel and Hüsken, 2000 (iRprop-).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_rprop(0.1)
        >>> tx.update(torch.tensor([5.0, -0.2]), tx.init(torch.ones(2)))[0]
        tensor([ 0.1000, -0.1000])
    """
    check_nonnegative(learning_rate=learning_rate, min_step_size=min_step_size, max_step_size=max_step_size)
    check_rising(min_step_size=min_step_size, max_step_size=max_step_size)
    check_decay(eta_minus=eta_minus)
    check_growth(eta_plus=eta_plus)

    def init(params: Params) -> ScaleByRpropState:
        prev = tree.init_moment(params)
        return ScaleByRpropState(tree.scale(learning_rate, tree.ones_like(prev)), prev)

    def update(
        updates: Updates, state: ScaleByRpropState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRpropState]:
        # A product of signs: the product of two small gradients may underflow.
        sign = tree.map(lambda g, prev: torch.sign(g) * torch.sign(prev), updates, state.prev_updates)
        longer, shorter = tree.scale(eta_plus, state.step_sizes), tree.scale(eta_minus, state.step_sizes)
        steps = tree.clip(tree.map(_by_sign, sign, longer, shorter, state.step_sizes), min_step_size, max_step_size)
        prev = tree.map(lambda g, s: torch.where(s < 0, 0, g), updates, sign)
        direction = tree.map(lambda g, step: torch.sign(g) * step, prev, steps)
        return tree.cast_like(direction, updates), ScaleByRpropState(
            tree.carry(steps, state.step_sizes), tree.carry(prev, state.prev_updates)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def rprop(
    learning_rate: Scalar,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> GradientTransformation:
    """Step by the sign of the gradient, by a length that each element finds for itself.

    For gradients of the whole data set: with minibatches the signs are noise, and the steps shrink to
    nothing. `scale_by_rprop` gives the maths.

    Args:
        learning_rate: Length of the first step, in parameter units, >= 0; a number or a 0-dim tensor. It is
            read once, by `init`, so a schedule makes no sense here.
        eta_minus: Factor of the step after a change of sign, no unit, in [0, 1).
        eta_plus: Factor of the step as long as the sign stays, no unit, >= 1.
        min_step_size: Shortest step, in parameter units, >= 0.
        max_step_size: Longest step, in parameter units, >= `min_step_size`.

    Shapes:
        updates: real leaves; state: that of `scale_by_rprop`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which is one step late: see `scale_by_rprop`. Equal to torch.optim.Rprop.

    Source: Riedmiller and Braun, 1993; without weight backtracking, as in Igel and Hüsken, 2000 (iRprop-).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.rprop(0.1)
        >>> tx.update(torch.tensor([5.0, -0.2]), tx.init(torch.ones(2)))[0]
        tensor([-0.1000,  0.1000])
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size),
        scale(-1.0),
    )


def _by_sign(sign: Tensor, positive: Tensor, negative: Tensor, zero: Tensor) -> Tensor:
    return torch.where(sign > 0, positive, torch.where(sign < 0, negative, zero))
