"""Cycles between two values: the pure forms of CyclicLR and OneCycleLR."""

import torch
from torch import Tensor

from .. import tree
from .._checks import check_choice, check_fraction, check_nonnegative, check_number, check_positive, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._annealing import half_wave


@schedule_factory
def cyclic_lr(
    base_lr: Scalar,
    max_lr: Scalar,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Scalar = 1.0,
) -> ScheduleFn:
    """Go from `base_lr` to `max_lr` and back in straight lines, over and over.

    For a momentum that cycles against the learning rate, swap the bounds:
    `cyclic_lr(max_momentum, base_momentum, ...)` is what torch does with `cycle_momentum`.

    Maths:
        n, r = divmod(count, step_size_up + step_size_down)
        h = min(r / step_size_up, (step_size_up + step_size_down - r) / step_size_down)
        value = base_lr + (max_lr - base_lr) h k
        k = 1 (triangular), 2^-n (triangular2), gamma^count (exp_range)

    Args:
        base_lr: Value at the start of each cycle.
        max_lr: Value at the peak of the first cycle, in the unit of `base_lr`; it may lie below.
        step_size_up: Steps from `base_lr` to `max_lr`, >= 1.
        step_size_down: Steps back, >= 1; `None` means `step_size_up`.
        mode: How the peaks change: `"triangular"`, `"triangular2"` or `"exp_range"`.
        gamma: Factor of each step on the height in the mode `"exp_range"`, no unit, >= 0.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.CyclicLR, which also takes a `scale_fn` of its own; here
        `lambda_lr` does.

    Source: Smith, 2017, arXiv:1506.01186.

    Example:
        >>> import optimfn as of
        >>> [of.cyclic_lr(0.0, 1.0, 10, mode="triangular2")(count).item() for count in (0, 5, 10, 20, 30)]
        [0.0, 0.5, 1.0, 0.0, 0.5]
    """
    check_number(base_lr=base_lr, max_lr=max_lr)
    check_steps(step_size_up=step_size_up, at_least=1)
    down = step_size_up if step_size_down is None else step_size_down
    check_steps(step_size_down=down, at_least=1)
    check_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
    check_nonnegative(gamma=gamma)
    length = step_size_up + down

    def schedule(count: int | Tensor) -> Tensor:
        step = torch.clamp(tree.wide(count), min=0)
        rest = torch.remainder(step, length)
        height = torch.minimum(rest / step_size_up, (length - rest) / down)
        if mode == "triangular2":
            height = height * 0.5 ** torch.floor(step / length)
        elif mode == "exp_range":
            height = height * gamma**step
        return base_lr + (max_lr - base_lr) * height

    return schedule


@schedule_factory
def one_cycle_lr(
    max_lr: Scalar,
    total_steps: int,
    pct_start: Scalar = 0.3,
    anneal_strategy: str = "cos",
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
    three_phase: bool = False,
) -> ScheduleFn:
    """Rise to `max_lr` once, and fall far below the start.

    For torch's momentum that cycles against the learning rate, swap the bounds:
    `one_cycle_lr(base_momentum, ..., div_factor=base_momentum / max_momentum, final_div_factor=1.0)`.

    Maths:
        initial = max_lr / div_factor,  last = initial / final_div_factor
        two phases: initial to max_lr until pct_start total_steps - 1, then to last until total_steps - 1
        three phases: the same rise, back to initial until 2 pct_start total_steps - 2, then to last
        in a phase from a to b, f the fraction of it that is over:
        value = b + (a - b) (1 + cos(pi f)) / 2, or a + (b - a) f if linear

    Args:
        max_lr: Value at the peak.
        total_steps: Length of the cycle in steps, >= 1; later counts have the value of the last step.
        pct_start: Fraction of the steps in which the value rises, no unit, in [0, 1].
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: `max_lr` over the value at step 0, no unit, > 0.
        final_div_factor: The value at step 0 over the last value, no unit, > 0.
        three_phase: Fall as fast as the value rose, and only then further.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.OneCycleLR, which overshoots at count `total_steps` and raises
        after it; and takes `epochs` times `steps_per_epoch` for `total_steps`.

    Source: Smith and Topin, 2017, arXiv:1708.07120.

    Example:
        >>> import optimfn as of
        >>> schedule = of.one_cycle_lr(1.0, total_steps=100)
        >>> [round(schedule(count).item(), 3) for count in (0, 29, 64, 99)]
        [0.04, 1.0, 0.5, 0.0]
    """
    check_number(max_lr=max_lr)
    check_steps(total_steps=total_steps, at_least=1)
    check_fraction(pct_start=pct_start)
    check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    check_positive(div_factor=div_factor, final_div_factor=final_div_factor)

    def schedule(count: int | Tensor) -> Tensor:
        step = torch.clamp(tree.wide(count), 0, total_steps - 1)
        zero = torch.zeros_like(step)
        rise, fall, end = pct_start * total_steps - 1, 2 * pct_start * total_steps - 2, total_steps - 1
        times = [zero + time for time in ((0, rise, fall, end) if three_phase else (0, rise, end))]
        initial = max_lr / div_factor
        last = initial / final_div_factor
        values = [initial, max_lr, initial, last] if three_phase else [initial, max_lr, last]
        value = zero + last
        for k in reversed(range(len(times) - 1)):
            length = times[k + 1] - times[k]
            fraction = (step - times[k]) / torch.where(length == 0, 1, length)
            phase = _anneal(values[k], values[k + 1], fraction, anneal_strategy)
            value = torch.where(step <= times[k + 1], phase, value)
        return value

    return schedule


def _anneal(start: Scalar, end: Scalar, fraction: Tensor, strategy: str) -> Tensor:
    if strategy == "linear":
        return start + (end - start) * fraction
    return half_wave(start, end, fraction)
