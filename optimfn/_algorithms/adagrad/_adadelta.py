"""AdaDelta: steps in the unit of the parameters."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_fraction, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import scale_by_learning_rate
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByAdaDeltaState(NamedTuple):
    """How large gradients and steps have been."""

    e_g: Updates  # running mean of the squared magnitudes of the gradients, like params but real
    e_x: Updates  # the same of the updates that were made of them, like params but real


@factory
def scale_by_adadelta(rho: Scalar = 0.9, eps: Scalar = 1e-6) -> GradientTransformation:
    """Rescale the updates from the root mean square of the gradients to that of the steps so far.

    The unit of the gradients cancels, so there is no learning rate to find. The first step is only
    `sqrt(eps)` large, and with `eps=0` there is none.

    Maths:
        e_g <- rho e_g + (1 - rho) |g|^2
        d = g sqrt(e_x + eps) / sqrt(e_g + eps)
        e_x <- rho e_x + (1 - rho) |d|^2
        update <- d

    Args:
        rho: Decay of both means, no unit, in [0, 1].
        eps: Added inside both roots, in the units of `|g|^2` and of `|d|^2`, >= 0.

    Shapes:
        state: e_g, e_x like params but real (float32 for float16 and bfloat16). Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax for complex leaves, which squares the gradients there without their magnitude, and
        torch.optim.Adadelta for them too, which treats real and imaginary parts apart.

    Source: Zeiler, 2012, arXiv:1212.5701, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adadelta(rho=0.75, eps=1e-2)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([0.1998])
    """
    check_fraction(rho=rho)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdaDeltaState:
        return ScaleByAdaDeltaState(tree.init_moment(params, real=True), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdaDeltaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdaDeltaState]:
        e_g = tree.update_moment_per_elem_norm(updates, state.e_g, rho, 2)
        whitened = tree.div_by_root(updates, e_g, 0.0, eps)
        direction = tree.map(lambda w, e_x: w * torch.sqrt(e_x + eps), whitened, state.e_x)
        e_x = tree.update_moment_per_elem_norm(direction, state.e_x, rho, 2)
        return tree.cast_like(direction, updates), ScaleByAdaDeltaState(
            tree.carry(e_g, state.e_g), tree.carry(e_x, state.e_x)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the gradient, rescaled to the root mean square of the steps so far.

    `scale_by_adadelta` gives the maths. The weight decay is coupled: it is added to the gradient first.

    Args:
        learning_rate: Factor of the step, no unit, >= 0; a number, a 0-dim tensor or a schedule. `None`
            means 1, as in the paper.
        rho: Decay of both means, no unit, in [0, 1].
        eps: Added inside both roots, in the units of the squared gradient and of the squared step, >= 0.
        weight_decay: Unit of gradient per unit of parameter, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the
            parameters.

    Shapes:
        params: needed. state: that of `scale_by_adadelta`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, where `learning_rate=None` leaves out the sign too and goes uphill; and for complex
        leaves, see `scale_by_adadelta`. torch.optim.Adadelta has the same rule and the same defaults.

    Source: Zeiler, 2012, arXiv:1212.5701, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adadelta(rho=0.75, eps=1e-2)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1998])
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
    )
