"""LARS: momentum with the size of each leaf's step tied to the size of the leaf."""

from ..._base import GradientTransformation, chain
from ..._checks import check_fraction
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import trace
from ..._transforms._rate import descend
from ..._transforms._trust_ratio import scale_by_trust_ratio
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ..._wrappers._masked import masked


@factory
def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step along the gradient, each leaf in proportion to its own norm, with momentum: for large batches.

    Maths:
        d = g + weight_decay p
        d <- d trust_coefficient |p| / (|d| + eps),  but d where either norm is 0
        t <- -learning_rate d + momentum t
        update <- t, or -learning_rate d + momentum t once more with `nesterov`

    The momentum is taken after the learning rate, so a schedule acts on each gradient as it enters the sum.

    Args:
        learning_rate: Relative change of a leaf per step in units of `trust_coefficient`, >= 0; a number, a 0-dim
            tensor or a schedule.
        weight_decay: L2 regularisation, gradient per parameter unit, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        trust_coefficient: Relative size of the update, no unit, >= 0.
        eps: Added to the norm of the update, in the unit of `|g|`, >= 0.
        trust_ratio_mask: Which leaves are scaled by their norm; the others take the gradient as it is.
        momentum: Decay of the sum of steps, no unit, in [0, 1].
        nesterov: Look one step ahead.

    Shapes:
        params: needed. state: trace like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: You, Gitman and Ginsburg, 2017, arXiv:1708.03888, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.lars(1.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.tensor([3.0]))[0]
        tensor([-0.0030])
    """
    check_fraction(momentum=momentum)
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        descend(learning_rate),
        trace(momentum, nesterov),
    )
