"""A limiter of how fast the norm of an update may grow."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_growth, check_nonnegative
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Updates


class LimitNormGrowthState(NamedTuple):
    """How large the last updates were."""

    count: Count  # () int64, steps taken
    norm: Updates  # norm of the last update that was let through, one () float64 per leaf


@factory
def limit_norm_growth(growth: Scalar = 1.01, eps: Scalar = 1e-8) -> GradientTransformation:
    """Shrink each leaf of the updates so that its norm is at most `growth` times what it was at the last step.

    Maths:
        update <- u min(1, growth (n + eps) / |u|),  n the norm of the last result;  u at the first step

    Args:
        growth: Largest growth in a step, no unit, >= 1.
        eps: Added to the last norm, in the unit of the updates, >= 0, so that a leaf at rest can move again.

    Shapes:
        state: count () int64; norm one () float64 per leaf.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Chen et al., 2024, arXiv:2410.01623 (Fira); Zhu et al., 2024, arXiv:2412.05270 (APOLLO).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.limit_norm_growth(1.5, eps=0.0)
        >>> _, state = tx.update(torch.tensor([2.0]), tx.init(torch.ones(1)))
        >>> tx.update(torch.tensor([5.0]), state)[0]
        tensor([3.])
    """
    check_growth(growth=growth)
    check_nonnegative(eps=eps)

    def init(params: Params) -> LimitNormGrowthState:
        return LimitNormGrowthState(tree.count(params), tree.scalars(params))

    def update(
        updates: Updates, state: LimitNormGrowthState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LimitNormGrowthState]:
        norm = tree.norms(updates, wide=True)
        bound = tree.map(lambda n, last: torch.where(state.count == 0, n, growth * (last + eps)), norm, state.norm)
        limited = tree.map(lambda u, n, b: tree.shrink(u, n, b), updates, norm, bound)
        kept = tree.carry(tree.map(torch.minimum, norm, bound), state.norm)
        return limited, LimitNormGrowthState(state.count + 1, kept)

    return GradientTransformation(init, update, leafwise=True)
