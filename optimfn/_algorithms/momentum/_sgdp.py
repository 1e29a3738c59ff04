"""SGDP: momentum that takes no step along parameters whose scale does not matter."""

from typing import Any

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_fraction, check_nonnegative, check_positive
from ..._recipe import factory
from ..._transforms._momentum import TraceState
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ..parts._tangential import projected


def _heavy_ball(momentum: Scalar, dampening: Scalar, nesterov: bool) -> GradientTransformation:
    """A sum whose first gradient is damped as well, unlike torch's."""

    def init(params: Params) -> TraceState:
        return TraceState(tree.init_moment(params))

    def update(
        updates: Updates, state: TraceState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, TraceState]:
        total = tree.map(lambda g, m: tree.add_scale(tree.scale(momentum, m), 1 - dampening, g), updates, state.trace)
        direction = tree.add_scale(updates, momentum, total) if nesterov else total
        return tree.cast_like(direction, updates), TraceState(tree.carry(total, state.trace))

    return GradientTransformation(init, update, leafwise=True)


@factory
def sgdp(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    eps: Scalar = 1e-8,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step as gradient descent with momentum does, but not along parameters whose scale the loss does not see.

    `tangential` says where that is, and gives the maths; it goes with any rule.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Factor on the sum of gradients so far, no unit, in [0, 1).
        dampening: What the gradient's part in that sum lacks to 1, no unit, in [0, 1].
        weight_decay: Decay per unit of learning rate and `1 - momentum`, >= 0.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        delta: How far from right angles gradient and parameters may be, no unit, >= 0.
        wd_ratio: Share of the decay that is left where the step is changed, no unit, >= 0.
        eps: Added to norms, > 0.
        nesterov: Look one step ahead with the sum.

    Shapes:
        params: needed. state: that of `trace`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: the authors' code, which without `nesterov` projects its sum of gradients too.

    Source: Heo et al., 2021, arXiv:2006.08217, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.sgdp(0.1, 0.9), torch.tensor([[2.0, 0.0]])
        >>> tx.update(torch.tensor([[0.0, 5.0]]), tx.init(params), params)[0]
        tensor([[-0.0000, -0.5000]])
    """
    check_decay(momentum=momentum)
    check_fraction(dampening=dampening)
    check_nonnegative(weight_decay=weight_decay)
    check_nonnegative(delta=delta, wd_ratio=wd_ratio)
    check_positive(eps=eps)
    rule = _heavy_ball(momentum, dampening, nesterov)
    # What the sum of gradients has more of than they have, the decay has too.
    step = projected(rule, lambda: weight_decay / (1 - momentum), mask, delta, wd_ratio, eps)
    return chain(step, descend(learning_rate))
