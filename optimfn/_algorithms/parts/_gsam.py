"""GSAM: SAM that also closes the gap between the loss here and uphill."""

from typing import Any

import torch

from ... import tree
from ..._base import GradientTransformation, chain, init_empty_state
from ..._checks import check_nonnegative, check_rate
from ..._recipe import factory
from ..._transforms._normalize import normalize
from ..._typing import Params, Scalar, ScalarOrSchedule, State, Updates
from ..._wrappers._sam import sam
from ..momentum._sgd import sgd
from ._asam import scale_by_asam


@factory
def add_surrogate_gap(alpha: Scalar = 0.4) -> GradientTransformation:
    """Subtract the part of the gradient at the foot that is orthogonal to the one uphill, inside of `sam`.

    Maths:
        update <- h - alpha (g - <g, h> / |h|^2 h),  h the gradient uphill, g that at the foot; over all leaves

    Args:
        alpha: Weight of the gap, no unit, >= 0.

    Shapes:
        state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no `foot_grads` are given, as `sam` in its opaque mode gives them.

    Source: Zhuang et al., 2022, arXiv:2203.08065, equation 13.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.add_surrogate_gap(0.5)
        >>> tx.update(torch.tensor([2.0, 0.0]), tx.init(None), foot_grads=torch.tensor([3.0, 4.0]))[0]
        tensor([ 2., -2.])
    """
    check_nonnegative(alpha=alpha)

    def update(
        updates: Updates, state: State, params: Params | None = None, *, foot_grads: Updates | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if foot_grads is None:
            raise ValueError("add_surrogate_gap needs the gradient at the foot: sam(..., opaque_mode=True) gives it")
        size = tree.norm(updates, squared=True, wide=True)
        along = tree.vdot(updates, foot_grads, wide=True) / torch.where(size == 0, 1.0, size)
        away = tree.map(lambda h, g: g - tree.cast_leaf(h * along, h.dtype), updates, foot_grads)
        return tree.cast_like(tree.add_scale(updates, -alpha, away), updates), state

    return GradientTransformation(init_empty_state, update)


@factory
def gsam(
    optimizer: GradientTransformation,
    rho: ScalarOrSchedule = 0.05,
    alpha: Scalar = 0.4,
    *,
    adaptive: bool = False,
) -> GradientTransformation:
    """`sam` whose optimizer also lessens how much higher the loss is uphill.

    `update` is given a `grad_fn`, as `sam` says. The authors let `rho` fall with the learning rate: a schedule of both.

    Args:
        optimizer: The optimizer that steps down.
        rho: Length of the climb, in the unit of the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        alpha: Weight of the gap, no unit, >= 0.
        adaptive: Climb as `scale_by_asam` with an eta of 0, rather than along the gradient.

    Shapes:
        params: needed. state: that of `sam`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `grad_fn` are given.

    Source: Zhuang et al., 2022, arXiv:2203.08065, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.gsam(of.sgd(0.5), rho=1.0), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, grad_fn=lambda w, i: 2 * w)[0]
        tensor([-3.])
    """
    check_rate(rho=rho)
    climb = chain(scale_by_asam(0.0) if adaptive else normalize(), sgd(rho))
    return sam(chain(add_surrogate_gap(alpha), optimizer), climb, reset_state=False, opaque_mode=True)
