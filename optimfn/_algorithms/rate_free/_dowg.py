"""Distance over weighted gradients: DoG whose later gradients count for more."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import check_nonnegative, need_params
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class DoWGState(NamedTuple):
    """How far the parameters have come, and by how much gradient."""

    init_params: Params  # the parameters at the start, like params
    weighted_sq_norm_grads: Tensor  # () float64, sum of the squared norms of the gradients times the squared distances
    estim_sq_dist: Tensor  # () float64, largest squared distance from the start


@factory
def scale_by_dowg(init_estim_sq_dist: Scalar | None = None, eps: Scalar = 1e-4) -> GradientTransformation:
    """Multiply the updates by the squared distance from the start over the norm of all gradients so weighted.

    Maths:
        r2 <- max(r2, |p - p_0|^2),  r2 = init_estim_sq_dist at the start
        v <- v + r2 |g|^2
        update <- g r2 / (sqrt(v) + eps),  all norms over all leaves

    Args:
        init_estim_sq_dist: First squared distance, in the squared unit of the parameters, >= 0; `None` means `eps`.
        eps: Added to the root, in the unit of distance times gradient, >= 0.

    Shapes:
        params: needed. state: init_params like params; weighted_sq_norm_grads, estim_sq_dist () float64.
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Khaled, Mishchenko and Jin, 2023, arXiv:2305.16284.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_dowg(0.25, eps=0.0), torch.ones(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.3000, 0.4000])
    """
    check_nonnegative(eps=eps)
    if init_estim_sq_dist is not None:
        check_nonnegative(init_estim_sq_dist=init_estim_sq_dist)

    def init(params: Params) -> DoWGState:
        zero = tree.wide(tree.count(params))
        first = eps if init_estim_sq_dist is None else init_estim_sq_dist
        return DoWGState(tree.keep(params, params), zero.clone(), zero + first)

    def update(
        updates: Updates, state: DoWGState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DoWGState]:
        need_params("scale_by_dowg", params)
        away = tree.norm(tree.sub(params, state.init_params), squared=True, wide=True)
        dist = torch.maximum(state.estim_sq_dist, away)
        total = state.weighted_sq_norm_grads + dist * tree.norm(updates, squared=True, wide=True)
        seen = total > 0  # with an eps of 0 there may be nothing to divide by
        step = torch.where(seen, dist / (torch.sqrt(torch.where(seen, total, 1.0)) + eps), 0.0)
        return tree.scale(step, updates), DoWGState(state.init_params, total, dist)

    return GradientTransformation(init, update, elementwise=True)


@factory
def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: Scalar | None = None,
    eps: Scalar = 1e-4,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Gradient descent by `scale_by_dowg`: no rate to tune, and steps that grow faster than those of `dog`.

    Args:
        learning_rate: Factor on the step, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        init_estim_sq_dist: First squared distance, in the squared unit of the parameters, >= 0; `None` means `eps`.
        eps: Added to the root, in the unit of distance times gradient, >= 0.
        weight_decay: Added to the gradient times the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_dowg`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Khaled, Mishchenko and Jin, 2023, arXiv:2305.16284.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dowg(1.0, 0.25, eps=0.0), torch.ones(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([-0.3000, -0.4000])
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dowg(init_estim_sq_dist, eps), descend(learning_rate))
