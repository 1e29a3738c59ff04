"""Schedules made of pieces."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import tree
from .._checks import check_nonnegative, check_number, check_schedule, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn


@schedule_factory
def join_schedules(schedules: Sequence[ScheduleFn], boundaries: Sequence[int]) -> ScheduleFn:
    """Follow several schedules one after the other; each counts from its own first step.

    Args:
        schedules: The pieces, first to last.
        boundaries: Step at which each piece but the first begins: one fewer than `schedules`, in rising order.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import optimfn as of
        >>> schedule = of.join_schedules([of.constant_schedule(1.0), of.linear_schedule(1.0, 0.0, 10)], [100])
        >>> schedule(105)
        tensor(0.5000, dtype=torch.float64)
    """
    for position, schedule in enumerate(schedules):
        check_schedule(**{f"schedules[{position}]": schedule})
    check_steps(**{f"boundaries[{position}]": step for position, step in enumerate(boundaries)})
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"boundaries must hold one step fewer than schedules, got {len(boundaries)} and {len(schedules)}"
        )
    if list(boundaries) != sorted(boundaries):
        raise ValueError(f"boundaries must rise, got {list(boundaries)}")

    def joined(count: int | Tensor) -> Tensor:
        value = schedules[0](count)
        for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
            value = torch.where(tree.wide(count) < boundary, value, schedule(count - boundary))
        return value

    return joined


@schedule_factory
def piecewise_constant_schedule(
    init_value: Scalar, boundaries_and_scales: Mapping[int, float] | None = None
) -> ScheduleFn:
    """Multiply the value by a factor at each of a few steps.

    Args:
        init_value: Value at step 0.
        boundaries_and_scales: Factor (no unit, >= 0) for each boundary (a step, >= 0); it applies from
            the step equal to the boundary on, and factors accumulate.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import optimfn as of
        >>> of.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})(20)
        tensor(0.2500, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    if not isinstance(boundaries_and_scales, Mapping | None):
        raise TypeError(f"boundaries_and_scales must be a dict from steps to factors, got {boundaries_and_scales!r}")
    drops = dict(boundaries_and_scales or {})
    check_steps(**{f"boundary {boundary!r}": boundary for boundary in drops})
    check_nonnegative(**{f"scale at {boundary}": scale for boundary, scale in drops.items()})

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        value = step * 0 + init_value
        for boundary, scale in drops.items():
            value = torch.where(step < boundary, value, value * scale)
        return value

    return schedule
