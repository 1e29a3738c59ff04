"""NAdam: Adam with Nesterov's momentum on a warm-up schedule."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Updates


class ScaleByNadamState(NamedTuple):
    """Adam's memory, and how much of the first mean's start at zero is left."""

    count: Count  # () int64, steps taken
    mu_product: Tensor  # () float32, or float64 where that is the default dtype: product of all momenta so far
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of their squared magnitudes, like params but real


@factory
def scale_by_nadam(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, momentum_decay: Scalar = 4e-3
) -> GradientTransformation:
    """Scale the updates as Adam does, looking one step ahead with a momentum that warms up.

    The momentum rises from about `b1 / 2` to `b1` over some `1 / momentum_decay` times 100 steps.

    Maths:
        m(t) = b1 (1 - 0.96^(t momentum_decay) / 2)
        P <- P m(t)
        mu <- b1 mu + (1 - b1) g
        nu <- b2 nu + (1 - b2) |g|^2
        mu_hat = mu m(t+1) / (1 - P m(t+1)) + g (1 - m(t)) / (1 - P)
        update <- mu_hat / (sqrt(nu / (1 - b2^t)) + eps)

    Args:
        b1: Decay of `mu` and the momentum in the end, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        momentum_decay: Speed of the warm-up, per step, >= 0; at 0 the momentum stays at `b1 / 2`.

    Shapes:
        state: count () int64; mu_product () in the default dtype, float32 at least and float64 at most;
            mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `scale_by_adam` with `nesterov`, whose momentum is constant. From torch.optim.NAdam, whose
        float32 product of the momenta is kept here for equal numbers, only as `scale_by_adam` from Adam.

    Source: Dozat, 2016, "Incorporating Nesterov momentum into Adam", Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_nadam()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.0565])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, momentum_decay=momentum_decay)

    def init(params: Params) -> ScaleByNadamState:
        count = tree.count(params)
        mu, nu = tree.init_moment(params), tree.init_moment(params, real=True)
        return ScaleByNadamState(count, torch.ones((), dtype=tree.scalar_dtype(), device=count.device), mu, nu)

    def momentum(t: Tensor) -> Tensor:
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def update(
        updates: Updates, state: ScaleByNadamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByNadamState]:
        count = state.count + 1
        now, ahead = momentum(tree.wide(count)), momentum(tree.wide(count + 1))
        mu_product = state.mu_product * now.to(state.mu_product.dtype)
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        p = tree.wide(mu_product)
        g_hat = tree.scale((1 - now) / (1 - p), tree.cast_like(updates, mu))
        mu_hat = tree.add(tree.scale(ahead / (1 - p * ahead), mu), g_hat)
        direction = tree.div_by_root(mu_hat, tree.bias_correction(nu, b2, count), eps)
        return tree.cast_like(direction, updates), ScaleByNadamState(
            count, mu_product, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)
