"""StableAdamW: AdamW that slows down where its second moment lags behind."""

from typing import Any

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, need_params
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_stable_adam(
    b1: Scalar = 0.9, b2: Scalar = 0.99, eps: Scalar = 1e-6, weight_decay: Scalar = 0.0
) -> GradientTransformation:
    """Adam with the update clipping of Adafactor, of which the decay is a part.

    A loss that spikes because a gradient is far larger than those before is what it prevents.

    Maths:
        mu, nu: as in `scale_by_adam`, corrected;  r = rms(g / max(sqrt(nu), eps)) over the leaf
        update <- (mu / (sqrt(nu) + eps) + weight_decay p) / max(1, r)

    Args:
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0.

    Shapes:
        params: needed if there is a decay. state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is a decay and no parameters are given.

    Source: Wortsman et al., 2023, arXiv:2304.13013, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_stable_adam(eps=0.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, weight_decay=weight_decay)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay != 0

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        square = tree.bias_correction(nu, b2, count)
        step = tree.div_by_root(tree.bias_correction(mu, b1, count), square, eps)
        if decays:
            need_params("scale_by_stable_adam", params)
            step = tree.add_scale(step, weight_decay, params)
        lag = tree.map(torch.div, updates, tree.clip(tree.map(torch.sqrt, square), min_value=eps))
        slower = tree.map(lambda u, r: tree.scale(1 / torch.clamp(r, min=1), u), step, tree.norms(lag, mean=True))
        state = ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(slower, updates), state

    return GradientTransformation(init, update, leafwise=True)


@factory
def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 1e-2,
) -> GradientTransformation:
    """AdamW that takes shorter steps where its second moment lags behind the gradient.

    `scale_by_stable_adam` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0.

    Shapes:
        params: needed if there is a decay. state: that of `scale_by_stable_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is a decay and no parameters are given.

    Source: Wortsman et al., 2023, arXiv:2304.13013, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.stable_adamw(0.1, weight_decay=0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1100])
    """
    return chain(scale_by_stable_adam(b1, b2, eps, weight_decay), descend(learning_rate))
