"""LaProp: momentum of gradients that are already divided by their root mean square."""

from typing import Any

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_laprop(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-15) -> GradientTransformation:
    """Average the updates after they are divided by the root of the running mean of their squares.

    Momentum and adaptation do not disturb each other: any two decays go together.

    Maths:
        nu <- b2 nu + (1 - b2) |g|^2
        mu <- b1 mu + (1 - b1) g / (sqrt(nu / (1 - b2^t)) + eps)
        update <- mu / (1 - b1^t)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: that of `scale_by_adam`, count () int64; mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Ziyin, Wang and Ueda, 2020, arXiv:2002.04839, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_laprop()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        scaled = tree.div_by_root(updates, tree.bias_correction(nu, b2, count), eps)
        mu = tree.update_moment(scaled, state.mu, b1, 1)
        direction = tree.cast_like(tree.bias_correction(mu, b1, count), updates)
        return direction, ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def laprop(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-15,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the mean of gradients that were divided by their root mean square.

    `scale_by_laprop` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_laprop`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ziyin, Wang and Ueda, 2020, arXiv:2002.04839, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.laprop(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1000])
    """
    return chain(scale_by_laprop(b1, b2, eps), add_decayed_weights(weight_decay, mask), descend(learning_rate))
