"""Schedules that fall or rise steadily: the pure forms of LinearLR, ExponentialLR and PolynomialLR."""

import torch
from torch import Tensor

from .. import tree
from .._checks import check_nonnegative, check_number, check_positive, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._polynomial import polynomial_schedule


@schedule_factory
def linear_lr(
    init_value: Scalar, start_factor: Scalar = 1 / 3, end_factor: Scalar = 1.0, total_iters: int = 5
) -> ScheduleFn:
    """Go from one fraction of the value to another in a straight line, then stay: the usual warm-up.

    Maths:
        f = min(count, total_iters) / total_iters
        value = init_value (start_factor + (end_factor - start_factor) f)

    Args:
        init_value: Value that the factors multiply.
        start_factor: Fraction at step 0, no unit, >= 0.
        end_factor: Fraction from step `total_iters` on, no unit, >= 0.
        total_iters: Length of the line in steps, >= 1.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.LinearLR, which refuses factors above 1 and a `start_factor` of 0,
        and with `total_iters=0` stays at `start_factor` for ever. `linear_schedule` takes the two values
        themselves.

    Example:
        >>> import optimfn as of
        >>> [of.linear_lr(1.0, start_factor=0.5, total_iters=4)(count).item() for count in (0, 2, 4, 9)]
        [0.5, 0.75, 1.0, 1.0]
    """
    check_number(init_value=init_value)
    check_nonnegative(start_factor=start_factor, end_factor=end_factor)
    check_steps(total_iters=total_iters, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        fraction = torch.clamp(tree.wide(count), 0, total_iters) / total_iters
        return init_value * (start_factor + (end_factor - start_factor) * fraction)

    return schedule


@schedule_factory
def exponential_lr(init_value: Scalar, gamma: Scalar) -> ScheduleFn:
    """Multiply the value by `gamma` every step.

    Maths:
        value = init_value gamma^count

    Args:
        init_value: Value at step 0.
        gamma: Factor of each step, no unit, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.ExponentialLR as `step_lr` says. `exponential_decay` takes the
        factor of several steps.

    Example:
        >>> import optimfn as of
        >>> of.exponential_lr(1.0, gamma=0.5)(3)
        tensor(0.1250, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    check_nonnegative(gamma=gamma)

    def schedule(count: int | Tensor) -> Tensor:
        # The lower bound is for the branch of a join that is not taken.
        return init_value * gamma ** torch.clamp(tree.wide(count), min=0)

    return schedule


@schedule_factory
def polynomial_lr(init_value: Scalar, total_iters: int = 5, power: Scalar = 1.0) -> ScheduleFn:
    """Fall to zero along a power of the time that is left, then stay.

    Maths:
        value = init_value (1 - min(count, total_iters) / total_iters)^power

    Args:
        init_value: Value at step 0.
        total_iters: Length of the fall in steps, >= 1.
        power: Exponent, no unit, > 0; 1 is a straight line.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.PolynomialLR, which with `total_iters=0` does not fall.
        `polynomial_schedule` ends at any value.

    Example:
        >>> import optimfn as of
        >>> of.polynomial_lr(1.0, total_iters=10, power=2.0)(5)
        tensor(0.2500, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    check_steps(total_iters=total_iters, at_least=1)
    check_positive(power=power)
    return polynomial_schedule(init_value, 0.0, power, total_iters)
