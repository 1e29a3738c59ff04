"""Constant, linear and polynomial schedules."""

import torch
from torch import Tensor

from .. import tree
from .._checks import check_number, check_positive, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn


@schedule_factory
def constant_schedule(value: Scalar) -> ScheduleFn:
    """Hold one value.

    Args:
        value: The value at every step, in the unit of what is scheduled.

    Raises:
        TypeError: at construction if `value` is not a number or a 0-dim tensor.

    Example:
        >>> import optimfn as of
        >>> of.constant_schedule(0.5)(10)
        tensor(0.5000, dtype=torch.float64)
    """
    check_number(value=value)

    def schedule(count: int | Tensor) -> Tensor:
        return tree.wide(count) * 0 + value

    return schedule


@schedule_factory
def linear_schedule(
    init_value: Scalar, end_value: Scalar, transition_steps: int, transition_begin: int = 0
) -> ScheduleFn:
    """Go from one value to another in a straight line, then stay.

    Maths:
        f = clip(count - transition_begin, 0, transition_steps) / transition_steps
        value = init_value + (end_value - init_value) f

    Args:
        init_value: Value until `transition_begin`.
        end_value: Value from `transition_begin + transition_steps` on.
        transition_steps: Length of the line in steps, >= 0; with 0 the value stays `init_value`.
        transition_begin: Step the line begins at, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, as `polynomial_schedule` says.

    Example:
        >>> import optimfn as of
        >>> of.linear_schedule(0.0, 1.0, 10)(5)
        tensor(0.5000, dtype=torch.float64)
    """
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


@schedule_factory
def polynomial_schedule(
    init_value: Scalar, end_value: Scalar, power: Scalar, transition_steps: int, transition_begin: int = 0
) -> ScheduleFn:
    """Go from one value to another along a power of the time that is left, then stay.

    Maths:
        f = clip(count - transition_begin, 0, transition_steps) / transition_steps
        value = (init_value - end_value) (1 - f)^power + end_value

    Args:
        init_value: Value until `transition_begin`.
        end_value: Value from `transition_begin + transition_steps` on.
        power: Exponent, no unit, > 0; 1 is a straight line.
        transition_steps: Length of the transition in steps, >= 0; with 0 the value stays `init_value`.
        transition_begin: Step the transition begins at, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which takes a negative `transition_steps` for 0 and a negative
        `transition_begin` for 0 with a message in the log; here both are refused.

    Example:
        >>> import optimfn as of
        >>> of.polynomial_schedule(1.0, 0.0, 2, 10)(5)
        tensor(0.2500, dtype=torch.float64)
    """
    check_number(init_value=init_value, end_value=end_value)
    check_positive(power=power)
    check_steps(transition_steps=transition_steps, transition_begin=transition_begin)
    if transition_steps == 0:
        return constant_schedule(init_value)

    def schedule(count: int | Tensor) -> Tensor:
        elapsed = torch.clamp(tree.wide(count) - transition_begin, 0, transition_steps)
        return (init_value - end_value) * (1 - elapsed / transition_steps) ** power + end_value

    return schedule
