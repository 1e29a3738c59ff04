"""RAdam: Adam that waits until its second moment can be trusted."""

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_number
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
    eps_after_correction: bool = True,
) -> GradientTransformation:
    """Scale the updates as Adam does, but less while the second moment rests on few gradients.

    In the first steps, where it rests on almost none, the update is the debiased mean alone.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- b2 nu + (1 - b2) |g|^2
        mu_hat = mu / (1 - b1^t),  nu_hat = nu / (1 - b2^t)
        rho_inf = 2 / (1 - b2) - 1,  rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        update <- r mu_hat / (sqrt(nu_hat + eps_root) + eps)                   where rho >= threshold
                  mu_hat                                                       elsewhere
        with `nesterov`, mu_hat = b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)
        with `eps_after_correction=False`, the divisor is
                  (sqrt(nu + eps_root) + eps) / sqrt(1 - b2^t)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1); up to 0.6 the update is never rectified.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        threshold: Number of gradients, as it were, from which the second moment is used, no unit. `r` needs
            more than 4, so a smaller threshold acts as 4.
        nesterov: Look one step ahead with the mean, as NAdam does.
        eps_after_correction: Add `eps` and `eps_root` to the debiased second moment; `False` adds them
            before, as torch.optim.RAdam does.

    Shapes:
        state: count () int64; mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.RAdam, unless `eps_after_correction=False`; optax, where a `threshold` below 4 gives
        NaN or worse; both, in that gradients through the update stay finite in the first steps, where `r` is no real
        number.

    Source: Liu et al., 2020, arXiv:1908.03265, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_radam()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([5.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root)
    check_number(threshold=threshold)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        mu_hat = tree.debiased_mean(updates, mu, b1, count, nesterov=nesterov)
        rectified, r = rectification(b2, count, threshold)
        if eps_after_correction:
            scaled = tree.div_by_root(mu_hat, tree.bias_correction(nu, b2, count), eps, eps_root)
        else:
            scaled = tree.div_by_root(mu_hat, nu, eps, eps_root)
            r = r * torch.sqrt(tree.one_minus_power(b2, count))
        direction = tree.where(rectified, tree.scale(r, scaled), mu_hat)
        return tree.cast_like(direction, updates), ScaleByAdamState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def radam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step as Adam does, with a warm-up that follows from the variance of its second moment.

    `scale_by_radam` gives the maths; here the learning rate multiplies it. It spares the tuning of a warm-up.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        threshold: Number of gradients, as it were, from which the mean square is used, no unit.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: that of `scale_by_radam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.RAdam in where `eps` is added: see `scale_by_radam`.

    Source: Liu et al., 2020, arXiv:1908.03265, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.radam(1e-3)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.0050])
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        descend(learning_rate),
    )


def rectification(b2: Scalar, count: Tensor, threshold: Scalar) -> tuple[Tensor, Tensor]:
    """Whether to rectify, and `r`; in float64, since `rho` is a small difference of large numbers."""
    rho_inf = 2 / (1 - (tree.wide(b2) if isinstance(b2, Tensor) else b2)) - 1
    rho = rho_inf - 2 * tree.wide(count) * (1 / tree.one_minus_power(b2, count) - 1)
    rectified = (rho >= threshold) & (rho > 4)
    # Gradients flow through both sides of a `where`, so both must be finite before the root and the quotient.
    above = torch.where(rectified, (rho - 4) * (rho - 2) * rho_inf, 1.0)
    below = torch.where(rectified, (rho_inf - 4) * (rho_inf - 2) * rho, 1.0)
    return rectified, torch.sqrt(above / below)
