"""Apply a transformation at some steps only."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation, check_transformation
from .._checks import check_callable
from .._evaluation import eval_within
from .._recipe import factory
from .._typing import Params, State, Updates


class ConditionFn(Protocol):
    """What decides whether to transform: `f(step) -> bool`, or `f(step, **extra) -> bool`."""

    def __call__(self, step: Tensor, **extra: Any) -> bool | Tensor:
        """Say whether to transform, as a bool or a 0-dim bool tensor."""


class ConditionallyTransformState(NamedTuple):
    """The state of the transformation inside, and the number of calls."""

    inner_state: State  # that of the inner transformation
    step: Tensor  # () int64, calls so far


class ConditionallyMaskState(NamedTuple):
    """The number of calls, and the state of the transformation inside."""

    step: Tensor  # () int64, calls so far
    inner_state: State  # that of the inner transformation


@factory
def conditionally_transform(
    inner: GradientTransformation, should_transform_fn: ConditionFn, forward_extra_args: bool = False
) -> GradientTransformation:
    """Apply `inner` where a condition on the step holds; elsewhere the updates pass through unchanged.

    Where it does not hold, the inner state stays as it was. Both outcomes are computed and one is dropped.

    Args:
        inner: The transformation to apply.
        should_transform_fn: `f(step) -> bool`, where `step` is the number of calls before this one, 0-dim int64.
        forward_extra_args: Call it with the extra arguments of the update too.

    Shapes:
        state: inner_state that of `inner`; step () int64.

    Raises:
        TypeError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.conditionally_transform(of.scale(10.0), lambda step: step >= 1)
        >>> first, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.ones(1), state)[0]
        (tensor([1.]), tensor([10.]))
    """
    check_transformation(inner=inner)
    check_callable(should_transform_fn=should_transform_fn)

    def init(params: Params) -> ConditionallyTransformState:
        return ConditionallyTransformState(inner.init(params), tree.count(params))

    def update(
        updates: Updates, state: ConditionallyTransformState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyTransformState]:
        condition = should_transform_fn(state.step, **(extra if forward_extra_args else {}))
        changed, inner_state = inner.rule(updates, state.inner_state, params, **extra)
        return choose(condition, changed, updates, params), ConditionallyTransformState(
            tree.where(condition, inner_state, state.inner_state), state.step + 1
        )

    return GradientTransformation(init, update, takes_assigned=True, eval_params=eval_within(inner, "inner_state"))


@factory
def conditionally_mask(
    inner: GradientTransformation, should_transform_fn: ConditionFn, forward_extra_args: bool = False
) -> GradientTransformation:
    """Apply `inner` where a condition on the step holds; elsewhere the updates become *zero*.

    Where it does not hold, the inner state stays as it was. Both outcomes are computed and one is dropped.

    Args:
        inner: The transformation to apply.
        should_transform_fn: `f(step) -> bool`, where `step` is the number of calls before this one, 0-dim int64.
        forward_extra_args: Call it with the extra arguments of the update too.

    Shapes:
        state: step () int64; inner_state that of `inner`.

    Raises:
        TypeError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.conditionally_mask(of.scale(10.0), lambda step: step >= 1)
        >>> first, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.ones(1), state)[0]
        (tensor([0.]), tensor([10.]))
    """
    check_transformation(inner=inner)
    check_callable(should_transform_fn=should_transform_fn)

    def init(params: Params) -> ConditionallyMaskState:
        return ConditionallyMaskState(tree.count(params), inner.init(params))

    def update(
        updates: Updates, state: ConditionallyMaskState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyMaskState]:
        condition = should_transform_fn(state.step, **(extra if forward_extra_args else {}))
        changed, inner_state = inner.rule(updates, state.inner_state, params, **extra)
        return choose(condition, changed, 0.0, params), ConditionallyMaskState(
            state.step + 1, tree.where(condition, inner_state, state.inner_state)
        )

    return GradientTransformation(init, update, takes_assigned=True, eval_params=eval_within(inner, "inner_state"))
