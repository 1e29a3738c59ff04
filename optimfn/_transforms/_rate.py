"""Multiply updates by a number, a learning rate or a schedule."""

from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation, elementwise, identity, stateless
from .._checks import check_callable, check_number, check_rate, check_value
from .._recipe import factory
from .._typing import Count, Params, Scalar, ScalarOrSchedule, ScheduleFn, Updates


class ScaleByScheduleState(NamedTuple):
    """Where `scale_by_schedule` is on its schedule."""

    count: Count  # () int64, steps taken


@factory
def scale(step_size: Scalar) -> GradientTransformation:
    """Multiply the updates by a number.

    Args:
        step_size: The factor, any number, no unit; a negative one turns ascent into descent.

    Shapes:
        state: empty.

    Raises:
        TypeError: at construction if `step_size` is not a number or a 0-dim tensor.

    Example:
        >>> import torch, optimfn as of
        >>> of.scale(-0.5).update(torch.tensor([4.0]), of.EmptyState())[0]
        tensor([-2.])
    """
    check_number(step_size=step_size)
    return elementwise(stateless(lambda updates, params: tree.scale(step_size, updates)))


@factory
def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> GradientTransformation:
    """Multiply the updates by the learning rate and turn them downhill: the end of most chains.

    Args:
        learning_rate: Parameter units per unit of update, >= 0: a number, a 0-dim tensor that may change
            between steps, or a schedule. `None` makes this the identity.
        flip_sign: Multiply by -1 too, so that adding the update goes downhill.

    Shapes:
        state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which accepts a negative learning rate; here `flip_sign=False` goes uphill.

    Example:
        >>> import torch, optimfn as of
        >>> of.scale_by_learning_rate(0.1).update(torch.tensor([4.0]), of.EmptyState())[0]
        tensor([-0.4000])
    """
    if learning_rate is None:
        return identity()
    check_rate(learning_rate=learning_rate)
    if callable(learning_rate):

        def rate(count: int | Tensor) -> Any:
            value = check_value(learning_rate, learning_rate(count))
            return -value if flip_sign else value

        return scale_by_schedule(rate)
    # A tensor is read in the update, not here: it may have changed since.
    return elementwise(
        stateless(lambda updates, params: tree.scale(-learning_rate if flip_sign else learning_rate, updates))
    )


def descend(learning_rate: ScalarOrSchedule) -> GradientTransformation:
    """The end of a whole optimizer, which needs a rate: a `None` that a config left would go uphill without a word."""
    check_rate(learning_rate=learning_rate)
    return scale_by_learning_rate(learning_rate)


@factory
def scale_by_schedule(step_size_fn: ScheduleFn) -> GradientTransformation:
    """Multiply the updates by the value of a schedule; the sign is not flipped.

    Args:
        step_size_fn: Function of the number of steps taken before this one, so the first step sees 0.

    Shapes:
        state: count () int64.

    Raises:
        TypeError: at construction if `step_size_fn` is not callable.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_schedule(of.linear_schedule(1.0, 0.0, 2))
        >>> state = tx.init(torch.ones(1))
        >>> first, state = tx.update(torch.ones(1), state)
        >>> second, state = tx.update(torch.ones(1), state)
        >>> first, second
        (tensor([1.]), tensor([0.5000]))
    """
    check_callable(step_size_fn=step_size_fn)

    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(tree.count(params))

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByScheduleState]:
        return tree.scale(step_size_fn(state.count), updates), ScaleByScheduleState(state.count + 1)

    return GradientTransformation(init, update, elementwise=True)
