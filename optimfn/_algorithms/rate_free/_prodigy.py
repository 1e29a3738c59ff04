"""Prodigy: Adam whose step is an estimate of the distance to the solution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import (
    check_decay,
    check_growth,
    check_nonnegative,
    check_positive,
    check_rate,
    check_steps,
    need_params,
)
from ..._recipe import factory
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ProdigyState(NamedTuple):
    """Prodigy's memory."""

    exp_avg: Updates  # running mean of the gradients times the estimate, like params
    exp_avg_sq: Updates  # running mean of the squares of these, like params but real
    grad_sum: Updates  # decaying sum of weighted gradients, like params, or every `slice_p`-th element of each
    params0: Params  # the parameters at the start, as grad_sum
    estim_lr: Tensor  # () float64, the estimate of the distance
    numerator_weighted: Tensor  # () float64, decaying sum of inner products of gradients with the way from the start
    max_lr: Tensor  # () float64, the largest estimate, which `growth_rate` may hold back
    count: Count  # () int64, steps taken


@factory
def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    beta3: Scalar | None = None,
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    safeguard_warmup: bool = False,
    weight_decay_mask: Mask | None = None,
    *,
    use_bias_correction: bool = True,
    growth_rate: Scalar | None = None,
    slice_p: int = 1,
) -> GradientTransformation:
    """Step as Adam does, with a rate that is the best lower bound so far of the distance to the solution.

    The learning rate is a factor for schedules; leave it at 1. One estimate serves all leaves.

    Maths:
        c = sqrt(1 - b2^t) / (1 - b1^t), or 1 without `use_bias_correction`;  r = d c learning_rate
        m <- b1 m + (1 - b1) d g,  v <- b2 v + (1 - b2) d^2 |g|^2
        n <- b3 n + d/d0 r <g, p0 - p>,  s <- b3 s + d/d0 r g,  or d^2/d0 g with `safeguard_warmup`
        d' = max(d, estim_lr_coef n / |s|_1),  at most growth_rate d once it has left d0
        update <- -r (m / (sqrt(v) + d' eps) + weight_decay p),  d <- d'

    Args:
        learning_rate: Factor on the rate, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        betas: Decays of the mean and of the mean square, no unit, in [0, 1).
        beta3: Decay of the sums, no unit, in [0, 1); `None` means the root of the second of `betas`.
        eps: Added to the root, in the unit of `|g|`, >= 0.
        estim_lr0: First estimate d0, in the unit of the parameters, > 0; raise it to 1e-5 or 1e-4 if it stays there.
        estim_lr_coef: Factor on the estimates, no unit, > 0.
        weight_decay: Decay per unit of the rate, >= 0.
        safeguard_warmup: Leave the learning rate out of the sum of gradients, so that a warm-up does not inflate d.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        use_bias_correction: Whether the rate has Adam's correction of its means; the authors' code has none by itself.
        growth_rate: How much the estimate may grow in a step, >= 1; `None` means any.
        slice_p: Estimate from every so many elements of each leaf, >= 1; 11 saves almost half of the memory.

    Shapes:
        params: needed, real leaves. state: exp_avg, exp_avg_sq, grad_sum, params0 like params; four scalars.
        Memory: 4 x params, or 2 + 2 / slice_p.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, where the estimate has the dtype of the parameters, and gradients of zero make it NaN.

    Source: Mishchenko and Defazio, 2023, arXiv:2306.06101, Algorithm 4.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.prodigy(estim_lr0=0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    b1, b2 = betas
    check_rate(learning_rate=learning_rate)
    check_decay(**{"betas[0]": b1, "betas[1]": b2}, **({} if beta3 is None else {"beta3": beta3}))
    check_nonnegative(eps=eps, weight_decay=weight_decay)
    check_positive(estim_lr0=estim_lr0, estim_lr_coef=estim_lr_coef)
    check_growth(**({} if growth_rate is None else {"growth_rate": growth_rate}))
    check_steps(slice_p=slice_p, at_least=1)
    b3 = b2**0.5 if beta3 is None else beta3

    def part(x: Tensor) -> Tensor:
        return x if slice_p == 1 else x.reshape(-1)[::slice_p].clone(memory_format=torch.contiguous_format)

    def init(params: Params) -> ProdigyState:
        zero, start = tree.wide(tree.count(params)), tree.map(part, params)
        moments = tree.init_moment(params), tree.init_moment(params, real=True), tree.init_moment(start)
        numbers = zero + estim_lr0, zero.clone(), zero + estim_lr0
        return ProdigyState(*moments, tree.keep(start, start), *numbers, tree.count(params))

    def update(
        updates: Updates, state: ProdigyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ProdigyState]:
        need_params("prodigy", params)
        count, d = state.count + 1, state.estim_lr
        rate = (learning_rate(state.count) if callable(learning_rate) else learning_rate) * d
        if use_bias_correction:
            rate = rate * torch.sqrt(tree.one_minus_power(b2, count)) / tree.one_minus_power(b1, count)
        scaled = tree.map(lambda g, m: tree.cast_leaf(g * d, torch.promote_types(g.dtype, m.dtype)), updates, state[0])
        mean = tree.update_moment(scaled, state.exp_avg, b1, 1)
        square = tree.update_moment_per_elem_norm(scaled, state.exp_avg_sq, b2, 2)
        weight = d / estim_lr0 if safeguard_warmup else rate / estim_lr0
        total = tree.carry(tree.map(lambda g, s: s * b3 + part(g) * weight, scaled, state.grad_sum), state.grad_sum)
        total = tree.cast_like(total, state.grad_sum)
        way = tree.map(lambda g, p, p0: p0 - part(p), updates, params, state.params0)
        gain = tree.vdot(tree.map(part, updates), way, wide=True)
        numerator = b3 * state.numerator_weighted + d / estim_lr0 * rate * gain
        new, most = _grown(state, estim_lr_coef * numerator, tree.norm(total, 1, wide=True), estim_lr0, growth_rate)
        decayed = tree.select(weight_decay_mask, params)
        step = tree.add_scale(tree.div_by_root(mean, square, eps * new), weight_decay, decayed)
        kept = tree.carry(mean, state.exp_avg), tree.carry(square, state.exp_avg_sq)
        state = ProdigyState(*kept, total, state.params0, new, numerator, most, count)
        return tree.cast_like(tree.scale(-rate, step), updates), state

    same = slice_p == 1 and weight_decay_mask is None
    return GradientTransformation(init, update, elementwise=same, takes_shards=slice_p == 1)


def _grown(
    state: ProdigyState, gain: Tensor, size: Tensor, first: Scalar, growth: Scalar | None
) -> tuple[Tensor, Tensor]:
    """The next estimate, and the largest so far."""
    d, nothing = state.estim_lr, size == 0
    hat = torch.where(nothing, d, gain / torch.where(nothing, 1.0, size))
    most = torch.maximum(state.max_lr, hat)
    if growth is None:
        return torch.maximum(d, hat), most
    return torch.minimum(most, torch.where(d == first, torch.maximum(d, hat), d) * growth), most
