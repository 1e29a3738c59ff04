"""Weight decay of other kinds than a share of the parameters in the update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, stateless
from .._checks import check_positive, check_rate, need_params
from .._order import Place
from .._recipe import factory
from .._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._decay import WeightDecaySchedule, add_decayed_weights, decayed


class DecayTowardStartState(NamedTuple):
    """Where the parameters began."""

    start: Params  # like params, float32 for float16 and bfloat16


@factory
def decay_after_step(
    weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule, mask: Mask | None = None
) -> GradientTransformation:
    """Shrink what the step makes of the parameters, rather than what they were: the last of a chain.

    The order of Hugging Face's old AdamW, of GaLore and of SOAP. It differs from decoupled decay by
    `learning_rate weight_decay` times the step.

    Maths:
        p <- (p + u) (1 - learning_rate weight_decay)

    Args:
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        learning_rate: That of the steps, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.sgd(0.1), of.decay_after_step(1.0, 0.1))
        >>> p = torch.tensor([3.0])
        >>> of.apply_updates(p, tx.update(torch.tensor([10.0]), tx.init(p), p)[0])
        tensor([1.8000])
    """

    def leaf(u: Tensor, p: Tensor, share: Scalar) -> Tensor:
        return u - share * (p + u)

    return step_decay("decay_after_step", leaf, weight_decay, learning_rate, mask)


@factory
def decay_proximally(
    weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule, mask: Mask | None = None
) -> GradientTransformation:
    """Divide what the step makes of the parameters: the proximal step of a square, the last of a chain.

    It is the decay of Adan's paper, and bounded for every rate.

    Maths:
        p <- (p + u) / (1 + learning_rate weight_decay)

    Args:
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        learning_rate: That of the steps, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Xie et al., 2022, arXiv:2208.06677; Zhuang et al., 2022, arXiv:2202.00089.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.sgd(0.1), of.decay_proximally(10.0, 0.1))
        >>> p = torch.tensor([3.0])
        >>> of.apply_updates(p, tx.update(torch.tensor([10.0]), tx.init(p), p)[0])
        tensor([1.])
    """

    def leaf(u: Tensor, p: Tensor, share: Scalar) -> Tensor:
        return (u - share * p) / (1 + share)

    return step_decay("decay_proximally", leaf, weight_decay, learning_rate, mask)


@factory
def add_corrected_decayed_weights(
    weight_decay: Scalar, learning_rate: ScalarOrSchedule, peak: Scalar, mask: Mask | None = None
) -> GradientTransformation:
    """Decay by the square of a learning rate that changes, so that norms settle where they were at its peak: AdamC's.

    It stands where `add_decayed_weights` does, before the learning rate. Meant for the layers before a normalisation.

    Maths:
        update <- u + weight_decay learning_rate / peak p

    Args:
        weight_decay: Decay per unit of learning rate at its peak, >= 0.
        learning_rate: That of the steps, >= 0; a number, a 0-dim tensor or a schedule.
        peak: Its largest value, in the same unit, > 0.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Defazio, 2025, arXiv:2506.02285.

    Example:
        >>> import torch, optimfn as of
        >>> rate = of.linear_schedule(0.1, 0.0, 2)
        >>> tx = of.chain(of.add_corrected_decayed_weights(1.0, rate, 0.1), of.scale_by_learning_rate(rate))
        >>> p, state = torch.ones(1), tx.init(torch.ones(1))
        >>> for _ in range(2):
        ...     u, state = tx.update(torch.zeros(1), state, p)
        ...     print(u)
        tensor([-0.1000])
        tensor([-0.0250])
    """
    check_rate(weight_decay=weight_decay, learning_rate=learning_rate)
    check_positive(peak=peak)
    if callable(learning_rate):
        made = add_decayed_weights(lambda count: weight_decay / peak * learning_rate(count), mask)
        return replace(made, place=Place.DECAY)

    def decay(updates: Updates, params: Params | None) -> Updates:
        need_params("add_corrected_decayed_weights", params)
        return decayed(updates, learning_rate / peak * weight_decay, mask, params)

    return replace(stateless(decay), leafwise=tree.sees_leaves(mask), elementwise=mask is None, place=Place.DECAY)


@factory
def add_independent_decayed_weights(
    weight_decay: Scalar, peak: Scalar, mask: Mask | None = None
) -> GradientTransformation:
    """Decay by a share of the parameters that only the course of the learning rate scales, not its size.

    It stands where `add_decayed_weights` does: another peak of the learning rate leaves the decay as it was.

    Maths:
        update <- u + weight_decay / peak p

    Args:
        weight_decay: Share of a parameter that a step at the peak takes, no unit, >= 0.
        peak: Largest value of the learning rate behind, > 0.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Loshchilov and Hutter, 2019, arXiv:1711.05101, whose algorithm it is.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.add_independent_decayed_weights(0.01, peak=0.1), of.scale_by_learning_rate(0.1))
        >>> tx.update(torch.zeros(1), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0100])
    """
    check_rate(weight_decay=weight_decay)
    check_positive(peak=peak)

    def decay(updates: Updates, params: Params | None) -> Updates:
        need_params("add_independent_decayed_weights", params)
        return decayed(updates, weight_decay / peak, mask, params)

    return replace(stateless(decay), leafwise=tree.sees_leaves(mask), elementwise=mask is None, place=Place.DECAY)


@factory
def add_decay_toward_start(weight_decay: Scalar, mask: Mask | None = None) -> GradientTransformation:
    """Pull the parameters to where they began rather than to zero, as in fine-tuning.

    Maths:
        update <- u + weight_decay (p - p_0)

    Args:
        weight_decay: Decay per unit of learning rate, >= 0.
        mask: Which leaves are pulled: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: start like params, float32 for float16 and bfloat16. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Li, Grandvalet and Davoine, 2018, arXiv:1802.01483.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.add_decay_toward_start(0.1)
        >>> tx.update(torch.zeros(1), tx.init(torch.tensor([5.0])), torch.tensor([7.0]))[0]
        tensor([0.2000])
    """
    check_rate(weight_decay=weight_decay)

    def init(params: Params) -> DecayTowardStartState:
        return DecayTowardStartState(tree.keep(params, params))

    def update(
        updates: Updates, state: DecayTowardStartState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DecayTowardStartState]:
        need_params("add_decay_toward_start", params)
        away = tree.map(torch.sub, tree.select(mask, params), state.start)
        return tree.cast_like(tree.add_scale(updates, weight_decay, away), updates), state

    return GradientTransformation(init, update, leafwise=tree.sees_leaves(mask), elementwise=mask is None)


def step_decay(
    name: str,
    leaf: Callable[[Tensor, Tensor, Scalar], Tensor],
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    mask: Mask | None,
) -> GradientTransformation:
    """A decay of what a step makes of the parameters; `leaf` is given the update, the parameter and the share."""
    check_rate(weight_decay=weight_decay, learning_rate=learning_rate)

    def shrunk(updates: Updates, params: Params | None, count: int | Tensor) -> Updates:
        need_params(name, params)
        if not isinstance(weight_decay, Tensor) and weight_decay == 0:
            return updates
        values = [x(count) if callable(x) else x for x in (weight_decay, learning_rate)]
        share = values[0] * values[1]
        chosen = tree.select(mask, params)
        return tree.map(lambda u, p: u if p is None else tree.cast_leaf(leaf(u, p, share), u.dtype), updates, chosen)

    if not callable(weight_decay) and not callable(learning_rate):
        made = stateless(lambda updates, params: shrunk(updates, params, 0))
        return replace(made, leafwise=tree.sees_leaves(mask), elementwise=mask is None, place=Place.LAST)

    def init(params: Params) -> WeightDecaySchedule:
        return WeightDecaySchedule(tree.count(params))

    def update(
        updates: Updates, state: WeightDecaySchedule, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, WeightDecaySchedule]:
        return shrunk(updates, params, state.count), WeightDecaySchedule(state.count + 1)

    return GradientTransformation(init, update, elementwise=mask is None, place=Place.LAST)
