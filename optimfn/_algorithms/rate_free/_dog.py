"""Distance over gradients, for all leaves together: a step size that finds itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import check_choice, check_nonnegative, need_params
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates

KINDS = ("distance", "heuristic", "learning_rate")


class DoGState(NamedTuple):
    """How far the parameters have come, and by how much gradient."""

    is_init_step: Tensor  # () bool, whether no step has been taken
    init_params: Params  # the parameters at the start, like params
    max_dist: Tensor  # () float64, largest distance from the start; of the heuristic from the first step on
    sum_sq_norm_grads: Tensor  # () float64, sum of the squared norms of the gradients


@factory
def scale_by_dog(init_step: tuple[str, Scalar] = ("heuristic", 1e-6), eps: Scalar = 1e-8) -> GradientTransformation:
    """Multiply the updates by the distance from the start over the norm of all gradients so far.

    Maths:
        r <- max(r, |p - p_0|),  r at the start as `init_step` says
        G <- G + |g|^2
        update <- g r / sqrt(G + eps),  all norms over all leaves

    Args:
        init_step: How the first step is found: `("distance", r)`, `("heuristic", x)` for r = x (1 + |p_0|), or
            `("learning_rate", eta)` for a first step of eta g; the numbers are >= 0.
        eps: Added inside the root, in the unit of `|g|^2`, >= 0.

    Shapes:
        params: needed. state: is_init_step () bool; max_dist, sum_sq_norm_grads () float64; init_params like params.
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_dog(("distance", 0.5)), torch.ones(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.3000, 0.4000])
    """
    kind, value = init_step
    check_choice("init_step[0]", kind, KINDS)
    check_nonnegative(**{"init_step[1]": value}, eps=eps)

    def init(params: Params) -> DoGState:
        zero = tree.wide(tree.count(params))
        reach = zero + value if kind == "distance" else zero.clone()
        return DoGState(zero == 0, tree.keep(params, params), reach, zero.clone())

    def update(
        updates: Updates, state: DoGState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DoGState]:
        need_params("scale_by_dog", params)
        dist = torch.maximum(state.max_dist, tree.norm(tree.sub(params, state.init_params), wide=True))
        if kind == "heuristic":
            # Found here, since a norm takes all processes where leaves lie in shards.
            start = value * (1 + tree.norm(state.init_params, wide=True))
            dist = torch.where(state.is_init_step, start, dist)
        total = state.sum_sq_norm_grads + tree.norm(updates, squared=True, wide=True)
        step = dist / torch.sqrt(total + eps)
        if kind == "learning_rate":
            step = torch.where(state.is_init_step, torch.zeros_like(step) + value, step)
        return tree.scale(step, updates), DoGState(torch.zeros_like(state.is_init_step), state.init_params, dist, total)

    return GradientTransformation(init, update, elementwise=True)


@factory
def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, Scalar] = ("heuristic", 1e-6),
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Gradient descent by the distance from the start over the norm of all gradients so far: no rate to tune.

    The authors recommend to average the parameters, as `params_ema` does. `scale_by_distance_over_gradients` is the
    form that finds a step for each leaf.

    Args:
        learning_rate: Factor on the step, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        init_step: How the first step is found, see `scale_by_dog`.
        eps: Added to the sum of the squared norms of the gradients, in their unit, >= 0.
        weight_decay: Added to the gradient times the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_dog`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dog(init_step=("distance", 0.5)), torch.ones(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([-0.3000, -0.4000])
    """
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)
    return chain(decay, scale_by_dog(init_step, eps), descend(learning_rate))
