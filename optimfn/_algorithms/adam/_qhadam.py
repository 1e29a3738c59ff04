"""QHAdam: Adam between its means and the newest gradient."""

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_fraction, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_qhadam(
    b1: Scalar = 0.995, b2: Scalar = 0.999, nu1: Scalar = 0.7, nu2: Scalar = 1.0, eps: Scalar = 1e-8
) -> GradientTransformation:
    """Adam with both means mixed with what the newest update says.

    `nu1 = nu2 = 1` is Adam, `nu1 = b1` and `nu2 = 1` almost NAdam, `nu1 = 0` RMSProp.

    Maths:
        mu, nu: as in `scale_by_adam`, corrected
        update <- ((1 - nu1) g + nu1 mu) / (sqrt((1 - nu2) |g|^2 + nu2 nu) + eps)

    Args:
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        nu1: Weight of the mean, no unit, in [0, 1].
        nu2: Weight of the mean square, no unit, in [0, 1].
        eps: Added outside the root, in the unit of `|g|`, >= 0.

    Shapes:
        state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Ma and Yarats, 2018, arXiv:1810.06801, section 5.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_qhadam()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_fraction(nu1=nu1, nu2=nu2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def between(square: Tensor, v: Tensor) -> Tensor:
        # Squares without room stop the leaf, as in Adam: nothing may be infinity less infinity.
        square = torch.clamp(square, max=torch.finfo(square.dtype).max)
        return torch.where(torch.isinf(v), v, tree.lerp(square, v, nu2))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        mean = tree.lerp(updates, tree.bias_correction(mu, b1, count), nu1)
        square = tree.map(between, tree.abs_sq(updates), tree.bias_correction(nu, b2, count))
        state = ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(tree.div_by_root(mean, square, eps), updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def qhadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.995,
    b2: Scalar = 0.999,
    nu1: Scalar = 0.7,
    nu2: Scalar = 1.0,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Adam between its means and the newest gradient.

    `scale_by_qhadam` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        nu1: Weight of the mean, no unit, in [0, 1].
        nu2: Weight of the mean square, no unit, in [0, 1].
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_qhadam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ma and Yarats, 2018, arXiv:1810.06801, section 5.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.qhadam(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1000])
    """
    return chain(
        scale_by_qhadam(b1, b2, nu1, nu2, eps), add_decayed_weights(weight_decay, mask), descend(learning_rate)
    )
