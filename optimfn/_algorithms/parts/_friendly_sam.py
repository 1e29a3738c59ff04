"""Friendly SAM: a climb along what is peculiar to the batch."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_rate
from ..._recipe import factory
from ..._transforms._normalize import normalize
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates
from ..._wrappers._sam import sam
from ..momentum._sgd import sgd
from ._asam import scale_by_asam


class SubtractMeanState(NamedTuple):
    """What gradients have in common."""

    count: Count  # () int64, steps taken
    mean: Updates  # running mean of the gradients, like params; the first gradient at first


@factory
def subtract_mean(sigma: Scalar = 1.0, decay: Scalar = 0.9) -> GradientTransformation:
    """Take the running mean of the earlier updates off each; the first passes.

    Maths:
        update <- g - sigma m, but g at the first step;  m <- decay m + (1 - decay) g, but g at the first step

    Args:
        sigma: Share of the mean, no unit, >= 0.
        decay: Decay of the mean, no unit, in [0, 1).

    Shapes:
        state: count () int64; mean like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Li et al., 2024, arXiv:2403.12350, equation 13.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.subtract_mean()
        >>> _, state = tx.update(torch.tensor([2.0]), tx.init(torch.ones(1)))
        >>> tx.update(torch.tensor([5.0]), state)[0]
        tensor([3.])
    """
    check_nonnegative(sigma=sigma)
    check_decay(decay=decay)

    def init(params: Params) -> SubtractMeanState:
        return SubtractMeanState(tree.count(params), tree.init_moment(params))

    def update(
        updates: Updates, state: SubtractMeanState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SubtractMeanState]:
        first = state.count == 0
        weight = torch.where(first, 1.0, tree.wide(state.count) * 0 + (1 - decay))
        mean = tree.lerp(state.mean, updates, weight)
        own = tree.add_scale(updates, tree.wide(~first) * -sigma, state.mean)
        return tree.cast_like(own, updates), SubtractMeanState(state.count + 1, tree.carry(mean, state.mean))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def friendly_sam(
    optimizer: GradientTransformation,
    rho: ScalarOrSchedule = 0.05,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    *,
    adaptive: bool = False,
    opaque_mode: bool = True,
) -> GradientTransformation:
    """`sam` that climbs along what sets the gradient of the batch apart from the mean of those before.

    In the opaque mode `update` is given a `grad_fn`, as `sam` says.

    Args:
        optimizer: The optimizer that steps down.
        rho: Length of the climb, in the unit of the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        sigma: Share of the mean that is taken off, no unit, >= 0.
        decay: Decay of the mean, no unit, in [0, 1).
        adaptive: Climb as `scale_by_asam` with an eta of 0, rather than along the difference.
        opaque_mode: Whether a call climbs and steps down, rather than one of both.

    Shapes:
        params: needed. state: that of `sam`, with one more mean. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or no `grad_fn` in the opaque mode.

    Source: Li et al., 2024, arXiv:2403.12350, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.friendly_sam(of.sgd(0.5), rho=1.0), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, grad_fn=lambda w, i: 2 * w)[0]
        tensor([-3.])
    """
    check_rate(rho=rho)
    climb = chain(subtract_mean(sigma, decay), scale_by_asam(0.0) if adaptive else normalize(), sgd(rho))
    return sam(optimizer, climb, reset_state=False, opaque_mode=opaque_mode)
