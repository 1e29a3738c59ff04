"""Distance over gradients, leaf by leaf: a step size that finds itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_dtype, check_nonnegative, check_number, need_params
from ..._recipe import factory
from ..._typing import Params, Scalar, Updates


class ScaleByDistanceOverGradientsState(NamedTuple):
    """How far each leaf has come, and by how much gradient."""

    max_dist: Updates  # largest distance from the start, one () float64 per leaf
    grad_sum_of_squares: Updates  # sum of the squared norms of the gradient, one () float64 per leaf
    init_params: Params  # the parameters at the start, like params


@factory
def scale_by_distance_over_gradients(
    reps_rel: Scalar = 1e-6,
    eps: Scalar = 1e-8,
    param_dtype: torch.dtype | None = torch.float32,
    global_scale: Scalar = 1.0,
) -> GradientTransformation:
    """Multiply each leaf of the updates by its distance from the start over the norm of all its gradients.

    It is LDoG, which has no learning rate, but for the sign: end the chain with `scale(-1.0)`. The authors
    recommend to average the parameters, as `params_ema` does.

    Maths:
        r <- max(r, |p - p_0|),  r = reps_rel (1 + |p_0|) at the start
        G <- G + |g|^2
        update <- global_scale g r / sqrt(G + eps),  all norms those of the leaf

    Args:
        reps_rel: First distance relative to the norm of the parameter, no unit, >= 0; the authors suggest 1e-4 for
            models with batch normalisation. The first update alone reads it.
        eps: Added inside the root, in the unit of `|g|^2`, >= 0.
        param_dtype: Dtype of the copy of the parameters; `None` means their own. Complex ones stay complex.
        global_scale: Factor on the step, no unit.

    Shapes:
        params: needed.
        state: max_dist, grad_sum_of_squares one () float64 per leaf; init_params like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, whose sums have the shape (1,).

    Source: Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022, the layer-wise form.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_distance_over_gradients(reps_rel=0.1)
        >>> params = torch.tensor([3.0, 4.0])
        >>> tx.update(torch.tensor([0.0, 2.0]), tx.init(params), params)[0]
        tensor([0.0000, 0.6000])
    """
    check_nonnegative(reps_rel=reps_rel, eps=eps)
    check_dtype(param_dtype=param_dtype)
    check_number(global_scale=global_scale)

    def init(params: Params) -> ScaleByDistanceOverGradientsState:
        sums = tree.scalars(params)
        return ScaleByDistanceOverGradientsState(tree.scalars(params), sums, tree.map(_copy, params))

    def _copy(p: Tensor) -> Tensor:
        dtype = p.dtype if param_dtype is None else param_dtype
        return p.to(dtype.to_complex() if p.is_complex() and not dtype.is_complex else dtype, copy=True)

    def update(
        updates: Updates, state: ScaleByDistanceOverGradientsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByDistanceOverGradientsState]:
        need_params("scale_by_distance_over_gradients", params)
        size = tree.norms(updates, squared=True, wide=True)
        sums = tree.add(size, state.grad_sum_of_squares)
        away = tree.norms(tree.map(lambda _, p, start: p - start, updates, params, state.init_params), wide=True)
        # How far it would go at first is found here, since a norm takes all processes where leaves lie in shards.
        start = tree.norms(tree.map(lambda _, start: start, updates, state.init_params), wide=True)
        least = tree.map(lambda size, far: torch.where(far > 0, far, reps_rel * (1 + size)), start, state.max_dist)
        dist = tree.map(torch.maximum, away, least)
        step = tree.map(lambda r, total: global_scale * r / torch.sqrt(total + eps), dist, sums)
        return tree.map(lambda eta, g: tree.scale(eta, g), step, updates), ScaleByDistanceOverGradientsState(
            tree.carry(dist, state.max_dist), tree.carry(sums, state.grad_sum_of_squares), state.init_params
        )

    return GradientTransformation(init, update, leafwise=True)
