"""ADOPT: gradients divided by the second moment of earlier ones, before they are averaged."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_callable, check_decay, check_dtype, check_nonnegative, check_rate
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


@factory
def scale_by_adopt(
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Tensor], Scalar] | None = None,
    clip_exponent: Scalar = 0.25,
) -> GradientTransformation:
    """Average updates that were divided by the root of the mean square of the earlier ones.

    No gradient takes part in its own divisor, so the rule converges for any `b2`. The first update only starts the
    mean square and is zero.

    Maths:
        at t = 1:  nu = |g|^2, update <- 0
        n = g / max(sqrt(nu), eps), clipped to +-(t - 1)^clip_exponent
        mu <- b1 mu + (1 - b1) n,  update <- mu,  or with `nesterov` b1 mu + (1 - b1) n
        nu <- b2 nu + (1 - b2) |g|^2

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Least divisor, in the unit of `|g|`, >= 0.
        mu_dtype: Dtype of `mu`; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean.
        use_clipping: Whether to clip `n`.
        clip_value_fn: Function of the number of steps taken before this one, a 0-dim float64 tensor, to the bound;
            `None` means a power of it.
        clip_exponent: That power, no unit, >= 0; timm's is 0.333.

    Shapes:
        updates: real leaves, if clipped.
        state: that of `scale_by_adam`, count () int64; mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Taniguchi et al., 2024, arXiv:2411.02853, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adopt()
        >>> first, state = tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.tensor([2.0]), state)[0]
        (tensor([0.]), tensor([0.0500]))
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, clip_exponent=clip_exponent)
    check_dtype(mu_dtype=mu_dtype)
    if clip_value_fn is not None:
        check_callable(clip_value_fn=clip_value_fn)

    def init(params: Params) -> ScaleByAdamState:
        mu, nu = tree.init_moment(params, mu_dtype), tree.init_moment(params, real=True)
        return ScaleByAdamState(tree.count(params), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        first = state.count == 0
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu = tree.map(lambda n, now: torch.where(first, now, n), nu, tree.abs_sq(updates))
        root = tree.clip(tree.map(torch.sqrt, state.nu), min_value=eps)
        scaled = tree.map(lambda g, r: g / torch.where(first, torch.ones_like(r), r), updates, root)
        if use_clipping:
            taken = tree.wide(state.count)
            bound = taken**clip_exponent if clip_value_fn is None else clip_value_fn(taken)
            scaled = tree.clip(scaled, -bound, bound)
        ahead = tree.update_moment(scaled, state.mu, b1, 1)
        mu = tree.map(lambda m, old: torch.where(first, torch.zeros_like(m), m), ahead, state.mu)
        direction = tree.update_moment(scaled, mu, b1, 1) if nesterov else mu
        direction = tree.map(lambda d: torch.where(first, torch.zeros_like(d), d), direction)
        state = ScaleByAdamState(state.count + 1, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(direction, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adopt(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Tensor], Scalar] | None = None,
    clip_exponent: Scalar = 0.25,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    decouple: bool = False,
) -> GradientTransformation:
    """Step by the mean of gradients that were divided by the root of the mean square of earlier ones.

    `scale_by_adopt` gives the maths. The first step moves nothing.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Least divisor, in the unit of `|g|`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean.
        use_clipping: Whether to clip what is averaged.
        clip_value_fn: Function of the number of steps taken before this one to the bound; `None` means a power of it.
        clip_exponent: That power, no unit, >= 0; timm's is 0.333.
        weight_decay: Decay, >= 0: of the gradient, or with `decouple` per unit of learning rate; a number, a 0-dim
            tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        decouple: Whether the decay passes by the preconditioner. At the first step nothing decays then.

    Shapes:
        params: needed if there is a decay. state: that of `scale_by_adopt`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is a decay and no parameters are given.

    Source: Taniguchi et al., 2024, arXiv:2411.02853, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adopt(0.1)
        >>> first, state = tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.tensor([2.0]), state)[0]
        (tensor([-0.]), tensor([-0.0050]))
    """
    rule = scale_by_adopt(
        b1,
        b2,
        eps,
        mu_dtype,
        nesterov=nesterov,
        use_clipping=use_clipping,
        clip_value_fn=clip_value_fn,
        clip_exponent=clip_exponent,
    )
    check_rate(weight_decay=weight_decay)
    if not callable(weight_decay) and not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return chain(rule, descend(learning_rate))
    if not decouple:
        return chain(add_decayed_weights(weight_decay, mask), rule, descend(learning_rate))

    def from_the_second_step(count: int | Tensor) -> Tensor:
        now = weight_decay(count) if callable(weight_decay) else weight_decay
        return tree.wide(count > 0) * now

    return chain(rule, add_decayed_weights(from_the_second_step, mask), descend(learning_rate))
