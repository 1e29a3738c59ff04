"""Accumulate gradients over several calls before the inner transformation takes a step."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation, check_transformation
from .._checks import check_callable, check_dtype, check_steps
from .._evaluation import eval_within
from .._recipe import factory
from .._typing import Params, Scalar, ScheduleFn, State, Tree, Updates


class MultiStepsState(NamedTuple):
    """Where the accumulation is."""

    mini_step: Tensor  # () int64, gradients taken in since the last step
    gradient_step: Tensor  # () int64, steps taken by the inner transformation
    inner_opt_state: State  # that of the inner transformation
    acc_grads: Updates  # mean or sum of the gradients so far, like params
    skip_state: Tree = ()  # what the skip function said last; () without one


class ShouldSkipUpdateFunction(Protocol):
    """What decides whether to leave out a mini step: `f(updates, gradient_step, params) -> (skip, info)`."""

    def __call__(self, updates: Updates, gradient_step: Tensor, params: Params | None) -> tuple[Tensor, Tree]:
        """Say whether to skip, as a 0-dim bool tensor, and what to keep about it in the state."""


@factory
def multi_steps(
    inner: GradientTransformation,
    every_k_schedule: int | ScheduleFn,
    use_grad_mean: bool = True,
    should_skip_update_fn: ShouldSkipUpdateFunction | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Let `inner` take one step for every k gradients, with their mean; the updates in between are zero.

    With equal batches, k steps are one step with a batch k times as large: states, counts and schedules inside move
    once. Between steps `inner` sees zeros and what it makes of them is dropped, so neither a partial sum nor a NaN
    reaches its state. Extra arguments are those of the last mini step.

    Maths:
        m <- m + (g - m) / (n + 1),  or m + g with `use_grad_mean=False`
        n <- n + 1
        where n = k:  update <- inner(m),  n <- 0,  m <- 0;  elsewhere update <- 0

    Args:
        inner: The transformation to feed.
        every_k_schedule: Gradients per step, >= 1: an int, or a function of the number of steps taken.
        use_grad_mean: Whether to take the mean of the gradients; else their sum.
        should_skip_update_fn: `f(updates, gradient_step, params) -> (skip, info)`, such as `skip_not_finite`. A
            mini step that it skips changes nothing but `skip_state`, and gives no update.
        accumulator_dtype: Dtype of the sum; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        state: mini_step, gradient_step () int64; inner_opt_state that of `inner`; acc_grads like params;
            skip_state whatever the function returns. Memory: 1 x params.
        A gradient that is absent in a mini step adds nothing there, and its leaf gets an update all the same: that of
            the gradients that came before, or zero. A leaf that had none, or only zeros, keeps its state inside.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, where it is a class; where `inner` runs on every partial sum and a NaN that it makes there gets
        through; and where the accumulator is float32 also for float64.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.multi_steps(of.sgd(1.0), every_k_schedule=2)
        >>> state = tx.init(torch.zeros(1))
        >>> first, state = tx.update(torch.tensor([1.0]), state)
        >>> second, state = tx.update(torch.tensor([3.0]), state)
        >>> first, second, of.has_updated(state)
        (tensor([0.]), tensor([-2.]), tensor(True))
    """
    check_transformation(inner=inner)
    if not callable(every_k_schedule):
        check_steps(every_k_schedule=every_k_schedule, at_least=1)
    if should_skip_update_fn is not None:
        check_callable(should_skip_update_fn=should_skip_update_fn)
    check_dtype(accumulator_dtype=accumulator_dtype)

    def init(params: Params) -> MultiStepsState:
        count, skip_state = tree.count(params), ()
        if should_skip_update_fn is not None:
            skip = should_skip_update_fn
            skip_state = tree.outline(lambda given: skip(tree.zeros_like(given), count, given)[1], params)
        moment = tree.init_moment(params, accumulator_dtype)
        return MultiStepsState(count, torch.zeros_like(count), inner.init(params), moment, skip_state)

    def update(
        updates: Updates, state: MultiStepsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MultiStepsState]:
        n, step, old = state.mini_step, state.gradient_step, state.acc_grads
        k = every_k_schedule(step) if callable(every_k_schedule) else every_k_schedule
        absent = tree.map(lambda _, u: u is None, old, updates)
        some_absent = any(tree.leaves(absent))
        now = tree.map(lambda a, u: torch.zeros_like(a) if u is None else u, old, updates) if some_absent else updates
        more = tree.lerp(old, now, 1 / tree.wide(n + 1)) if use_grad_mean else tree.add(now, old)
        total = tree.where(n == 0, now, more)
        take, skip_state = torch.ones_like(n, dtype=torch.bool), state.skip_state
        if should_skip_update_fn is not None:
            skip, info = should_skip_update_fn(updates, step, params)
            take, skip_state = torch.logical_not(skip), tree.keep(info, state.skip_state)
        emit = take & (n + 1 >= k)
        like = tree.map(
            lambda a, u, p: u if u is not None else a if p is None else p,
            old,
            updates,
            old if params is None else params,
        )
        given = tree.cast_like(tree.where(emit, total, tree.zeros_like(total)), like)
        stepped, inner_state = inner.rule(given, state.inner_opt_state, params, **extra)
        if some_absent:
            found = tree.reduce_each(lambda x: (x != 0).any(), "any", total)
            met = tree.map(lambda gone, any_ok: any_ok if gone else True, absent, found)
            stepped = _only_where(met, stepped, params)
            inner_state = _keep_unless(met, inner, inner_state, state.inner_opt_state)
        left = tree.where(take, tree.where(emit, tree.zeros_like(total), total), tree.cast_like(old, total))
        return choose(emit, stepped, 0.0, params), MultiStepsState(
            torch.where(emit, 0, n + take),
            step + emit,
            tree.where(emit, inner_state, state.inner_opt_state),
            tree.carry(left, old),
            skip_state,
        )

    same = inner.elementwise and should_skip_update_fn is None
    last = eval_within(inner, "inner_opt_state")
    return GradientTransformation(init, update, elementwise=same, eval_params=last)


def _only_where(met: Tree, updates: Updates, params: Params | None) -> Updates:
    """The updates, but nothing for the leaves that have met no gradient."""
    own = met if params is None else params

    def leaf(ok: bool | Tensor, u: Any, p: Any) -> Any:
        return u if ok is True or u is None else choose(ok, u, 0.0, None if params is None else p)

    return tree.map(leaf, met, updates, own)


def _keep_unless(met: Tree, inner: GradientTransformation, new: State, old: State) -> State:
    """The new state, but the old one of the leaves that have met no gradient."""
    marks = tree.map_params(inner, lambda _, ok: ok, new, met, transform_non_params=lambda _: True)
    return tree.map(lambda ok, x, was: x if ok is True else torch.where(ok, x, was), marks, new, old)


def has_updated(state: State) -> Tensor:
    """Whether the last call of `multi_steps` ended in a step, as a 0-dim bool tensor.

    Args:
        state: Its state, or one that contains it once.

    Raises:
        KeyError: if the state contains several.
        ValueError: if it contains none.

    Example:
        >>> import torch, optimfn as of
        >>> of.has_updated(of.multi_steps(of.sgd(1.0), 2).init(torch.zeros(1)))
        tensor(False)
    """
    own = state if isinstance(state, MultiStepsState) else tree.get(state, "MultiStepsState")
    if own is None:
        raise ValueError("the state has no MultiStepsState")
    updated: Tensor = (own.mini_step == 0) & (own.gradient_step > 0)
    return updated


def skip_not_finite(updates: Updates, gradient_step: Tensor, params: Params | None) -> tuple[Tensor, Tree]:
    """Skip a mini step of `multi_steps` if any element of the updates is infinite or NaN.

    Example:
        >>> import torch, optimfn as of
        >>> of.skip_not_finite(torch.tensor([1.0, float("inf")]), torch.tensor(0), None)
        (tensor(True), {'should_skip': tensor(True), 'num_not_finite': tensor(1)})
    """
    bad = tree.reduce(lambda u: (~torch.isfinite(u)).sum(), "sum", updates, empty=0)
    return bad > 0, {"should_skip": bad > 0, "num_not_finite": bad}


def skip_large_updates(
    updates: Updates, gradient_step: Tensor, params: Params | None, max_squared_norm: Scalar
) -> tuple[Tensor, Tree]:
    """Skip a mini step of `multi_steps` unless the squared global norm of the updates is below a bound; NaN is not.

    Use `functools.partial(skip_large_updates, max_squared_norm=...)`.

    Example:
        >>> import torch, optimfn as of
        >>> of.skip_large_updates(torch.tensor([3.0, 4.0]), torch.tensor(0), None, max_squared_norm=20.0)
        (tensor(True), {'should_skip': tensor(True), 'norm_squared': tensor(25., dtype=torch.float64)})
    """
    size = tree.norm(updates, squared=True, wide=True)
    skip = ~(size < max_squared_norm)
    return skip, {"should_skip": skip, "norm_squared": size}
