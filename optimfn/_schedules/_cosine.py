"""Cosine decay, with and without warm-up."""

import math

import torch
from torch import Tensor

from .. import tree
from .._checks import check_number, check_positive, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._join import join_schedules
from ._polynomial import linear_schedule


@schedule_factory
def cosine_decay_schedule(
    init_value: Scalar, decay_steps: int, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> ScheduleFn:
    """Fall along half a cosine wave, then stay.

    Maths:
        c = (1 + cos(pi min(count, decay_steps) / decay_steps)) / 2
        value = init_value ((1 - alpha) c^exponent + alpha)

    Args:
        init_value: Value at step 0.
        decay_steps: Length of the fall in steps, >= 1.
        alpha: Final value as a fraction of `init_value`, no unit.
        exponent: Power of the cosine, no unit, > 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.CosineAnnealingLR, which rises again after `T_max`.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983.

    Example:
        >>> import optimfn as of
        >>> of.cosine_decay_schedule(1.0, 10)(5)
        tensor(0.5000, dtype=torch.float64)
    """
    check_number(init_value=init_value, alpha=alpha)
    check_positive(exponent=exponent)
    check_steps(decay_steps=decay_steps, at_least=1)
    return lambda count: _cosine(count, init_value, decay_steps, alpha, exponent)


@schedule_factory
def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    decay_steps: int,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> ScheduleFn:
    """Rise in a straight line, then fall along half a cosine wave.

    Args:
        init_value: Value at step 0.
        peak_value: Value at step `warmup_steps`.
        warmup_steps: Length of the rise in steps, >= 0.
        decay_steps: Length of rise and fall together in steps, > `warmup_steps`.
        end_value: Value from step `decay_steps` on.
        exponent: Power of the cosine, no unit, > 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983 (the cosine); Goyal et al., 2017,
        arXiv:1706.02677 (the warm-up).

    Example:
        >>> import optimfn as of
        >>> schedule = of.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=110)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    check_number(init_value=init_value, peak_value=peak_value, end_value=end_value)
    check_steps(warmup_steps=warmup_steps)
    check_steps(decay_steps=decay_steps, at_least=warmup_steps + 1)
    check_positive(exponent=exponent)
    peak_is_zero = not isinstance(peak_value, Tensor) and peak_value == 0

    def fall(count: int | Tensor) -> Tensor:
        alpha = 0.0 if peak_is_zero else end_value / peak_value
        return _cosine(count, peak_value, decay_steps - warmup_steps, alpha, exponent)

    return join_schedules([linear_schedule(init_value, peak_value, warmup_steps), fall], [warmup_steps])


def _cosine(count: int | Tensor, init_value: Scalar, decay_steps: int, alpha: Scalar, exponent: Scalar) -> Tensor:
    # The lower bound is for the branch of a join that is not taken.
    elapsed = torch.clamp(tree.wide(count), 0, decay_steps)
    cosine = 0.5 * (1 + torch.cos(math.pi * elapsed / decay_steps))
    return init_value * ((1 - alpha) * cosine**exponent + alpha)
