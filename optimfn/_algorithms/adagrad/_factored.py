"""Adafactor in optax's form: a factored second moment, and a whole optimizer around it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import (
    check_callable,
    check_decay,
    check_nonnegative,
    check_number,
    check_positive,
    check_rate,
    check_steps,
    need_params,
)
from ..._recipe import factory
from ..._transforms._block import scale_by_param_block_rms
from ..._transforms._clipping import clip_by_block_rms
from ..._transforms._decay import add_decayed_weights
from ..._transforms._momentum import ema
from ..._transforms._rate import scale, scale_by_learning_rate
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Tree, Updates


class FactoredState(NamedTuple):
    """The second moment, factored for large leaves."""

    count: Count  # () int64, steps taken
    v_row: Updates  # means of the squares over the largest axis; (0,) for leaves that are not factored
    v_col: Updates  # means over the second largest axis; (0,) for the same leaves
    v: Updates  # means of the squares of the other leaves, like params but real; (0,) for the factored ones


@factory
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Scalar = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Scalar = 1e-30,
    decay_rate_fn: Callable[[Tensor, Scalar], Scalar] | None = None,
) -> GradientTransformation:
    """Divide the updates by the root of a running mean of their squares, factored over the two largest axes.

    Maths:
        b = 1 - (max(count - step_offset, 0) + 1)^-decay_rate
        R <- b R + (1 - b) mean over the largest axis of (|g|^2 + epsilon)
        C <- b C + (1 - b) mean over the second largest axis of (|g|^2 + epsilon)
        update <- g / sqrt(R C / mean of R over the second largest axis)
        V <- b V + (1 - b) (|g|^2 + epsilon),  update <- g / sqrt(V)   for the other leaves

    Args:
        factored: Whether to factor at all.
        decay_rate: Power with which the weight of the newest square falls, no unit.
        step_offset: Count that is the first, for fine-tuning with a restored state, in steps; before it only the newest
            square counts. A negative one begins as if so many steps had been taken.
        min_dim_size_to_factor: Least size of the second largest axis of a leaf that is factored, >= 0.
        epsilon: Added to the squares, in the unit of `|g|^2`, >= 0.
        decay_rate_fn: `f(max(count - step_offset, 0), decay_rate)`, the decay `b` at a step; `None` means the power
            above.

    Shapes:
        params: needed. state: count () int64; v_row and v_col like the factored leaves without their largest and
            second largest axis; v like the other leaves; (0,) for what a leaf does not need; all real, float32 for
            float16 and bfloat16. Memory: (1/m + 1/n) x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: `scale_by_row_col_rms`, torch's form, which factors the last two axes of every leaf; optax, where
        what a leaf does not need has the shape (1,).

    Source: Shazeer and Stern, 2018, arXiv:1804.04235, Algorithm 4; Zhai et al., 2022, arXiv:2106.04560
        (other decays).

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_factored_rms(min_dim_size_to_factor=2), torch.ones(2, 2)
        >>> tx.update(torch.tensor([[1.0, -2.0], [-2.0, 4.0]]), tx.init(params), params)[0]
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    check_number(decay_rate=decay_rate)
    check_steps(step_offset=step_offset, at_least=None)
    check_steps(min_dim_size_to_factor=min_dim_size_to_factor)
    check_nonnegative(epsilon=epsilon)
    if decay_rate_fn is not None:
        check_callable(decay_rate_fn=decay_rate_fn)

    def axes(x: Tensor) -> tuple[int, int] | None:
        if not factored or x.ndim < 2:
            return None
        *_, second, first = sorted(range(x.ndim), key=lambda axis: x.shape[axis])
        return (second, first) if x.shape[second] >= min_dim_size_to_factor else None

    def part(which: int) -> Callable[[Tree], Tree]:
        """The mean over the first (0) or second (1) axis of a factored leaf, or another leaf itself (2)."""

        def along(x: Tensor) -> tuple[int, ...] | None:
            two = axes(x)
            return None if which == 2 or two is None else (two[1 - which],)

        def of(square: Tree) -> Tree:
            own = tree.map(lambda x: x if (axes(x) is None) == (which == 2) else x.new_empty(0), square)
            return tree.fold_each("mean", along, own)

        return of

    def decay(count: Tensor) -> Scalar:
        count = torch.clamp(count - step_offset, min=0)
        return 1 - tree.wide(count + 1) ** -decay_rate if decay_rate_fn is None else decay_rate_fn(count, decay_rate)

    def init(params: Params) -> FactoredState:
        # Only the shapes of these means are of use.
        parts = (tree.init_moment(tree.outline(part(which), params), real=True) for which in range(3))
        return FactoredState(tree.count(params), *parts)

    def across(row: Tensor, g: Tensor) -> tuple[int, ...] | None:
        two = axes(g)
        return None if two is None else (two[0] - (two[0] > two[1]),)

    def leaf(g: Tensor, row: Tensor, col: Tensor, v: Tensor, mean: Tensor) -> Tensor:
        two = axes(g)
        if two is None:
            return g * torch.rsqrt(v)
        second, first = two
        row = torch.where(torch.isinf(mean), mean, row / mean)  # squares without room stop the leaf, as in Adam
        return g * torch.rsqrt(row).unsqueeze(first) * torch.rsqrt(col).unsqueeze(second)

    def update(
        updates: Updates, state: FactoredState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, FactoredState]:
        need_params("scale_by_factored_rms", params)
        weight = 1 - decay(state.count)
        square = tree.map(lambda s: tree.cast_leaf(s + epsilon, s.dtype), tree.abs_sq(updates))
        olds = (state.v_row, state.v_col, state.v)
        news = [mixed(old, part(which)(square), weight) for which, old in enumerate(olds)]
        means = tree.fold_each("mean", across, news[0], updates, keepdim=True)
        direction = tree.map(leaf, updates, *news, means)
        return tree.cast_like(direction, updates), FactoredState(state.count + 1, *map(tree.carry, news, olds))

    return GradientTransformation(init, update, leafwise=True, elementwise=not factored)


def mixed(old: Tree, new: Tree, weight: Scalar) -> Tree:
    """`old + weight (new - old)` as a sum of two products, which is not NaN where both are infinite."""
    return tree.add(tree.scale(weight, new), tree.scale(1 - weight, old))


@factory
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Scalar | None = None,
    dtype_momentum: torch.dtype | None = torch.float32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: Scalar = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the gradient over its root mean square, kept as a row and a column, relative to the parameter.

    Maths:
        u = g / sqrt(v),  v as in `scale_by_factored_rms`
        u <- u / max(1, rms(u) / clipping_threshold)
        u <- learning_rate max(rms(p), 1e-3) u
        m <- momentum m + (1 - momentum) u
        update <- -(m + weight_decay_rate p)

    Args:
        learning_rate: Relative change of a leaf per step, no unit, >= 0; a number, a 0-dim tensor or a schedule.
            `None` means 1.
        min_dim_size_to_factor: Least size of the second largest axis of a leaf that is factored, >= 0.
        decay_rate: Power with which the weight of the newest square falls, no unit.
        decay_offset: Count that is the first, as `step_offset` in `scale_by_factored_rms`, in steps.
        multiply_by_parameter_scale: Whether the learning rate is relative to the size of the leaf.
        clipping_threshold: Largest root mean square of a scaled leaf, no unit, > 0; `None` does not clip.
        momentum: Weight of the mean update so far, no unit, in [0, 1); `None` keeps none.
        dtype_momentum: Dtype of the mean update; `None` means that of the leaf, float32 for float16 and bfloat16.
            Complex leaves need `None` or a complex dtype.
        weight_decay_rate: Decay per step, which the learning rate does *not* multiply, >= 0; a number, a 0-dim tensor
            or a schedule. `None` means none.
        eps: Added to the squares, in the unit of `|g|^2`, >= 0.
        factored: Whether to factor the second moment.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_factored_rms`, with `momentum` one mean like params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: torch.optim.Adafactor, whose learning rate is the bound of a falling one, which multiplies the
        decay, and whose moments are those of `scale_by_row_col_rms`.

    Source: Shazeer and Stern, 2018, arXiv:1804.04235.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.adafactor(0.1), torch.tensor([3.0, -3.0])
        >>> tx.update(torch.tensor([5.0, 5.0]), tx.init(params), params)[0]
        tensor([-0.3000, -0.3000])
    """
    check_steps(decay_offset=decay_offset, at_least=None)
    check_nonnegative(eps=eps)
    if clipping_threshold is not None:
        check_positive(clipping_threshold=clipping_threshold)
    if momentum is not None:
        check_decay(momentum=momentum)
    if weight_decay_rate is not None:
        check_rate(weight_decay_rate=weight_decay_rate)
    return chain(
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps),
        identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_param_block_rms() if multiply_by_parameter_scale else identity(),
        identity() if momentum is None else ema(momentum, debias=False, accumulator_dtype=dtype_momentum),
        identity() if weight_decay_rate is None else add_decayed_weights(weight_decay_rate, weight_decay_mask),
        scale(-1.0),
    )
