"""RMSProp, plain and centred."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import check_decay, check_momentum, check_nonnegative
from ..._recipe import factory
from ..._transforms._momentum import trace
from ..._transforms._rate import descend
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByRmsState(NamedTuple):
    """The second moment."""

    count: Count  # () int64, steps taken
    nu: Updates  # running mean of squared magnitudes, like params but real


class ScaleByRStdDevState(NamedTuple):
    """The first two moments."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean, like params
    nu: Updates  # running mean of squared magnitudes, like params but real


@factory
def scale_by_rms(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide the updates by the root of the running mean of their squares.

    Maths:
        nu <- decay nu + (1 - decay) |g|^2
        update <- g / sqrt(nu + eps)
                  g / (sqrt(nu) + eps)  with `eps_in_sqrt=False`

    Args:
        decay: Decay of `nu`, no unit, in [0, 1).
        eps: Added inside the root (in the unit of `|g|^2`) or outside it (of `|g|`), >= 0.
        initial_scale: Value `nu` starts at, in the unit of `|g|^2`, >= 0.
        eps_in_sqrt: Whether `eps` is inside the root.
        bias_correction: Divide `nu` by `1 - decay^t` first.

    Shapes:
        state: count () int64; nu like params but real. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, whose state has a count only with `bias_correction`.

    Source: Tieleman and Hinton, 2012, Lecture 6.5 of "Neural Networks for Machine Learning".

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_rms(decay=0.75)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([2.])
    """
    check_decay(decay=decay)
    check_nonnegative(eps=eps, initial_scale=initial_scale)

    def init(params: Params) -> ScaleByRmsState:
        return ScaleByRmsState(tree.count(params), _start(params, initial_scale))

    def update(
        updates: Updates, state: ScaleByRmsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRmsState]:
        count = state.count + 1
        nu = tree.update_moment_per_elem_norm(updates, state.nu, decay, 2)
        nu_hat = tree.bias_correction(nu, decay, count) if bias_correction else nu
        direction = _divide(updates, nu_hat, eps, eps_in_sqrt)
        return tree.cast_like(direction, updates), ScaleByRmsState(count, tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def scale_by_stddev(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide the updates by the running estimate of their standard deviation.

    Maths:
        mu <- decay mu + (1 - decay) g
        nu <- decay nu + (1 - decay) |g|^2
        update <- g / sqrt(nu - |mu|^2 + eps)
                  g / (sqrt(nu - |mu|^2) + eps)  with `eps_in_sqrt=False`

    Rounding can make `nu - |mu|^2` a little negative where the gradient is constant; it is then taken as 0.

    Args:
        decay: Decay of both moments, no unit, in [0, 1).
        eps: Added inside the root (in the unit of `|g|^2`) or outside it (of `|g|`), >= 0.
        initial_scale: Value `nu` starts at, in the unit of `|g|^2`, >= 0.
        eps_in_sqrt: Whether `eps` is inside the root.
        bias_correction: Divide both moments by `1 - decay^t` first.

    Shapes:
        state: count () int64; mu, nu like params (nu real). Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax and torch.optim.RMSprop(centered=True), where a negative difference gives NaN.

    Source: Graves, 2013, arXiv:1308.0850, equations 38 to 45.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_stddev(decay=0.5)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([2.])
    """
    check_decay(decay=decay)
    check_nonnegative(eps=eps, initial_scale=initial_scale)

    def init(params: Params) -> ScaleByRStdDevState:
        return ScaleByRStdDevState(tree.count(params), tree.init_moment(params), _start(params, initial_scale))

    def update(
        updates: Updates, state: ScaleByRStdDevState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRStdDevState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, decay, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, decay, 2)
        mu_hat = tree.bias_correction(mu, decay, count) if bias_correction else mu
        nu_hat = tree.bias_correction(nu, decay, count) if bias_correction else nu
        variance = tree.clip(tree.map(_less, nu_hat, tree.abs_sq(mu_hat)), min_value=0.0)
        direction = _divide(updates, variance, eps, eps_in_sqrt)
        return tree.cast_like(direction, updates), ScaleByRStdDevState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


def _less(v: Tensor, square: Tensor) -> Tensor:
    return torch.where(torch.isinf(v), v, v - square)  # infinity less infinity is NaN


@factory
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Step by the gradient over the root of its running mean square, or over its standard deviation.

    `scale_by_rms` and, with `centered`, `scale_by_stddev` give the maths. The momentum is taken after the
    learning rate, so a schedule acts on each gradient as it enters the sum.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        decay: Decay of the moments, no unit, in [0, 1).
        eps: Added inside the root (in the unit of `|g|^2`) or outside it (of `|g|`), >= 0.
        initial_scale: Value the second moment starts at, in the unit of `|g|^2`, >= 0.
        eps_in_sqrt: Whether `eps` is inside the root.
        centered: Divide by the standard deviation.
        momentum: Decay of the sum of steps, no unit, in [0, 1]; `None` keeps no sum.
        nesterov: Look one step ahead; needs `momentum`.
        bias_correction: Debias the moments.

    Shapes:
        state: that of the scaling, and with `momentum` a trace. Memory: 1 to 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.RMSprop, which has `alpha=0.99`, `eps` outside the root, and momentum before
        the learning rate. With `eps_in_sqrt=False` and a constant rate the two agree.

    Source: Tieleman and Hinton, 2012; Graves, 2013, arXiv:1308.0850.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.rmsprop(0.1, decay=0.75)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.2000])
    """
    check_momentum(momentum, nesterov)
    scaling = scale_by_stddev if centered else scale_by_rms
    return chain(
        scaling(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        descend(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )


def _start(params: Params, initial_scale: Scalar) -> Updates:
    return tree.full_like(tree.init_moment(params, real=True), initial_scale)


def _divide(updates: Updates, nu: Updates, eps: Scalar, eps_in_sqrt: bool) -> Updates:
    return tree.div_by_root(updates, nu, 0.0, eps) if eps_in_sqrt else tree.div_by_root(updates, nu, eps)
