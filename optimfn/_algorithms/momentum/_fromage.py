"""Fromage: steps of a fixed relative size that do not let the weights grow."""

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_rate
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import scale_by_schedule
from ..._transforms._trust_ratio import scale_by_trust_ratio
from ..._typing import Scalar, ScalarOrSchedule


@factory
def fromage(learning_rate: ScalarOrSchedule, min_norm: Scalar = 1e-6) -> GradientTransformation:
    """Step along the gradient, each leaf in proportion to its own norm, and shrink what results.

    Maths:
        c = 1 / sqrt(1 + learning_rate^2)
        p' = c (p - learning_rate g |p| / |g|),  norms as in `scale_by_trust_ratio`
        update <- p' - p

    Args:
        learning_rate: Relative change of a leaf per step, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        min_norm: Least norm of parameter and gradient, in the unit of either, >= 0.

    Shapes:
        params: needed. state: two counts () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, whose state is empty where the learning rate is a number.

    Source: Bernstein et al., 2020, arXiv:2002.03432, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.fromage(0.75)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.tensor([1.0]))[0]
        tensor([-0.8000])
    """
    check_rate(learning_rate=learning_rate)

    # Schedules also for a number: a tensor is read in the update, not here.
    def rate(count: int | Tensor) -> Tensor:
        value = learning_rate(count) if callable(learning_rate) else learning_rate
        return tree.wide(count) * 0 + value

    def shrink(count: int | Tensor) -> Tensor:
        return (1 + rate(count) ** 2) ** -0.5

    return chain(
        scale_by_trust_ratio(min_norm),
        scale_by_schedule(lambda count: -rate(count) * shrink(count)),
        add_decayed_weights(lambda count: shrink(count) - 1),
    )
