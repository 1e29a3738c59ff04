"""MoMo: Polyak's step for a model of the loss that averages over the last batches."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_decay, check_nonnegative, check_number, check_rate, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, Updates


class MomoState(NamedTuple):
    """MoMo's model of the loss."""

    exp_avg: Updates  # running mean of the gradients, like params
    barf: Tensor  # () float64, running mean of the loss
    gamma: Tensor  # () float64, running mean of the inner product of gradient and parameters
    lb: Tensor  # () float64, lower bound of the loss
    count: Count  # () int64, steps taken


class MomoAdamState(NamedTuple):
    """The model of the loss of MoMo-Adam, and its preconditioner."""

    exp_avg: Updates  # running mean of the gradients, like params
    exp_avg_sq: Updates  # running mean of their squares, like params
    barf: Tensor  # () float64, running mean of the loss
    gamma: Tensor  # () float64, running mean of the inner product of gradient and parameters
    lb: Tensor  # () float64, lower bound of the loss
    count: Count  # () int64, steps taken


class _Model(NamedTuple):
    """What the model says of the loss around the parameters."""

    size: Tensor  # |m|^2 in the metric of the preconditioner
    tau: Tensor  # the step
    lb: Tensor  # the next lower bound


def _step(
    bound: Tensor, facts: tuple[Tensor, Tensor, Tensor], rate: Scalar, decay: Scalar, part: Scalar, floor: Scalar | None
) -> _Model:
    """The step on a model of the loss; `part` is the share of the mean that has been seen."""
    height, inner, size = facts
    grown = 1 + rate * decay
    lb, cap = bound, grown * height + inner
    if floor is not None:
        lb = torch.where(cap < grown * part * lb, torch.clamp(cap / (2 * part * grown), min=floor), lb)
    flat = size <= torch.finfo(torch.float64).eps
    reach = torch.clamp(cap - grown * part * lb, min=0) / torch.where(flat, 1.0, size)
    tau = torch.minimum(torch.where(flat, 0.0, reach), torch.zeros_like(size) + rate / part)
    new = bound if floor is None else torch.clamp((height + inner - tau * size / 2) / part, min=floor)
    return _Model(size, tau, new)


def _loss(rule: str, value: Any, like: Tensor) -> Tensor:
    if value is None:
        raise ValueError(f"{rule} needs the loss: call tx.update(updates, state, params, value=loss)")
    return tree.wide(value).to(like.device)


def _shrunk(rate: Scalar, decay: Scalar, params: Params, updates: Updates) -> Updates:
    return tree.map(lambda _, p: p * (rate * decay / (1 + rate * decay)), updates, params)


@factory
def momo(
    learning_rate: ScalarOrSchedule = 1.0,
    beta: Scalar = 0.9,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Step against the mean of the gradients, as far as a linear model of the mean loss needs to reach a lower bound.

    The learning rate is the longest step; it may be too large. Every update takes the loss:
    `tx.update(grads, state, params, value=loss)`.

    Maths:
        f, m, gamma: running means of value, g and <g, p>, which begin at their first values
        tau = min(lr, max((1 + lr wd) (f - lower_bound - gamma) + <m, p>, 0) / |m|^2)
        update <- -(lr wd p) / (1 + lr wd) - tau m

    Args:
        learning_rate: Longest step, parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        beta: Decay of the means, no unit, in [0, 1).
        lower_bound: Lower bound of the loss, in its unit.
        weight_decay: Decay per unit of learning rate, >= 0.
        adapt_lower_bound: Raise the bound as the model learns where the loss ends, never below `lower_bound`.

    Shapes:
        params: needed, real leaves. state: exp_avg like params; four scalars. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `value` are given.

    Source: Schaipp et al., 2023, arXiv:2305.07583, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.momo(), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, value=(w**2).sum())[0]
        tensor([-1.])
    """
    check_rate(learning_rate=learning_rate)
    check_decay(beta=beta)
    check_number(lower_bound=lower_bound)
    check_nonnegative(weight_decay=weight_decay)

    def init(params: Params) -> MomoState:
        count, zero = tree.count(params), tree.wide(tree.count(params))
        return MomoState(tree.init_moment(params), zero.clone(), zero.clone(), zero + lower_bound, count)

    def update(
        updates: Updates, state: MomoState, params: Params | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[Updates, MomoState]:
        need_params("momo", params)
        loss = _loss("momo", value, state.barf)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        stay = torch.where(state.count == 0, 0.0, torch.zeros_like(loss) + beta)
        barf = stay * state.barf + (1 - stay) * loss
        mean = tree.update_moment(updates, state.exp_avg, stay, 1)
        gamma = stay * state.gamma + (1 - stay) * tree.vdot(updates, params, wide=True)
        kept = tree.carry(mean, state.exp_avg)
        facts = barf - gamma, tree.vdot(kept, params, wide=True), tree.norm(kept, squared=True, wide=True)
        model = _step(state.lb, facts, rate, weight_decay, 1.0, lower_bound if adapt_lower_bound else None)
        # In two products: the step of a large gradient is too small for float32, that of its direction is not.
        norm = torch.sqrt(torch.where(model.size == 0, 1.0, model.size))
        step = tree.scale(model.tau * norm, tree.scale(1 / norm, mean))
        step = tree.map(lambda d, s: -d - s, _shrunk(rate, weight_decay, params, updates), step)
        return tree.cast_like(step, updates), MomoState(kept, barf, gamma, model.lb, state.count + 1)

    return GradientTransformation(init, update, elementwise=True)


@factory
def momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    """Adam whose step is as long as a linear model of the mean loss needs to reach a lower bound, or shorter.

    The learning rate is the longest step; it may be too large. Every update takes the loss:
    `tx.update(grads, state, params, value=loss)`.

    Maths:
        f, m, gamma, v: running means of value, g, <g, p> and g^2;  c = 1 - b1^t,  D = eps + sqrt(v / (1 - b2^t))
        tau = min(lr / c, max((1 + lr wd) (f - c lower_bound - gamma) + <m, p>, 0) / <m, m / D>)
        update <- -(lr wd p) / (1 + lr wd) - tau m / D

    Args:
        learning_rate: Longest step, in parameter units, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the means, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        lower_bound: Lower bound of the loss, in its unit.
        weight_decay: Decay per unit of learning rate, >= 0.
        adapt_lower_bound: Raise the bound as the model learns where the loss ends, never below `lower_bound`.

    Shapes:
        params: needed, real leaves. state: exp_avg, exp_avg_sq like params; four scalars. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `value` are given.

    Source: Schaipp et al., 2023, arXiv:2305.07583, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.momo_adam(0.1), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, value=(w**2).sum())[0]
        tensor([-0.1000])
    """
    check_rate(learning_rate=learning_rate)
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, weight_decay=weight_decay)
    check_number(lower_bound=lower_bound)

    def init(params: Params) -> MomoAdamState:
        count, zero, moments = tree.count(params), tree.wide(tree.count(params)), tree.init_moment(params)
        square = tree.init_moment(params, real=True)
        return MomoAdamState(moments, square, zero.clone(), zero.clone(), zero + lower_bound, count)

    def update(
        updates: Updates, state: MomoAdamState, params: Params | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[Updates, MomoAdamState]:
        need_params("momo_adam", params)
        loss, count = _loss("momo_adam", value, state.barf), state.count + 1
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        barf = b1 * state.barf + (1 - b1) * loss
        mean = tree.update_moment(updates, state.exp_avg, b1, 1)
        square = tree.update_moment_per_elem_norm(updates, state.exp_avg_sq, b2, 2)
        gamma = b1 * state.gamma + (1 - b1) * tree.vdot(updates, params, wide=True)
        kept, kept_square = tree.carry(mean, state.exp_avg), tree.carry(square, state.exp_avg_sq)
        direction = tree.div_by_root(kept, tree.bias_correction(kept_square, b2, count), eps)
        facts = barf - gamma, tree.vdot(kept, params, wide=True), tree.vdot(kept, direction, wide=True)
        part = tree.one_minus_power(b1, count)
        model = _step(state.lb, facts, rate, weight_decay, part, lower_bound if adapt_lower_bound else None)
        step = tree.map(
            lambda s, d: -s - tree.cast_leaf(d * model.tau, d.dtype),
            _shrunk(rate, weight_decay, params, updates),
            direction,
        )
        return tree.cast_like(step, updates), MomoAdamState(kept, kept_square, barf, gamma, model.lb, count)

    return GradientTransformation(init, update, elementwise=True)
