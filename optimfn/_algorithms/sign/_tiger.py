"""Tiger: the sign of a running mean, with decay."""

from ..._base import GradientTransformation, chain
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import ema
from ..._transforms._rate import descend
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ._sign_sgd import scale_by_sign


@factory
def tiger(
    learning_rate: ScalarOrSchedule,
    beta: Scalar = 0.965,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the sign of the running mean of the gradients, and decay: `signum` as `lion` is used.

    Lion with equal decays: its only state is one mean, which accumulated gradients can be written into.

    Maths:
        m <- beta m + (1 - beta) g
        update <- -learning_rate (sign(m) + weight_decay p)

    Args:
        learning_rate: Parameter units per step, >= 0; a number, a 0-dim tensor or a schedule.
        beta: Decay of the mean, no unit, in [0, 1).
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `ema`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Su, 2023, "Tiger: a tight-fisted optimizer".

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.tiger(0.1, weight_decay=0.1)
        >>> tx.update(torch.tensor([-3.0, 2.0]), tx.init(torch.ones(2)), torch.ones(2))[0]
        tensor([ 0.0900, -0.1100])
    """
    check_decay(beta=beta)
    return chain(
        ema(beta, debias=False),
        scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
