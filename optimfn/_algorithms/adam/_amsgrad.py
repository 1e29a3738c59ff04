"""AMSGrad: Adam whose second moment does not fall."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_dtype, check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByAmsgradState(NamedTuple):
    """Adam's memory and the largest second moment."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of their squared magnitudes, like params but real
    nu_max: Updates  # largest second moment so far, debiased unless told otherwise, like params but real


@factory
def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of_raw: bool = False,
) -> GradientTransformation:
    """Divide the running mean of the updates by the root of the largest running mean of their squares so far.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- b2 nu + (1 - b2) |g|^2
        mu_hat = mu / (1 - b1^t)  or mu,  nu_hat = nu / (1 - b2^t)  or nu,  as the flags say
        nu_max <- max(nu_max, nu_hat),  v = nu_max
        nu_max <- max(nu_max, nu),  v = nu_max / (1 - b2^t)  or nu_max,  with `max_of_raw`
        update <- mu_hat / (sqrt(v + eps_root) + eps)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0; above 0 the update has a gradient
            also where `g` is 0.
        mu_dtype: Dtype of `mu`; `None` means that of the leaf, float32 for float16 and bfloat16.
        bias_correction_mu: Divide `mu` by `1 - b1^t`.
        bias_correction_nu: Divide the second moment by `1 - b2^t`.
        max_of_raw: Take the maximum first and debias what comes out, which forgets a large first gradient
            sooner. Without `bias_correction_nu` it makes no difference.

    Shapes:
        state: count () int64; mu, nu, nu_max like params (the last two real; float32 for float16 and bfloat16).
        Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the paper, which debiases nothing (both flags False) and has no `eps`;
        torch.optim.Adam(amsgrad=True), which is `max_of_raw=True`, and for complex leaves (squared magnitude
        here, real and imaginary parts apart there).

    Source: Reddi, Kale and Kumar, 2018, arXiv:1904.09237, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_amsgrad()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root)
    check_dtype(mu_dtype=mu_dtype)

    def init(params: Params) -> ScaleByAmsgradState:
        nu, nu_max = tree.init_moment(params, real=True), tree.init_moment(params, real=True)
        return ScaleByAmsgradState(tree.count(params), tree.init_moment(params, mu_dtype), nu, nu_max)

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAmsgradState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        mu_hat = tree.bias_correction(mu, b1, count) if bias_correction_mu else mu
        debias_first, debias_last = bias_correction_nu and not max_of_raw, bias_correction_nu and max_of_raw
        nu_hat = tree.bias_correction(nu, b2, count) if debias_first else nu
        nu_max = tree.map(torch.maximum, nu_hat, state.nu_max)
        v = tree.bias_correction(nu_max, b2, count) if debias_last else nu_max
        direction = tree.div_by_root(mu_hat, v, eps, eps_root)
        return tree.cast_like(direction, updates), ScaleByAmsgradState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu), tree.carry(nu_max, state.nu_max)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of_raw: bool = False,
) -> GradientTransformation:
    """Step as Adam does, over the root of the largest mean square so far.

    `scale_by_amsgrad` gives the maths; here the learning rate multiplies it. The rate of an element never
    grows again (with `max_of_raw`, but for the fading correction), so it converges where Adam can cycle, and
    is slow after one very large gradient.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        bias_correction_mu: Debias the mean.
        bias_correction_nu: Debias the mean square.
        max_of_raw: Take the maximum first and debias what comes out.

    Shapes:
        state: that of `scale_by_amsgrad`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adam(amsgrad=True), which is `max_of_raw=True`; see `scale_by_amsgrad`.

    Source: Reddi, Kale and Kumar, 2018, arXiv:1904.09237, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.amsgrad(1e-3)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.0010])
    """
    return chain(
        scale_by_amsgrad(
            b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, max_of_raw=max_of_raw
        ),
        descend(learning_rate),
    )
