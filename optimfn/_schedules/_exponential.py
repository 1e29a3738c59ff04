"""Exponential decay."""

import torch
from torch import Tensor

from .. import tree
from .._checks import check_fraction, check_nonnegative, check_number, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._polynomial import constant_schedule


@schedule_factory
def exponential_decay(
    init_value: Scalar,
    transition_steps: int,
    decay_rate: Scalar,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> ScheduleFn:
    """Multiply the value by `decay_rate` every `transition_steps` steps, smoothly or in steps.

    Maths:
        t = max(count - transition_begin, 0) / transition_steps    (rounded down if `staircase`)
        value = init_value decay_rate^t, not beyond `end_value`

    Args:
        init_value: Value until `transition_begin`.
        transition_steps: Steps in which the value changes by the factor `decay_rate`, >= 0; with 0 the
            value stays `init_value`.
        decay_rate: Factor, no unit, >= 0; with 0 the value stays `init_value`.
        transition_begin: Step the decay begins at, >= 0.
        staircase: Change the value only at multiples of `transition_steps`.
        end_value: Bound that the value stops at: a lower one if `decay_rate` < 1, else an upper one.
            It needs `decay_rate` to be a Python number, since it decides which.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which takes negative step counts for 0 with a message in the log; here they are
        refused.

    Example:
        >>> import optimfn as of
        >>> of.exponential_decay(1.0, transition_steps=10, decay_rate=0.5)(20)
        tensor(0.2500, dtype=torch.float64)
    """
    check_number(init_value=init_value)
    check_nonnegative(decay_rate=decay_rate)
    check_steps(transition_steps=transition_steps, transition_begin=transition_begin)
    if end_value is not None:
        check_number(end_value=end_value)
        if isinstance(decay_rate, Tensor):
            raise TypeError(f"decay_rate must be a Python number where end_value is given, got {decay_rate!r}")
    if transition_steps == 0 or (not isinstance(decay_rate, Tensor) and decay_rate == 0):
        return constant_schedule(init_value)
    bound = torch.maximum if not isinstance(decay_rate, Tensor) and decay_rate < 1 else torch.minimum

    def schedule(count: int | Tensor) -> Tensor:
        elapsed = torch.clamp(tree.wide(count) - transition_begin, min=0) / transition_steps
        value = init_value * decay_rate ** (torch.floor(elapsed) if staircase else elapsed)
        return value if end_value is None else bound(value, torch.zeros_like(value) + end_value)

    return schedule


@schedule_factory
def precond_update_prob_schedule(
    max_prob: Scalar = 1.0, min_prob: Scalar = 0.03, decay: Scalar = 0.001, flat_start: int = 500
) -> ScheduleFn:
    """Say how often a preconditioner is worth an update: often at first, then exponentially less.

    Maths:
        value = max_prob exp(-decay (count - flat_start)), within [min_prob, max_prob]

    Args:
        max_prob: Value until `flat_start`, in [0, 1].
        min_prob: Least value, in [0, 1].
        decay: Rate of the decay, per step, >= 0.
        flat_start: Step the decay begins at, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: `kron_torch`, Walters, 2024.

    Example:
        >>> import optimfn as of
        >>> of.precond_update_prob_schedule()(1500).round(decimals=4)
        tensor(0.3679, dtype=torch.float64)
    """
    check_fraction(max_prob=max_prob, min_prob=min_prob)
    check_nonnegative(decay=decay)
    check_steps(flat_start=flat_start)

    def schedule(count: int | Tensor) -> Tensor:
        value = max_prob * torch.exp(-decay * torch.clamp(tree.wide(count) - flat_start, min=0))
        bounded: Tensor = tree.clip(value, min_value=min_prob)
        return bounded

    return schedule
