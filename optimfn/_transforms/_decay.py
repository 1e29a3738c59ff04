"""Pull the parameters towards zero."""

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation, stateless
from .._checks import check_rate, need_params
from .._order import Place
from .._recipe import factory
from .._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, ScheduleFn, Updates


class WeightDecaySchedule(NamedTuple):
    """Where a weight decay is on its schedule."""

    count: Count  # () int64, steps taken


@factory
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Mask | None = None) -> GradientTransformation:
    """Add `weight_decay` times the parameters to the updates.

    Its place in the chain decides what it is: before a preconditioner it is L2 regularisation, after it
    decoupled weight decay (which the learning rate then multiplies).

    Args:
        weight_decay: Decay per unit of learning rate, >= 0: a number, a 0-dim tensor that may change
            between steps, or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters
            such as `tree.is_matrix`. `None` means all.

    Shapes:
        params: needed. state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, whose state is wrapped in a `MaskedState` when there is a mask.

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.add_decayed_weights(0.1)
        >>> tx.update(torch.tensor([1.0]), tx.init(None), torch.tensor([2.0]))[0]
        tensor([1.2000])
    """
    check_rate(weight_decay=weight_decay)
    if callable(weight_decay):
        return _scheduled(weight_decay, mask)
    idle = not isinstance(weight_decay, Tensor) and weight_decay == 0

    def decay(updates: Updates, params: Params | None) -> Updates:
        need_params("add_decayed_weights", params)
        return updates if idle else decayed(updates, weight_decay, mask, params)

    # Behind a learning rate it would push away from zero, unless it is one to be subtracted there.
    inward = not isinstance(weight_decay, Tensor) and weight_decay > 0
    place = Place.DECAY if inward else None
    return replace(stateless(decay), leafwise=tree.sees_leaves(mask), elementwise=mask is None, place=place)


def _scheduled(weight_decay: ScheduleFn, mask: Mask | None) -> GradientTransformation:
    def init(params: Params) -> WeightDecaySchedule:
        return WeightDecaySchedule(tree.count(params))

    def update(
        updates: Updates, state: WeightDecaySchedule, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, WeightDecaySchedule]:
        need_params("add_decayed_weights", params)
        found = decayed(updates, weight_decay(state.count), mask, params)
        return found, WeightDecaySchedule(state.count + 1)

    return GradientTransformation(init, update, elementwise=mask is None)


def decayed(updates: Updates, weight_decay: Scalar, mask: Mask | None, params: Params | None) -> Updates:
    """The updates with so much of the parameters added."""
    return tree.cast_like(tree.add_scale(updates, weight_decay, tree.select(mask, params)), updates)
