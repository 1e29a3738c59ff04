"""MARS: gradients corrected by how they have changed, before any rule."""

from typing import Any, NamedTuple

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative, check_positive
from ..._order import Place
from ..._recipe import factory
from ..._typing import Params, Scalar, Updates


class MarsState(NamedTuple):
    """What MARS compares with."""

    last_grad: Updates  # the gradient of the step before, like params; zero at the start


@factory
def mars(gamma: Scalar = 0.025, b1: Scalar = 0.95, max_norm: Scalar | None = 1.0) -> GradientTransformation:
    """Add to each gradient a share of its change since the last step; a front for any rule.

    `chain(mars(), adamw(3e-3, b1=0.95, b2=0.99))` is the MARS-AdamW of the paper, `mars(b1=b1)` before `lion` its
    MARS-Lion. The authors leave vectors out: `masked(mars(), tree.is_matrix)`.

    Maths:
        c = g + gamma b1 / (1 - b1) (g - last g),  last g = 0 at the first step
        update <- c min(1, max_norm / |c|),  |c| of the leaf

    Args:
        gamma: Strength of the correction, no unit, >= 0.
        b1: Decay of the mean that the rule behind keeps, no unit, in [0, 1).
        max_norm: Largest norm of a leaf of the result, in the unit of the gradient, > 0; `None` means any.

    Shapes:
        state: last_grad like params, float32 for float16 and bfloat16. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Yuan et al., 2024, arXiv:2411.10438, Algorithm 2; the last gradient is that of the last batch, as in the
        authors' approximate form.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.mars(gamma=0.5, b1=0.5, max_norm=None)
        >>> first, state = tx.update(torch.tensor([2.0]), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.tensor([4.0]), state)[0]
        (tensor([3.]), tensor([5.]))
    """
    check_nonnegative(gamma=gamma)
    check_decay(b1=b1)
    if max_norm is not None:
        check_positive(max_norm=max_norm)

    def init(params: Params) -> MarsState:
        return MarsState(tree.init_moment(params))

    def update(
        updates: Updates, state: MarsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MarsState]:
        change = tree.map(lambda g, last: g - last, updates, state.last_grad)
        corrected = tree.map(lambda c, g: c + g, tree.scale(gamma * b1 / (1 - b1), change), updates)
        if max_norm is not None:
            sizes = tree.norms(corrected, wide=True)
            corrected = tree.map(lambda c, size: tree.shrink(c, size, max_norm), corrected, sizes)
        return tree.cast_like(corrected, updates), MarsState(tree.keep(updates, state.last_grad))

    return GradientTransformation(init, update, leafwise=True, place=Place.FRONT)
