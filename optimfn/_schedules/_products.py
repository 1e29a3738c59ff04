"""Schedules as products of factors: the pure forms of LambdaLR, MultiplicativeLR and ChainedScheduler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import check_callable, check_number, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn


@schedule_factory
def lambda_lr(init_value: Scalar, lr_lambda: Callable[[Any], Scalar]) -> ScheduleFn:
    """Multiply the value by a function of the count.

    Maths:
        value = init_value lr_lambda(count)

    Args:
        init_value: Value that the factor multiplies.
        lr_lambda: Function of the count, a 0-dim float64 tensor, to the factor (no unit), a number or a
            0-dim tensor. It has no Python branch on the count: use `torch.where`.

    Raises:
        TypeError: at construction if `lr_lambda` is not callable or `init_value` is no number.

    Differs from: torch.optim.lr_scheduler.LambdaLR, which gives its function an int.

    Example:
        >>> import optimfn as of
        >>> of.lambda_lr(0.5, lambda count: 1 / (1 + count))(4)
        tensor(0.1000, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    check_callable(lr_lambda=lr_lambda)

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        return init_value * (lr_lambda(step) + torch.zeros_like(step))

    return schedule


@schedule_factory
def multiplicative_lr(init_value: Scalar, lr_lambda: Callable[[Any], Scalar], total_steps: int) -> ScheduleFn:
    """Multiply the value by another factor every step.

    Every evaluation takes the whole product, of length `total_steps`. If you have a formula for it, use
    `lambda_lr`; if the factor is always the same, `exponential_lr`.

    Maths:
        value = init_value lr_lambda(1) lr_lambda(2) ... lr_lambda(min(count, total_steps))

    Args:
        init_value: Value at step 0.
        lr_lambda: Function of the count, a 0-dim float64 tensor >= 1, to the factor (no unit), a number or
            a 0-dim tensor. It has no Python branch on the count: use `torch.where`.
        total_steps: Largest count that has a factor, >= 1; the value stays from there on.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.MultiplicativeLR, which remembers the product and so needs no
        `total_steps`; a function of the count alone takes it anew, and a graph needs to know how long it is.

    Example:
        >>> import optimfn as of
        >>> of.multiplicative_lr(1.0, lambda count: count / (count + 1), total_steps=100)(4)
        tensor(0.2000, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    check_callable(lr_lambda=lr_lambda)
    check_steps(total_steps=total_steps, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        counts = torch.arange(1, total_steps + 1, dtype=step.dtype, device=step.device)
        factors = torch.func.vmap(lambda c: lr_lambda(c) + torch.zeros_like(c))(counts)
        return init_value * torch.where(counts <= step, factors, 1).prod()

    return schedule


@schedule_factory
def chained_schedules(schedules: Sequence[ScheduleFn]) -> ScheduleFn:
    """Multiply several schedules: one for the value, the others, which begin at 1.0, for factors on it.

    Maths:
        value = schedules[0](count) schedules[1](count) ...

    Args:
        schedules: The factors, at least one.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.ChainedScheduler, which applies the recursions of its members in
        turn. That is the product if all of them multiply, as with constant_lr, linear_lr, exponential_lr,
        step_lr, multi_step_lr, polynomial_lr and multiplicative_lr; the others overwrite or add.

    Example:
        >>> import optimfn as of
        >>> warm = of.linear_lr(1.0, start_factor=0.5, total_iters=10)
        >>> of.chained_schedules([of.exponential_lr(0.1, gamma=1.0), warm])(5)
        tensor(0.0750, dtype=torch.float64)
    """
    if not schedules:
        raise ValueError(f"schedules must hold at least one schedule, got {schedules!r}")
    for position, schedule in enumerate(schedules):
        check_callable(**{f"schedules[{position}]": schedule})

    def product(count: int | Tensor) -> Tensor:
        value = schedules[0](count)
        for schedule in schedules[1:]:
            value = value * schedule(count)
        return value

    return product
