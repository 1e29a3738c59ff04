"""NovoGrad: momentum of gradients that are normalised leaf by leaf."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_dtype, check_nonnegative, need_params
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByNovogradState(NamedTuple):
    """NovoGrad's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # decayed sum of the normalised gradients, like params
    nu: Updates  # running mean of the squared norm of the gradient, one () float64 per leaf


@factory
def scale_by_novograd(
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Replace the updates by the decayed sum of updates over a running norm of their leaf.

    Maths:
        nu <- |g|^2 at the first step, then b2 nu + (1 - b2) |g|^2,  |g| the norm of the leaf
        d = g / (sqrt(nu + eps_root) + eps) + weight_decay p
        mu <- d at the first step, then b1 mu + d
        update <- mu

    Args:
        b1: Factor on the sum so far, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0; above 0 the update has a gradient
            also where `g` is 0.
        weight_decay: Decay per unit of learning rate and step, which the sum takes in too, >= 0.
        mu_dtype: Dtype of `mu`; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        params: needed. state: count () int64; mu like params; nu one () float64 per leaf.
            Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, where the update too is rounded to `mu_dtype`.

    Source: Ginsburg et al., 2019, arXiv:1905.11286, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_novograd()
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.ones(2)), torch.ones(2))[0]
        tensor([0.6000, 0.8000])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root, weight_decay=weight_decay)
    check_dtype(mu_dtype=mu_dtype)

    def init(params: Params) -> ScaleByNovogradState:
        nu = tree.scalars(params)
        return ScaleByNovogradState(tree.count(params), tree.init_moment(params, mu_dtype), nu)

    def update(
        updates: Updates, state: ScaleByNovogradState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByNovogradState]:
        need_params("scale_by_novograd", params)
        first = state.count == 0
        size = tree.norms(updates, squared=True, wide=True)
        nu = tree.where(first, size, tree.lerp(state.nu, size, 1 - b2))
        scaled = tree.map(lambda g, v: _over(g, torch.sqrt(v + eps_root) + eps), updates, nu)
        step = tree.add_scale(scaled, weight_decay, params)
        mu = tree.map(lambda d, m: torch.where(first, d, tree.add_scale(d, b1, m)), step, state.mu)
        return tree.cast_like(mu, updates), ScaleByNovogradState(
            state.count + 1, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True)


def _over(g: Tensor, size: Tensor) -> Tensor:
    dtype = torch.promote_types(g.dtype, torch.float32)
    return tree.cast_leaf(tree.cast_leaf(g, dtype) / size, dtype)


@factory
def novograd(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    """Step by momentum of gradients that are divided by a running norm of their leaf.

    `scale_by_novograd` gives the maths.

    Args:
        learning_rate: Length of a leaf's step without momentum, roughly, in parameter units, >= 0; a number, a 0-dim
            tensor or a schedule.
        b1: Factor on the sum so far, no unit, in [0, 1).
        b2: Decay of the squared norm, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate and step, which the momentum takes in too, >= 0.

    Shapes:
        params: needed. state: that of `scale_by_novograd`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Ginsburg et al., 2019, arXiv:1905.11286, Algorithm 1; Li et al., 2019, arXiv:1904.03288.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.novograd(0.1)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(torch.ones(2)), torch.ones(2))[0]
        tensor([-0.0600, -0.0800])
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay),
        descend(learning_rate),
    )
