"""Yogi: Adam whose second moment follows a fall of the gradients slowly."""

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
) -> GradientTransformation:
    """Scale the updates as Adam does, with a second moment that moves by the square of the update only.

    Where the updates have become small, Adam's second moment falls by a fraction of itself, and steps grow fast;
    this one falls by a fraction of the small square.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- nu - (1 - b2) sign(nu - |g|^2) |g|^2
        mu_hat = mu / (1 - b1^t),  nu_hat = nu / (1 - b2^t)
        update <- mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: One minus the weight of a square in `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        initial_accumulator_value: Value both moments start at, in the unit of `|g|` and `|g|^2`, >= 0.

    Shapes:
        state: count () int64; mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the paper, which debiases neither moment.

    Source: Zaheer et al., 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_yogi(eps=0.0, initial_accumulator_value=0.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root, initial_accumulator_value=initial_accumulator_value)

    def init(params: Params) -> ScaleByAdamState:
        moments = (tree.init_moment(params), tree.init_moment(params, real=True))
        return ScaleByAdamState(tree.count(params), *[tree.full_like(m, initial_accumulator_value) for m in moments])

    def towards(square: Tensor, v: Tensor) -> Tensor:
        moved = v - (1 - b2) * torch.sign(v - square) * square
        # Nothing is added to or taken from infinity: their difference is NaN.
        return tree.cast_leaf(torch.where(torch.isinf(v), v, moved), torch.promote_types(v.dtype, square.dtype))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.map(towards, tree.abs_sq(updates), state.nu)
        mu_hat, nu_hat = tree.bias_correction(mu, b1, count), tree.bias_correction(nu, b2, count)
        direction = tree.div_by_root(mu_hat, nu_hat, eps, eps_root)
        return tree.cast_like(direction, updates), ScaleByAdamState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def yogi(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-3
) -> GradientTransformation:
    """Step as Adam does, but let steps grow only slowly where the gradients become small.

    `scale_by_yogi` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: One minus the weight of a square in the second moment, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: that of `scale_by_yogi`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the paper, as `scale_by_yogi` says.

    Source: Zaheer et al., 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.yogi(0.1, eps=0.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    return chain(scale_by_yogi(b1, b2, eps), descend(learning_rate))
