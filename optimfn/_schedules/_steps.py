"""Schedules that change in jumps: the pure forms of StepLR, MultiStepLR and ConstantLR."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import tree
from .._checks import check_nonnegative, check_number, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn


@schedule_factory
def step_lr(init_value: Scalar, step_size: int, gamma: Scalar = 0.1) -> ScheduleFn:
    """Multiply the value by `gamma` every `step_size` steps.

    Maths:
        value = init_value gamma^floor(count / step_size)

    Args:
        init_value: Value at step 0.
        step_size: Steps between two changes, >= 1.
        gamma: Factor of each change, no unit, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.StepLR, which multiplies the value it finds in the optimizer, so
        that a change made by hand stays; a schedule depends on the count alone.

    Example:
        >>> import optimfn as of
        >>> [of.step_lr(1.0, step_size=10, gamma=0.5)(count).item() for count in (9, 10, 20)]
        [1.0, 0.5, 0.25]
    """
    check_number(init_value=init_value)
    check_steps(step_size=step_size, at_least=1)
    check_nonnegative(gamma=gamma)

    def schedule(count: int | Tensor) -> Tensor:
        step = torch.clamp(tree.wide(count), min=0)
        return init_value * gamma ** torch.floor(step / step_size)

    return schedule


@schedule_factory
def multi_step_lr(init_value: Scalar, milestones: Sequence[int], gamma: Scalar = 0.1) -> ScheduleFn:
    """Multiply the value by `gamma` at each milestone.

    Maths:
        value = init_value gamma^n,  n the number of milestones <= count

    Args:
        init_value: Value before the first milestone.
        milestones: Steps of the changes, >= 0, in any order; one that is given twice counts twice.
        gamma: Factor of each change, no unit, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.MultiStepLR as `step_lr` says. `piecewise_constant_schedule` has a
        factor of its own for each milestone.

    Example:
        >>> import optimfn as of
        >>> [of.multi_step_lr(1.0, [10, 30], gamma=0.5)(count).item() for count in (9, 10, 30)]
        [1.0, 0.5, 0.25]
    """
    check_number(init_value=init_value)
    check_steps(**{f"milestones[{position}]": step for position, step in enumerate(milestones)})
    check_nonnegative(gamma=gamma)

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        passed = torch.zeros_like(step)
        for milestone in milestones:
            passed = passed + (step >= milestone)
        return init_value * gamma**passed

    return schedule


@schedule_factory
def constant_lr(init_value: Scalar, factor: Scalar = 1 / 3, total_iters: int = 5) -> ScheduleFn:
    """Begin at a fraction of the value, and jump to the value after `total_iters` steps.

    Maths:
        value = init_value factor   while count < total_iters
        value = init_value          then

    Args:
        init_value: Value from step `total_iters` on.
        factor: Fraction of the value until then, no unit, >= 0.
        total_iters: Steps until the jump, >= 1.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.ConstantLR, which refuses factors above 1, and with `total_iters=0`
        stays at the fraction for ever. `constant_schedule` does not jump.

    Example:
        >>> import optimfn as of
        >>> [of.constant_lr(1.0, factor=0.5, total_iters=5)(count).item() for count in (0, 4, 5)]
        [0.5, 0.5, 1.0]
    """
    check_number(init_value=init_value)
    check_nonnegative(factor=factor)
    check_steps(total_iters=total_iters, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        full = torch.ones_like(step)
        return init_value * torch.where(step < total_iters, full * factor, full)

    return schedule
