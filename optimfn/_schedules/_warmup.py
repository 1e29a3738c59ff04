"""Schedules that begin with a rise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import check_choice, check_number, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._annealing import half_wave
from ._cosine import warmup_cosine_decay_schedule
from ._exponential import exponential_decay
from ._join import join_schedules
from ._polynomial import constant_schedule, linear_schedule


@schedule_factory
def warmup_constant_schedule(init_value: Scalar, peak_value: Scalar, warmup_steps: int) -> ScheduleFn:
    """Rise in a straight line, then stay.

    Args:
        init_value: Value at step 0.
        peak_value: Value from step `warmup_steps` on.
        warmup_steps: Length of the rise in steps, >= 0; with 0 the value stays `init_value`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import optimfn as of
        >>> [of.warmup_constant_schedule(0.0, 1.0, 4)(count).item() for count in (0, 2, 4, 6)]
        [0.0, 0.5, 1.0, 1.0]
    """
    check_number(peak_value=peak_value)
    check_steps(warmup_steps=warmup_steps)
    return linear_schedule(init_value, peak_value, warmup_steps)


@schedule_factory
def warmup_exponential_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: Scalar,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> ScheduleFn:
    """Rise in a straight line, then fall exponentially.

    Args:
        init_value: Value at step 0.
        peak_value: Value at step `warmup_steps`.
        warmup_steps: Length of the rise in steps, >= 0.
        transition_steps: Steps in which the value changes by the factor `decay_rate`, >= 0; with 0 it stays.
        decay_rate: Factor, no unit, >= 0; with 0 the value stays `peak_value`.
        transition_begin: Steps between the rise and the fall, >= 0.
        staircase: Change the value only at multiples of `transition_steps`.
        end_value: Bound that the value stops at, as in `exponential_decay`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, as `exponential_decay` says.

    Example:
        >>> import optimfn as of
        >>> schedule = of.warmup_exponential_decay_schedule(0.0, 1.0, 4, transition_steps=2, decay_rate=0.5)
        >>> [schedule(count).item() for count in (0, 2, 4, 6, 8)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    check_number(peak_value=peak_value)
    check_steps(warmup_steps=warmup_steps)
    fall = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return join_schedules([linear_schedule(init_value, peak_value, warmup_steps), fall], [warmup_steps])


@schedule_factory
def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> ScheduleFn:
    """Follow several `warmup_cosine_decay_schedule`s one after the other: warm restarts.

    Args:
        cosine_kwargs: The arguments of each; the next begins after its `decay_steps`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `cosine_annealing_warm_restarts`, which repeats one fall for ever.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983.

    Example:
        >>> import optimfn as of
        >>> fall = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": 10}
        >>> [round(of.sgdr_schedule([fall, fall])(count).item(), 3) for count in (0, 5, 10, 15, 20)]
        [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    cycles = [dict(kwargs) for kwargs in cosine_kwargs]
    if not cycles:
        raise ValueError(f"cosine_kwargs must hold at least one cycle, got {cosine_kwargs!r}")
    schedules = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cycles]
    ends = [sum(kwargs["decay_steps"] for kwargs in cycles[: i + 1]) for i in range(len(cycles) - 1)]
    return join_schedules(schedules, ends)


@schedule_factory
def warmup_stable_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    end_value: Scalar = 0.0,
    decay: str = "linear",
) -> ScheduleFn:
    """Rise in a straight line, stay, and fall at the end.

    The length of training need not be known before the fall begins.

    Maths:
        f = (count - warmup_steps - stable_steps) / decay_steps,  in [0, 1] during the fall
        value = end_value + (peak_value - end_value) w(f)
        w(f) = 1 - f, (1 + cos(pi f)) / 2 or 1 - sqrt(f)

    Args:
        init_value: Value at step 0.
        peak_value: Value from step `warmup_steps` on.
        warmup_steps: Length of the rise in steps, >= 0.
        stable_steps: Steps between rise and fall, >= 0.
        decay_steps: Length of the fall in steps, >= 1.
        end_value: Value after the fall.
        decay: Shape of the fall: `"linear"`, `"cosine"` or `"sqrt"`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Hu et al., 2024, arXiv:2404.06395; Hägele et al., 2024, arXiv:2405.18392 (`"sqrt"`).

    Example:
        >>> import optimfn as of
        >>> schedule = of.warmup_stable_decay_schedule(0.0, 1.0, 10, 80, 10)
        >>> [schedule(count).item() for count in (0, 5, 10, 90, 95, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_number(init_value=init_value, peak_value=peak_value, end_value=end_value)
    check_steps(warmup_steps=warmup_steps, stable_steps=stable_steps)
    check_steps(decay_steps=decay_steps, at_least=1)
    check_choice("decay", decay, ("linear", "cosine", "sqrt"))

    def fall(count: int | Tensor) -> Tensor:
        phase = torch.clamp(tree.wide(count) / decay_steps, 0, 1)
        if decay == "cosine":
            return half_wave(peak_value, end_value, phase)
        return end_value + (peak_value - end_value) * (1 - (phase if decay == "linear" else torch.sqrt(phase)))

    return join_schedules(
        [linear_schedule(init_value, peak_value, warmup_steps), constant_schedule(peak_value), fall],
        [warmup_steps, warmup_steps + stable_steps],
    )


@schedule_factory
def trapezoidal_schedule(
    peak_value: Scalar, total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0
) -> ScheduleFn:
    """Rise from zero, stay, and fall to zero at the end, in straight lines.

    Maths:
        value = peak_value clip(min(count / warmup_steps, (total_steps - count) / cooldown_steps), 0, 1)

    Args:
        peak_value: Value between rise and fall.
        total_steps: Length of all in steps, >= `warmup_steps + cooldown_steps`, >= 1.
        warmup_steps: Length of the rise in steps, >= 0; with 0 there is none.
        cooldown_steps: Length of the fall in steps, >= 0; with 0 there is none.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `warmup_stable_decay_schedule`, where the length of the middle is given.

    Source: Zhai et al., 2022, arXiv:2106.04560; Hägele et al., 2024, arXiv:2405.18392.

    Example:
        >>> import optimfn as of
        >>> schedule = of.trapezoidal_schedule(1.0, 100, warmup_steps=10, cooldown_steps=20)
        >>> [schedule(count).item() for count in (0, 5, 10, 80, 90, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    check_number(peak_value=peak_value)
    check_steps(warmup_steps=warmup_steps, cooldown_steps=cooldown_steps)
    check_steps(total_steps=total_steps, at_least=max(warmup_steps + cooldown_steps, 1))

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        height = torch.ones_like(step)
        if warmup_steps:
            height = torch.minimum(height, step / warmup_steps)
        if cooldown_steps:
            height = torch.minimum(height, (total_steps - step) / cooldown_steps)
        return peak_value * torch.clamp(height, 0, 1)

    return schedule


@schedule_factory
def warmup_inverse_sqrt_schedule(init_value: Scalar, peak_value: Scalar, warmup_steps: int) -> ScheduleFn:
    """Rise in a straight line, then fall with the root of the count.

    Maths:
        value = init_value + (peak_value - init_value) count / warmup_steps    before step warmup_steps
                peak_value sqrt(warmup_steps / count)                          after it

    Args:
        init_value: Value at step 0.
        peak_value: Value at step `warmup_steps`.
        warmup_steps: Length of the rise in steps, >= 1.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Vaswani et al., 2017, arXiv:1706.03762, equation 3.

    Example:
        >>> import optimfn as of
        >>> schedule = of.warmup_inverse_sqrt_schedule(0.0, 1.0, 100)
        >>> [schedule(count).item() for count in (0, 50, 100, 400)]
        [0.0, 0.5, 1.0, 0.5]
    """
    check_number(init_value=init_value, peak_value=peak_value)
    check_steps(warmup_steps=warmup_steps, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        rise = init_value + (peak_value - init_value) * step / warmup_steps
        return torch.where(step < warmup_steps, rise, peak_value * torch.rsqrt(torch.clamp(step / warmup_steps, min=1)))

    return schedule
