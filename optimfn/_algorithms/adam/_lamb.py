"""LAMB: Adam with the size of each leaf's step tied to the size of the leaf."""

from ..._base import GradientTransformation, chain
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._transforms._trust_ratio import scale_by_trust_ratio
from ..._typing import Mask, Scalar, ScalarOrSchedule
from ._adam import scale_by_adam


@factory
def lamb(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step in Adam's direction, each leaf by the learning rate times its own norm: for large batches.

    Maths:
        d = adam + weight_decay p,  adam as in `scale_by_adam`
        update <- -learning_rate d |p| / |d|,  and -learning_rate d where either norm is 0

    Args:
        learning_rate: Relative change of a leaf per step, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay relative to Adam's direction, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: You et al., 2020, arXiv:1904.00962, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.lamb(0.1)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.tensor([3.0]))[0]
        tensor([-0.3000])
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        descend(learning_rate),
    )
