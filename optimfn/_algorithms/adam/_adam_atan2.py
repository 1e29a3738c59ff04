"""Adam whose quotient is an angle, which needs no eps."""

from typing import Any

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_positive
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_adam_atan2(
    b1: Scalar = 0.9, b2: Scalar = 0.99, a: Scalar = 1.27, b: Scalar = 1.0
) -> GradientTransformation:
    """Give the angle whose tangent is Adam's step, so that scaling all gradients changes nothing, however small.

    Maths:
        mu <- b1 mu + (1 - b1) g,  nu <- b2 nu + (1 - b2) g^2
        update <- a atan2(mu / (1 - b1^t), b sqrt(nu / (1 - b2^t)))

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        a: Factor on the angle, no unit, > 0; 1.27 makes the first step one.
        b: Factor on the root, no unit, > 0.

    Shapes:
        updates: real leaves. state: that of `scale_by_adam`, count () int64; mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Everett et al., 2024, arXiv:2407.05872, section 4.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adam_atan2()
        >>> tx.update(torch.tensor([5.0, 1e-18]), tx.init(torch.ones(2)))[0]
        tensor([0.9975, 0.9975])
    """
    check_decay(b1=b1, b2=b2)
    check_positive(a=a, b=b)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        root = tree.scale(b, tree.map(torch.sqrt, tree.bias_correction(nu, b2, count)))
        angle = tree.scale(a, tree.map(torch.atan2, tree.bias_correction(mu, b1, count), root))
        state = ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(angle, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adam_atan2(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    a: Scalar = 1.27,
    b: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the angle whose tangent is Adam's step.

    `scale_by_adam_atan2` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        a: Factor on the angle, no unit, > 0.
        b: Factor on the root, no unit, > 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_adam_atan2`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Everett et al., 2024, arXiv:2407.05872, section 4.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adam_atan2(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0997])
    """
    return chain(scale_by_adam_atan2(b1, b2, a, b), add_decayed_weights(weight_decay, mask), descend(learning_rate))
