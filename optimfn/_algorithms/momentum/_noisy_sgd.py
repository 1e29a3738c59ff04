"""Gradient descent with annealed noise."""

from torch import Tensor

from ..._base import GradientTransformation, chain
from ..._recipe import factory
from ..._transforms._noise import add_noise
from ..._transforms._rate import descend
from ..._typing import Scalar, ScalarOrSchedule


@factory
def noisy_sgd(
    learning_rate: ScalarOrSchedule, eta: Scalar = 0.01, gamma: Scalar = 0.55, *, seed: int | Tensor
) -> GradientTransformation:
    """Step against the gradient plus normal noise, which becomes less from step to step.

    `add_noise` gives the maths.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        eta: Variance of the noise at the first step, in the unit of `|g|^2`, >= 0.
        gamma: Power with which the variance falls, no unit.
        seed: Any whole number, or a 0-dim int64 tensor.

    Shapes:
        state: that of `add_noise`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, where the seed is a `key`; the numbers are others.

    Source: Neelakantan et al., 2015, arXiv:1511.06807.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.noisy_sgd(1.0, seed=0)
        >>> tx.update(torch.zeros(2), tx.init(torch.zeros(2)))[0]
        tensor([ 0.0206, -0.1279])
    """
    return chain(add_noise(eta, gamma, seed), descend(learning_rate))
