"""Stochastic gradient descent."""

import torch

from ..._base import GradientTransformation, chain, identity
from ..._checks import check_momentum
from ..._recipe import factory
from ..._transforms._momentum import trace
from ..._transforms._rate import descend
from ..._typing import Scalar, ScalarOrSchedule


@factory
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Step against the gradient, with momentum if asked for.

    Maths:
        t <- g + momentum t
        update <- -learning_rate t, or -learning_rate (g + momentum t) with `nesterov`

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Decay of the sum of gradients, no unit, in [0, 1]; `None` keeps no sum.
        nesterov: Look one step ahead; needs `momentum`.
        accumulator_dtype: Dtype of the sum; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        state: with `momentum`, trace like params. Memory: 1 x params; without, none.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.SGD, which has dampening and keeps bfloat16 momentum in bfloat16. Without
        dampening the two agree.

    Source: Robbins and Monro, 1951; Polyak, 1964; Nesterov, 1983; Sutskever et al., 2013.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.sgd(0.1, momentum=0.9)
        >>> tx.update(torch.tensor([1.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    check_momentum(momentum, nesterov)
    return chain(
        identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype),
        descend(learning_rate),
    )
