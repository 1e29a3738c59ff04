"""Schedule-free RAdam: a warm-up that nobody has to choose."""

from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_rate
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, State, Updates
from ..adagrad._rmsprop import scale_by_rms
from ..adam._radam import rectification
from ._schedule_free import schedule_free


@factory
def schedule_free_radam(
    learning_rate: ScalarOrSchedule = 0.0025,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    weight_step_power: Scalar = 0.0,
    silent_sgd_phase: bool = True,
) -> GradientTransformation:
    """Schedule-free AdamW whose rate rises by RAdam's rectification: `schedule_free` without a warm-up to choose.

    Maths:
        r_t = RAdam's rectification, as in `scale_by_radam` with a threshold of 4
        the rate is learning_rate r_t, and the direction g / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay p
        before r_t exists the rate is 0; or with silent_sgd_phase=False learning_rate, and the direction g

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Weight of the average in the parameters, no unit, in (0, 1].
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0, at the parameters; a number, a 0-dim tensor or a schedule.
        weight_lr_power: Power of the largest learning rate in the weight of an iterate, no unit, >= 0.
        state_dtype: Dtype of the iterate; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_step_power: Power of the number of the step in that weight, no unit, >= 0.
        silent_sgd_phase: Whether the first steps, before `r_t` exists, move nothing.

    Shapes:
        params: needed. state: that of `schedule_free` around `scale_by_rms`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio et al., 2024, arXiv:2405.15682; Liu et al., 2020, arXiv:1908.03265.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.schedule_free_radam(0.5, silent_sgd_phase=False), torch.ones(1)
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-1.])
    """
    check_rate(learning_rate=learning_rate)
    check_decay(b2=b2)
    check_nonnegative(eps=eps)
    rms = scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)

    def rate(count: int | Tensor) -> Tensor:
        now = learning_rate(count) if callable(learning_rate) else learning_rate
        rectified, r = rectification(b2, torch.as_tensor(count) + 1, 4.0)
        return torch.where(rectified, r, 0.0 if silent_sgd_phase else 1.0) * now

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        scaled, new = rms.rule(updates, state, params)
        rectified, _ = rectification(b2, new.count, 4.0)
        return tree.where(rectified, scaled, updates), new

    rule = rms if silent_sgd_phase else GradientTransformation(rms.init, update, leafwise=True, elementwise=True)
    base = chain(rule, add_decayed_weights(weight_decay), descend(rate))
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype, weight_step_power=weight_step_power)
