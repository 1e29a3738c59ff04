"""Steps by the sign of the gradient, and of its running mean."""

import torch

from ... import tree
from ..._base import GradientTransformation, chain, elementwise, stateless
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._momentum import ema
from ..._transforms._rate import descend
from ..._typing import Scalar, ScalarOrSchedule


@factory
def scale_by_sign() -> GradientTransformation:
    """Replace every element of the updates by its sign.

    Shapes:
        state: empty. For complex leaves the sign is `g / |g|`.

    Example:
        >>> import torch, optimfn as of
        >>> of.scale_by_sign().update(torch.tensor([-3.0, 0.0, 2.0]), of.EmptyState())[0]
        tensor([-1.,  0.,  1.])
    """
    return elementwise(stateless(lambda updates, params: tree.sign(updates)))


@factory
def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransformation:
    """Step by the sign of the gradient: every element moves by the learning rate.

    Args:
        learning_rate: Parameter units per step, >= 0; a number, a 0-dim tensor or a schedule.

    Shapes:
        state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Bernstein et al., 2018, arXiv:1802.04434, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> of.sign_sgd(0.1).update(torch.tensor([-3.0, 2.0]), of.sign_sgd(0.1).init(None))[0]
        tensor([ 0.1000, -0.1000])
    """
    return chain(scale_by_sign(), descend(learning_rate))


@factory
def signum(
    learning_rate: ScalarOrSchedule, beta: Scalar = 0.9, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Step by the sign of the running mean of the gradients.

    Args:
        learning_rate: Parameter units per step, >= 0; a number, a 0-dim tensor or a schedule.
        beta: Weight of the mean so far, no unit, in [0, 1).
        accumulator_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        state: count () int64; ema like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Bernstein et al., 2018, arXiv:1802.04434, Algorithm 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.signum(0.1)
        >>> tx.update(torch.tensor([-3.0, 2.0]), tx.init(torch.ones(2)))[0]
        tensor([ 0.1000, -0.1000])
    """
    check_decay(beta=beta)
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        descend(learning_rate),
    )
