"""Schedules that go through given values."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .. import tree
from .._checks import (
    check_choice,
    check_fraction,
    check_nonnegative,
    check_number,
    check_positive,
    check_rising,
    check_steps,
)
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn


@schedule_factory
def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Scalar, boundaries_and_scales: Mapping[int, Scalar] | None = None
) -> ScheduleFn:
    """Go from value to value, along a line or half a cosine wave; each is a multiple of the one before.

    Args:
        interpolate_type: `"linear"` or `"cosine"`.
        init_value: Value at step 0.
        boundaries_and_scales: Factor (no unit, >= 0) for each boundary (a step, >= 0); at the boundary the value is the
            product of `init_value` and all factors so far. After the last the value stays.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import optimfn as of
        >>> schedule = of.piecewise_interpolate_schedule("linear", 1.0, {4: 0.5, 8: 0.5})
        >>> [schedule(count).item() for count in (0, 2, 4, 6, 8)]
        [1.0, 0.75, 0.5, 0.375, 0.25]
    """
    check_choice("interpolate_type", interpolate_type, ("linear", "cosine"))
    check_number(init_value=init_value)
    scales = dict(boundaries_and_scales or {})
    check_steps(**{f"boundary {boundary!r}": boundary for boundary in scales})
    check_nonnegative(**{f"scale at {boundary}": scale for boundary, scale in scales.items()})
    return _through(interpolate_type, lambda: (init_value, sorted(scales.items())))


@schedule_factory
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> ScheduleFn:
    """Go up in a line, down again, and on to almost nothing.

    Maths:
        at step                                value
        0                                      peak_value / div_factor
        floor(pct_start transition_steps)      peak_value
        floor(pct_final transition_steps)      peak_value / div_factor
        transition_steps                       peak_value / (div_factor final_div_factor)

    Where these steps fall together the last holds; but before the end, the peak.

    Args:
        transition_steps: Length of the cycle in steps, >= 1; then the value stays.
        peak_value: Highest value.
        pct_start: Part of the cycle in which the value rises, no unit, in [0, 1].
        pct_final: Part of the cycle at whose end it is back, no unit, in [`pct_start`, 1].
        div_factor: Highest value over the first, no unit, > 0.
        final_div_factor: First value over the last, no unit, > 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `one_cycle_lr`, torch's form, whose bounds are in fractions of steps.

    Source: Smith and Topin, 2017, arXiv:1708.07120.

    Example:
        >>> import optimfn as of
        >>> schedule = of.linear_onecycle_schedule(100, 1.0, div_factor=10.0)
        >>> [round(schedule(count).item(), 3) for count in (0, 15, 30, 85, 100)]
        [0.1, 0.55, 1.0, 0.1, 0.0]
    """
    _check_cycle(transition_steps, peak_value, div_factor, final_div_factor)
    check_fraction(pct_start=pct_start, pct_final=pct_final)
    check_rising(pct_start=pct_start, pct_final=pct_final)
    up, back = int(pct_start * transition_steps), int(pct_final * transition_steps)

    def values() -> tuple[Scalar, list[tuple[int, Scalar]]]:
        rest = [(back, 1 / div_factor), (transition_steps, 1 / final_div_factor)]
        return peak_value / div_factor, [(up, div_factor), *rest]

    return _through("linear", values, peak=up)


@schedule_factory
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> ScheduleFn:
    """Go up along half a cosine wave, and down along another to almost nothing.

    Maths:
        at step                                value
        0                                      peak_value / div_factor
        floor(pct_start transition_steps)      peak_value
        transition_steps                       peak_value / (div_factor final_div_factor)

    Where these steps fall together the last holds; but before the end, the peak.

    Args:
        transition_steps: Length of the cycle in steps, >= 1; then the value stays.
        peak_value: Highest value.
        pct_start: Part of the cycle in which the value rises, no unit, in [0, 1].
        div_factor: Highest value over the first, no unit, > 0.
        final_div_factor: First value over the last, no unit, > 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `one_cycle_lr`, torch's form, whose bounds are in fractions of steps.

    Source: Smith and Topin, 2017, arXiv:1708.07120.

    Example:
        >>> import optimfn as of
        >>> schedule = of.cosine_onecycle_schedule(100, 1.0, div_factor=10.0)
        >>> [round(schedule(count).item(), 3) for count in (0, 15, 30, 65, 100)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    _check_cycle(transition_steps, peak_value, div_factor, final_div_factor)
    check_fraction(pct_start=pct_start)
    up = int(pct_start * transition_steps)

    def values() -> tuple[Scalar, list[tuple[int, Scalar]]]:
        return peak_value / div_factor, [(up, div_factor), (transition_steps, 1 / (div_factor * final_div_factor))]

    return _through("cosine", values, peak=up)


def _check_cycle(transition_steps: int, peak_value: Scalar, div_factor: Scalar, final_div_factor: Scalar) -> None:
    check_steps(transition_steps=transition_steps, at_least=1)
    check_number(peak_value=peak_value)
    check_positive(div_factor=div_factor, final_div_factor=final_div_factor)


def _through(
    kind: str, values: Callable[[], tuple[Scalar, Sequence[tuple[int, Scalar]]]], peak: int | None = None
) -> ScheduleFn:
    """The schedule through a value and its multiples, which are computed at every call: tensors may change.

    Of multiples at the same step the last holds; but a peak is gone through, unless the end is there.
    """

    def schedule(count: int | Tensor) -> Tensor:
        step = tree.wide(count)
        first, scales = values()
        low, begin, value = step * 0 + first, 0, step * 0 + first
        for number, (end, scale) in enumerate(scales):
            high, before = low * scale, value
            phase = torch.clamp((step - begin) / max(end - begin, 1), 0, 1)
            weight = phase if kind == "linear" else (1 - torch.cos(math.pi * phase)) / 2
            value = torch.where(step < begin, value, torch.where(step < end, low + (high - low) * weight, high))
            if number and begin == peak and begin < scales[-1][0]:
                value = torch.where(step == peak, before, value)
            low, begin = high, end
        return value

    return schedule
