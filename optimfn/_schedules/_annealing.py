"""Cosine annealing: the pure forms of CosineAnnealingLR, CosineAnnealingWarmRestarts and SWALR."""

import math

import torch
from torch import Tensor

from .. import tree
from .._checks import check_choice, check_number, check_steps
from .._recipe import schedule_factory
from .._typing import Scalar, ScheduleFn
from ._polynomial import constant_schedule


@schedule_factory
def cosine_annealing_lr(init_value: Scalar, T_max: int, eta_min: Scalar = 0.0) -> ScheduleFn:
    """Fall along half a cosine wave to `eta_min`, and rise again, for ever.

    For a fall that ends, use `cosine_decay_schedule`.

    Maths:
        value = eta_min + (init_value - eta_min) (1 + cos(pi count / T_max)) / 2

    Args:
        init_value: Value at step 0, and at every multiple of `2 T_max`.
        T_max: Half a period in steps, >= 1.
        eta_min: Lowest value, in the unit of `init_value`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.CosineAnnealingLR, whose recursion drifts by roundings; the wave
        is evaluated within its period, so it is exact at any count.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983, equation 5.

    Example:
        >>> import optimfn as of
        >>> [round(of.cosine_annealing_lr(1.0, T_max=10)(count).item(), 3) for count in (0, 5, 10, 20)]
        [1.0, 0.5, 0.0, 1.0]
    """
    check_number(init_value=init_value, eta_min=eta_min)
    check_steps(T_max=T_max, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        return half_wave(init_value, eta_min, torch.remainder(tree.wide(count), 2 * T_max) / T_max)

    return schedule


@schedule_factory
def cosine_annealing_warm_restarts(init_value: Scalar, T_0: int, T_mult: int = 1, eta_min: Scalar = 0.0) -> ScheduleFn:
    """Fall along half a cosine wave, jump back to the start, and fall again, `T_mult` times as slowly.

    Maths:
        T = T_0 T_mult^k,  s = T_0 (1 + T_mult + ... + T_mult^(k-1)),  k the largest with s <= count
        value = eta_min + (init_value - eta_min) (1 + cos(pi (count - s) / T)) / 2

    Args:
        init_value: Value at step 0 and at every restart.
        T_0: Length of the first fall in steps, >= 1.
        T_mult: Ratio of the lengths of a fall and the one before, a whole number >= 1.
        eta_min: Value that every fall tends to, in the unit of `init_value`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, whose `step` also takes fractions of
        an epoch; so does the count here, if it is a floating tensor.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983.

    Example:
        >>> import optimfn as of
        >>> schedule = of.cosine_annealing_warm_restarts(1.0, T_0=10, T_mult=2)
        >>> [round(schedule(count).item(), 3) for count in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    check_number(init_value=init_value, eta_min=eta_min)
    check_steps(T_0=T_0, T_mult=T_mult, at_least=1)

    def schedule(count: int | Tensor) -> Tensor:
        step = torch.clamp(tree.wide(count), min=0)
        if T_mult == 1:
            return half_wave(init_value, eta_min, torch.remainder(step, T_0) / T_0)
        restarts = _restarts(step, T_0, T_mult)
        start = torch.where(restarts <= step, restarts, 0).amax()
        return half_wave(init_value, eta_min, (step - start) / (T_0 + (T_mult - 1) * start))

    return schedule


@schedule_factory
def swa_lr(init_value: Scalar, swa_lr: Scalar, anneal_epochs: int = 10, anneal_strategy: str = "cos") -> ScheduleFn:
    """Go from one value to another along half a cosine wave or a line, then stay: for weight averaging.

    Maths:
        f = min(count, anneal_epochs) / anneal_epochs
        a = (1 - cos(pi f)) / 2, or f if linear
        value = init_value (1 - a) + swa_lr a

    Args:
        init_value: Value at step 0.
        swa_lr: Value from step `anneal_epochs` on, in the unit of `init_value`.
        anneal_epochs: Length of the transition in steps, >= 0; with 0 the value is `swa_lr` throughout.
        anneal_strategy: `"cos"` or `"linear"`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.swa_utils.SWALR, which begins at the learning rate it finds in the optimizer;
        use `join_schedules` to begin after another schedule. `params_swa` keeps the average.

    Source: Izmailov et al., 2018, arXiv:1803.05407.

    Example:
        >>> import optimfn as of
        >>> [of.swa_lr(1.0, 0.5, anneal_strategy="linear")(count).item() for count in (0, 5, 10)]
        [1.0, 0.75, 0.5]
    """
    check_number(init_value=init_value, swa_lr=swa_lr)
    check_steps(anneal_epochs=anneal_epochs)
    check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    if anneal_epochs == 0:
        return constant_schedule(swa_lr)

    def schedule(count: int | Tensor) -> Tensor:
        fraction = torch.clamp(tree.wide(count), 0, anneal_epochs) / anneal_epochs
        if anneal_strategy == "linear":
            return init_value * (1 - fraction) + swa_lr * fraction
        return half_wave(init_value, swa_lr, fraction)

    return schedule


def half_wave(high: Scalar, low: Scalar, phase: Tensor) -> Tensor:
    return low + (high - low) * (1 + torch.cos(math.pi * phase)) / 2


def _restarts(step: Tensor, first: int, ratio: int) -> Tensor:
    """Every restart at counts that float64 can hold, as a tensor: powers by products are exact, by pow not."""
    falls, start = 0, 0
    while start < 2**53:
        start += first * ratio**falls
        falls += 1
    powers = torch.full((falls,), ratio, dtype=step.dtype, device=step.device).cumprod(0)
    return first * ((powers - 1) / (ratio - 1))
