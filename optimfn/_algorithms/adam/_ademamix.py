"""AdEMAMix: a fast and a very slow mean of the gradients, over one second moment."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_dtype, check_nonnegative, check_rate, check_steps
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByAdemamixState(NamedTuple):
    """AdEMAMix's memory."""

    count: Count  # () int64, steps taken
    count_m2: Count  # () int64, steps taken, where the schedules of b3 and alpha are
    m1: Updates  # fast mean of the gradients, like params
    m2: Updates  # slow mean of the gradients, like params
    nu: Updates  # running mean of their squared magnitudes, like params but real


@factory
def scale_by_ademamix(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    warmup_steps: int | None = None,
) -> GradientTransformation:
    """Divide a fast mean of the updates plus `alpha` times a slow one by the root of the mean of their squares.

    The slow mean remembers ten thousand steps. Over long runs it starts with `warmup_steps`, as in the paper.

    Maths:
        m1 <- b1 m1 + (1 - b1) g,  m2 <- b3 m2 + (1 - b3) g,  nu <- b2 nu + (1 - b2) |g|^2
        update <- (m1 / (1 - b1^t) + alpha m2) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)
        with `warmup_steps` T, while t < T:  alpha t / T for alpha, and for b3 the decay whose half-life is
        (1 - t/T) h(b1) + t/T h(b3),  h(b) = log(1/2) / log(b + 1e-8) - 1

    Args:
        b1: Decay of `m1`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        b3: Decay of `m2`, no unit, in [0, 1); a number, a 0-dim tensor or a schedule.
        alpha: Weight of `m2`, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the means; `None` means that of the leaf, float32 for float16 and bfloat16.
        warmup_steps: Steps over which `alpha` and `b3` rise to their values, >= 0; `None` means from the start.

    Shapes:
        state: count, count_m2 () int64; m1, m2, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; also for `warmup_steps` beside
            a schedule.

    Differs from: optax, where `mu_dtype` is that of `nu` too, and is lost at the first step.

    Source: Pagliardini, Ablin and Grangier, 2024, arXiv:2409.03137, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_ademamix(b3=0.75, alpha=2.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.5000])
    """
    check_decay(b1=b1, b2=b2, **({} if callable(b3) else {"b3": b3}))
    check_rate(alpha=alpha)
    check_nonnegative(eps=eps, eps_root=eps_root)
    check_dtype(mu_dtype=mu_dtype)
    if warmup_steps is not None:
        check_steps(warmup_steps=warmup_steps)
        if callable(b3) or callable(alpha):
            raise ValueError(f"warmup_steps={warmup_steps} makes schedules of b3 and alpha: give numbers for them")

    def init(params: Params) -> ScaleByAdemamixState:
        count, (m1, m2) = tree.count(params), (tree.init_moment(params, mu_dtype) for _ in range(2))
        return ScaleByAdemamixState(count, count.clone(), m1, m2, tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdemamixState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdemamixState]:
        count = state.count + 1
        now = b3(state.count_m2) if callable(b3) else _risen_decay(b1, b3, state.count_m2 + 1, warmup_steps)
        weight = alpha(state.count_m2) if callable(alpha) else _risen(0.0, alpha, state.count_m2 + 1, warmup_steps)
        m1, m2 = tree.update_moment(updates, state.m1, b1, 1), tree.update_moment(updates, state.m2, now, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        mixed = tree.add_scale(tree.bias_correction(m1, b1, count), weight, m2)
        direction = tree.div_by_root(mixed, tree.bias_correction(nu, b2, count), eps, eps_root)
        means = tree.carry(m1, state.m1), tree.carry(m2, state.m2), tree.carry(nu, state.nu)
        return tree.cast_like(direction, updates), ScaleByAdemamixState(count, state.count_m2 + 1, *means)

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


def _risen(start: Scalar, end: Scalar, step: Tensor, warmup_steps: int | None) -> Scalar:
    """From `start` to `end` on a line; there from `warmup_steps` on."""
    if not warmup_steps:
        return end
    share = tree.wide(step) / warmup_steps
    return torch.where(share < 1, start + (end - start) * share, share * 0 + end)


def _risen_decay(start: Scalar, end: Scalar, step: Tensor, warmup_steps: int | None) -> Scalar:
    """From `start` to `end` with half-lives on a line."""
    if not warmup_steps:
        return end
    low, high = (math.log(0.5) / torch.log(tree.wide(b).to(step.device) + 1e-8) - 1 for b in (start, end))
    return torch.where(step < warmup_steps, 0.5 ** (1 / (_risen(low, high, step, warmup_steps) + 1)), low * 0 + end)


@factory
def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    warmup_steps: int | None = None,
) -> GradientTransformation:
    """Step by a fast and a very slow mean of the gradients over the root of their mean square.

    For long runs, where gradients of long ago still help. `scale_by_ademamix` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the fast mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        b3: Decay of the slow mean, no unit, in [0, 1); a number, a 0-dim tensor or a schedule.
        alpha: Weight of the slow mean, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the means; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        warmup_steps: Steps over which `alpha` and `b3` rise to their values, >= 0; `None` means from the start.

    Shapes:
        params: needed. state: that of `scale_by_ademamix`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Pagliardini, Ablin and Grangier, 2024, arXiv:2409.03137, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.ademamix(0.1, b3=0.75, alpha=2.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1500])
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype, warmup_steps=warmup_steps),
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
