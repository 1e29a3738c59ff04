"""AdaMax: Adam in the infinity norm, and with decoupled weight decay."""

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
def scale_by_adamax(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide the running mean of the updates by a slowly sinking maximum of their magnitudes.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- max(b2 nu, |g| + eps)
        update <- mu / (1 - b1^t) / nu

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added to the magnitudes, in the unit of `|g|`, >= 0; at 0 an element without a gradient so far
            is 0 / 0.

    Shapes:
        state: that of `scale_by_adam`; `nu` holds magnitudes, not their squares. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the paper, which has no `eps`; torch.optim.Adamax for complex leaves (magnitude here, real
        and imaginary parts apart there) and for bfloat16 leaves (whose moments are bfloat16 there).

    Source: Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adamax()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleByAdamState:
        mu, nu = tree.init_moment(params), tree.init_moment(params, real=True)
        return ScaleByAdamState(tree.count(params), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_infinity_moment(updates, state.nu, b2, eps)
        direction = tree.div(tree.bias_correction(mu, b1, count), nu)
        return tree.cast_like(direction, updates), ScaleByAdamState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adamax(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> GradientTransformation:
    """Step by the debiased mean of the gradients over a slowly sinking maximum of their magnitudes.

    `scale_by_adamax` gives the maths; here the learning rate multiplies it. No step is much longer than the
    learning rate, and one large gradient shortens them for about `1 / (1 - b2)` steps.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the maximum, no unit, in [0, 1).
        eps: Added to the magnitudes, in the unit of `|g|`, >= 0.

    Shapes:
        state: that of `scale_by_adamax`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adamax: see `scale_by_adamax`; and its `weight_decay` is L2 regularisation,
        here `chain(add_decayed_weights(...), adamax(...))`.

    Source: Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adamax(2e-3)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.0020])
    """
    return chain(scale_by_adamax(b1, b2, eps), descend(learning_rate))


@factory
def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
) -> GradientTransformation:
    """AdaMax with weight decay that does not pass through the preconditioner.

    Maths:
        update <- -learning_rate (adamax + weight_decay p),  adamax as in `scale_by_adamax`

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the maximum, no unit, in [0, 1).
        eps: Added to the magnitudes, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_adamax`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Kingma and Ba, 2015, arXiv:1412.6980, Algorithm 2; Loshchilov and Hutter, 2019,
        arXiv:1711.05101 (the decay).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adamaxw(2e-3, weight_decay=0.5)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0030])
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
