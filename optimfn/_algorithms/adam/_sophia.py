"""Sophia: the mean gradient over the diagonal of the Hessian, clipped."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, check_transformation
from ..._checks import check_decay, check_dtype, check_nonnegative, check_positive, check_seed, check_steps, need_params
from ..._numerics._second_order import hutchinson_diagonal
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, State, Updates


class HutchinsonState(NamedTuple):
    """Where the random vectors are."""

    key: Tensor  # () int64, what the next vector is a function of


class SophiaState(NamedTuple):
    """Sophia's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Annotated[Updates, "signed"]  # running mean of the estimated diagonals of the Hessian, like params
    hessian_fn_state: State  # that of the estimator


@factory
def hutchinson_estimator_diag_hessian(random_seed: int | Tensor | None = None) -> GradientTransformation:
    """Return an estimate of the diagonal of the Hessian in place of the updates.

    Every update takes the function: `tx.update(grads, state, params, obj_fn=f)` with `f(params)` the loss.

    Maths:
        update <- z * (H z),  entries of z +1 or -1 with equal odds

    Args:
        random_seed: Any whole number, or a 0-dim int64 tensor; `None` means 0.

    Shapes:
        params: needed, real leaves. state: key () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `obj_fn` are given.

    Differs from: optax in the random numbers.

    Source: Bekas, Kokiopoulou and Saad, 2007, "An estimator for the diagonal of a matrix".

    Example:
        >>> import torch, optimfn as of
        >>> tx, x = of.hutchinson_estimator_diag_hessian(), torch.tensor([1.0, 2.0])
        >>> tx.update(x, tx.init(x), x, obj_fn=lambda x: (x**3).sum())[0]
        tensor([ 6., 12.])
    """
    start = 0 if random_seed is None else random_seed
    check_seed(random_seed=start)

    def init(params: Params) -> HutchinsonState:
        return HutchinsonState(tree.count(params) + start)

    def update(
        updates: Updates,
        state: HutchinsonState,
        params: Params | None = None,
        *,
        obj_fn: Callable[[Params], Tensor] | None = None,
        **extra: Any,
    ) -> tuple[Updates, HutchinsonState]:
        need_params("hutchinson_estimator_diag_hessian", params)
        if obj_fn is None:
            raise ValueError(
                "hutchinson_estimator_diag_hessian needs the loss: call tx.update(updates, state, params, obj_fn=f)"
            )
        tree.check_shapes(updates, params)  # whose numbers are not looked at
        # torch's forward mode does not take leaves that overlap themselves.
        at = tree.map(lambda p: p.contiguous(), params)
        found = hutchinson_diagonal(obj_fn, at, tree.fold_in(state.key, 1))
        found = tree.map(lambda g, h: tree.cast_leaf(h, g.dtype), updates, found)
        return found, HutchinsonState(tree.fold_in(state.key, 0))

    return GradientTransformation(init, update)


@factory
def scale_by_sophia(
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation | None = None,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Divide the mean of the updates by an estimate of the diagonal of the Hessian, and clip.

    The estimator gets the extra arguments of `update`: `obj_fn`, the loss, for that of Hutchinson.

    Maths:
        mu <- b1 mu + (1 - b1) g
        update <- clip(mu / (1 - b1^t) / max(gamma nu, eps), +-clip_threshold)
        then, at the steps 1, 1 + update_interval, ...:  nu <- b2 nu + (1 - b2) diagonal

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Least divisor, in the unit of the diagonal, >= 0.
        gamma: Factor on the diagonal, no unit, >= 0; so that a share of 10 to 50 % of the elements is not clipped.
        clip_threshold: Bound of every element, no unit, > 0; `None` means none.
        update_interval: Steps between two estimates, >= 1. It is computed at every step, and taken at these.
        hessian_diagonal_fn: A transformation that returns the diagonal; `None` means that of
            Hutchinson.
        mu_dtype: Dtype of `mu`; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        params: needed, real leaves. state: count () int64; mu, nu like params; that of the estimator.
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or what the estimator needs.

    Differs from: optax, which prints how many elements are not clipped.

    Source: Liu et al., 2023, arXiv:2305.14342, Algorithm 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, x = of.scale_by_sophia(), torch.tensor([1.0, -2.0])
        >>> tx.update(x, tx.init(x), x, obj_fn=lambda x: (x**2).sum())[0]
        tensor([ 1., -1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, gamma=gamma)
    check_positive(**({} if clip_threshold is None else {"clip_threshold": clip_threshold}))
    check_steps(update_interval=update_interval, at_least=1)
    check_dtype(mu_dtype=mu_dtype)
    estimator = hutchinson_estimator_diag_hessian() if hessian_diagonal_fn is None else hessian_diagonal_fn
    check_transformation(hessian_diagonal_fn=estimator)

    def init(params: Params) -> SophiaState:
        mu, nu = tree.init_moment(params, mu_dtype), tree.init_moment(params)
        return SophiaState(tree.count(params), mu, nu, estimator.init(params))

    def update(
        updates: Updates, state: SophiaState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SophiaState]:
        need_params("scale_by_sophia", params)
        count, due = state.count + 1, state.count % update_interval == 0
        mu = tree.update_moment(updates, state.mu, b1, 1)
        divisor = tree.clip(tree.scale(gamma, state.nu), min_value=eps)
        direction = tree.map(torch.div, tree.bias_correction(mu, b1, count), divisor)
        if clip_threshold is not None:
            direction = tree.clip(direction, -clip_threshold, clip_threshold)
        diagonal, inner = estimator.rule(updates, state.hessian_fn_state, params, **extra)
        nu = tree.carry(tree.update_moment(diagonal, state.nu, b2, 1), state.nu)
        nu, inner = tree.where(due, (nu, inner), (state.nu, state.hessian_fn_state))
        return tree.cast_like(direction, updates), SophiaState(count, tree.carry(mu, state.mu), nu, inner)

    return GradientTransformation(init, update)


@factory
def sophia(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    weight_decay_mask: Mask | None = None,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation | None = None,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Step by the mean gradient over an estimate of the diagonal of the Hessian, clipped: `scale_by_sophia`.

    Args:
        learning_rate: Parameter units per step, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the diagonal, no unit, in [0, 1).
        eps: Least divisor, in the unit of the diagonal, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        gamma: Factor on the diagonal, no unit, >= 0.
        clip_threshold: Bound of every element, no unit, > 0; `None` means none.
        update_interval: Steps between two estimates, >= 1.
        hessian_diagonal_fn: A transformation that returns the diagonal; `None` means that of
            Hutchinson.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        params: needed, real leaves. state: that of `scale_by_sophia`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or what the estimator needs.

    Source: Liu et al., 2023, arXiv:2305.14342, Algorithm 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, x = of.sophia(0.1, weight_decay=0.0), torch.tensor([1.0, -2.0])
        >>> tx.update(x, tx.init(x), x, obj_fn=lambda x: (x**2).sum())[0]
        tensor([-0.1000,  0.1000])
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, hessian_diagonal_fn, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
