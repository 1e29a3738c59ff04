"""Schedule-free: gradients at a point between the iterate and its average, and the average as the result."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._assign import need_steps
from ..._base import GradientTransformation, chain, check_transformation
from ..._checks import (
    check_choice,
    check_decay,
    check_dtype,
    check_fraction,
    check_nonnegative,
    check_positive,
    check_rate,
    check_steps,
    need_params,
)
from ..._order import Place, check_descends, check_keeps_none
from ..._recipe import factory
from ..._schedules._warmup import warmup_constant_schedule
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Params, Scalar, ScalarOrSchedule, State, Updates
from ..adagrad._rmsprop import scale_by_rms
from ..adam._adam import scale_by_adam
from ..momentum._sgd import sgd


class ScheduleFreeState(NamedTuple):
    """The iterate beside the point where gradients are taken."""

    b1: Tensor  # () float64, the weight of the average in the parameters
    weight_sum: Tensor  # () float64, sum of the weights of all iterates
    step_count: Count  # () int64, steps taken
    max_lr: Tensor  # () float64, largest learning rate so far
    base_optimizer_state: State  # that of the optimizer that moves the iterate
    z: Params  # the iterate, like params


@factory
def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    weight_step_power: Scalar = 0.0,
    decay_at: str = "y",
) -> GradientTransformation:
    """Replace the momentum and the schedule of any optimizer by an average of its iterates.

    The parameters are `y`, where gradients are taken; evaluate and save `eval_params(tx, state, params)`. The
    optimizer should have no momentum of its own, and `learning_rate` is to be the one it has.

    Maths:
        z' = z + update of the optimizer
        w = t^weight_step_power max(learning rates so far)^weight_lr_power,  W <- W + w,  c = w / W
        x' = (1 - c) x + c z',  x = (y - (1 - b1) z) / b1
        update <- b1 x' + (1 - b1) z' - y

    Args:
        base_optimizer: The optimizer that moves the iterate; it gets the gradient at `y`.
        learning_rate: Its learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Weight of the average in the parameters, no unit, in (0, 1].
        weight_lr_power: Power of the largest learning rate in the weight of an iterate, no unit, >= 0.
        state_dtype: Dtype of `z`; `None` means that of the leaf, float32 for float16 and bfloat16.
        weight_step_power: Power of the number of the step in that weight, no unit, >= 0.
        decay_at: Which parameters the optimizer sees, and so decays: "y", or "z" as in the authors' wrapper.

    Shapes:
        params: needed. state: that of the optimizer; z like params; five scalars. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, which takes the learning rate one step ahead of the optimizer if it is a schedule.

    Source: Defazio et al., 2024, arXiv:2405.15682, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.schedule_free(of.sgd(1.0), 1.0, b1=0.5), torch.tensor([4.0])
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.tensor([1.0]), state, params)
        ...     params = of.apply_updates(params, updates)
        >>> params, of.eval_params(tx, state, params)
        (tensor([2.2500]), tensor([2.5000]))
    """
    check_transformation(base_optimizer=base_optimizer)
    check_rate(learning_rate=learning_rate)
    check_fraction(b1=b1)
    check_positive(b1=b1)
    check_nonnegative(weight_lr_power=weight_lr_power, weight_step_power=weight_step_power)
    check_dtype(state_dtype=state_dtype)
    check_choice("decay_at", decay_at, ("y", "z"))
    check_descends(base_optimizer=base_optimizer)
    check_keeps_none(base_optimizer=base_optimizer)

    def init(params: Params) -> ScheduleFreeState:
        zero = tree.wide(tree.count(params))
        z = tree.map(lambda start, p: start + p, tree.init_moment(params, state_dtype), params)
        z = tree.cast_like(z, tree.init_moment(params, state_dtype))
        state = base_optimizer.init(params)
        return ScheduleFreeState(zero + b1, zero.clone(), tree.count(params), zero.clone(), state, z)

    def update(
        updates: Updates, state: ScheduleFreeState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScheduleFreeState]:
        need_params("schedule_free", params)
        count, seen = state.step_count, params if decay_at == "y" else tree.cast_like(state.z, params)
        largest = torch.maximum(state.max_lr, _now(learning_rate, count, state.max_lr))
        share, total = _share(largest, weight_lr_power, weight_step_power, state)
        step, base_state = base_optimizer.rule(updates, state.base_optimizer_state, seen, **extra)
        step = need_steps("schedule_free", step)
        # b1 x' + (1 - b1) z' - y without x, which is a difference of large numbers where b1 is small.
        turned = tree.map(lambda u, z, y: tree.cast_leaf((z - y + u * b1) * share, z.dtype), step, state.z, params)
        moved = tree.map(lambda d, u: d + tree.cast_leaf(u * (1 - b1), d.dtype), turned, step)
        z = tree.carry(tree.map(lambda u, z: z + u, step, state.z), state.z)
        state = ScheduleFreeState(state.b1, total, count + 1, largest, base_state, z)
        return tree.cast_like(moved, updates), state

    alone = base_optimizer.leafwise and not callable(learning_rate)
    promises: Any = {"leafwise": alone, "elementwise": base_optimizer.elementwise}
    return GradientTransformation(init, update, eval_params=schedule_free_eval_params, place=Place.WHOLE, **promises)


def _now(learning_rate: ScalarOrSchedule, count: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like) + (learning_rate(count) if callable(learning_rate) else learning_rate)


def _share(largest: Tensor, power: Scalar, step_power: Scalar, state: ScheduleFreeState) -> tuple[Tensor, Tensor]:
    """The weight of the new iterate in the average, and the sum of all weights."""
    weight = largest**power * tree.wide(state.step_count + 1) ** step_power
    total = state.weight_sum + weight
    return torch.where(total == 0, 0.0, weight / torch.where(total == 0, 1.0, total)), total


def schedule_free_eval_params(state: ScheduleFreeState, params: Params) -> Params:
    """The average of the iterates of `schedule_free`, with which to evaluate, in the dtypes of the parameters.

    It is optax's name for what `eval_params` finds in any chain or wrapper.

    Args:
        state: The state of `schedule_free` itself, not that of a chain around it.
        params: The parameters that go with it.

    Raises:
        TypeError: if the state is another one.

    Example:
        >>> import torch, optimfn as of
        >>> params = torch.ones(2)
        >>> of.schedule_free_eval_params(of.schedule_free_sgd().init(params), params)
        tensor([1., 1.])
    """
    if not (hasattr(state, "b1") and hasattr(state, "z")):
        raise TypeError(f"state must be a ScheduleFreeState, got a {type(state).__name__}: look for it in the chain")
    back = 1 - 1 / state.b1
    return tree.map(lambda y, z: tree.cast_leaf(y + tree.cast_leaf((z - y) * back, z.dtype), y.dtype), params, state.z)


def _warmed(learning_rate: ScalarOrSchedule, warmup_steps: int | None) -> ScalarOrSchedule:
    if warmup_steps is None:
        return learning_rate
    check_steps(warmup_steps=warmup_steps)
    if callable(learning_rate):
        raise ValueError(f"warmup_steps={warmup_steps} needs a number as learning_rate, got a schedule")
    check_rate(learning_rate=learning_rate)
    return warmup_constant_schedule(0.0, learning_rate, warmup_steps)


@factory
def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    weight_decay: ScalarOrSchedule | None = None,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Gradient descent whose result is the average of its iterates: `schedule_free` around `sgd`.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0: ten times that of `sgd` with momentum, say.
        warmup_steps: Steps over which the rate rises from 0, >= 0; `None` means it does not.
        b1: Weight of the average in the parameters, no unit, in (0, 1].
        weight_decay: Added to the gradient times the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        weight_lr_power: Power of the largest learning rate in the weight of an iterate, no unit, >= 0.
        state_dtype: Dtype of the iterate; `None` means that of the leaf, float32 for float16 and bfloat16.

    Shapes:
        params: needed. state: that of `schedule_free`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio et al., 2024, arXiv:2405.15682.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.schedule_free_sgd(0.5), torch.ones(1)
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-1.])
    """
    rate = _warmed(learning_rate, warmup_steps)
    base = sgd(rate) if weight_decay is None else chain(add_decayed_weights(weight_decay), sgd(rate))
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)


@factory
def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
    *,
    inner_momentum: Scalar = 0.0,
) -> GradientTransformation:
    """AdamW without momentum whose result is the average of its iterates: `schedule_free` around `scale_by_rms`.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0: up to ten times that of AdamW.
        warmup_steps: Steps over which the rate rises from 0, >= 0; `None` means it does not.
        b1: Weight of the average in the parameters, no unit, in (0, 1]; no decay of a first moment.
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0, at the parameters; a number, a 0-dim tensor or a schedule.
        weight_lr_power: Power of the largest learning rate in the weight of an iterate, no unit, >= 0.
        state_dtype: Dtype of the iterate; `None` means that of the leaf, float32 for float16 and bfloat16.
        inner_momentum: Decay of a mean of the gradients, corrected, in the place of the gradient, no unit, in [0, 1).

    Shapes:
        params: needed. state: that of `schedule_free` around `scale_by_rms`. Memory: 2 x params; with an
            `inner_momentum` around `scale_by_adam`, 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio et al., 2024, arXiv:2405.15682.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.schedule_free_adamw(0.5), torch.ones(1)
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.5000])
    """
    check_decay(b2=b2, inner_momentum=inner_momentum)
    check_nonnegative(eps=eps)
    rate = _warmed(learning_rate, warmup_steps)
    plain = not isinstance(inner_momentum, Tensor) and inner_momentum == 0
    rms = scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    base = chain(
        rms if plain else scale_by_adam(inner_momentum, b2, eps), add_decayed_weights(weight_decay), descend(rate)
    )
    return schedule_free(base, rate, b1, weight_lr_power, state_dtype)
