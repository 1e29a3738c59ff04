"""SPAM: Adam that clips spikes element by element, and now and then forgets what it knew."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_positive, check_steps
from ..._recipe import factory
from ..._transforms._decay_kinds import decay_after_step
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adam import ScaleByAdamState


class ClipSpikesState(NamedTuple):
    """How large the elements of gradients usually are."""

    count: Count  # () int64, steps taken
    nu: Updates  # running mean of the squared magnitudes of the clipped gradients, like params but real


@factory
def clip_spikes(threshold: Scalar = 5000.0, b2: Scalar = 0.999, grace_steps: int = 20) -> GradientTransformation:
    """Cut each element of the updates down to a multiple of its own root mean square so far: the front of SPAM.

    Maths:
        where |g|^2 > threshold nu > 0, from the step grace_steps on:  g <- sign(g) sqrt(threshold nu)
        nu <- b2 nu + (1 - b2) |g|^2

    Args:
        threshold: Largest square of an element, in units of its mean square, > 0.
        b2: Decay of `nu`, no unit, in [0, 1).
        grace_steps: First step that clips, counted from 1, >= 0.

    Shapes:
        state: count () int64; nu like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, where an element whose gradients were all zero so far is cut down to zero for ever.

    Source: Huang et al., 2025, arXiv:2501.06842, equation 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.clip_spikes(4.0, 0.75, grace_steps=2)
        >>> _, state = tx.update(torch.tensor([2.0]), tx.init(torch.ones(1)))
        >>> tx.update(torch.tensor([-9.0]), state)[0]
        tensor([-2.])
    """
    check_positive(threshold=threshold)
    check_decay(b2=b2)
    check_steps(grace_steps=grace_steps)

    def init(params: Params) -> ClipSpikesState:
        return ClipSpikesState(tree.count(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ClipSpikesState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ClipSpikesState]:
        count = state.count + 1
        clipped = _clipped(updates, state.nu, threshold, count >= grace_steps)
        nu = tree.update_moment_per_elem_norm(clipped, state.nu, b2, 2)
        return tree.cast_like(clipped, updates), ClipSpikesState(count, tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


def _clipped(updates: Updates, squares: Updates, threshold: Scalar, now: Tensor) -> Updates:
    """The elements, none of which is above the root of `threshold` times its mean square, where there is one."""

    def leaf(g: Tensor, v: Tensor) -> Tensor:
        root = torch.sqrt(torch.where(v > 0, v, 1.0)) * threshold**0.5
        return torch.where(now & (v > 0) & (g.abs() > root), torch.sgn(g) * root, g)

    return tree.map(leaf, updates, squares)


@factory
def scale_by_spam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    threshold: Scalar = 5000.0,
    reset_steps: int = 500,
    warmup_steps: int = 150,
    grace_steps: int = 20,
) -> GradientTransformation:
    """Adam on clipped elements, whose means begin anew every `reset_steps` steps, with a warm-up after each beginning.

    A single gradient far larger than others spoils Adam's means for hundreds of steps; these stay clean.

    Maths:
        s = t mod reset_steps;  at s = 0:  mu <- 0, nu <- 0
        where s >= grace_steps:  g clipped as in `clip_spikes`
        mu <- b1 mu + (1 - b1) g,  nu <- b2 nu + (1 - b2) |g|^2
        w = 1 - 0.99 (1 + cos(pi s / (warmup_steps + 1))) / 2 where s < warmup_steps and t >= reset_steps, else 1
        update <- w sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + eps)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        threshold: Largest square of an element, in units of its mean square, > 0.
        reset_steps: Steps from one beginning to the next, >= 2.
        warmup_steps: Steps over which the update rises after a beginning but the first, >= 0.
        grace_steps: Steps after a beginning that do not clip, >= 0.

    Shapes:
        state: that of `scale_by_adam`, count () int64; mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code, as `clip_spikes` does; it also has masks that update some elements only.

    Source: Huang et al., 2025, arXiv:2501.06842, Algorithm 1, with the counts of the authors' code.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_spam(eps=0.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)
    check_positive(threshold=threshold)
    check_steps(reset_steps=reset_steps, at_least=2)
    check_steps(warmup_steps=warmup_steps, grace_steps=grace_steps)

    def init(params: Params) -> ScaleByAdamState:
        return ScaleByAdamState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        count = state.count + 1
        since = count % reset_steps
        mu, nu = (tree.where(since == 0, tree.zeros_like(x), x) for x in (state.mu, state.nu))
        clipped = _clipped(updates, nu, threshold, since >= grace_steps)
        mu = tree.update_moment(clipped, mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(clipped, nu, b2, 2)
        low = 0.99 * (1 + torch.cos(tree.wide(since) * (math.pi / (warmup_steps + 1)))) / 2
        rise = torch.where((since < warmup_steps) & (count >= reset_steps), 1 - low, 1.0)
        share = rise * torch.sqrt(tree.one_minus_power(b2, count)) / tree.one_minus_power(b1, count)
        step = tree.scale(share, tree.div_by_root(mu, nu, eps))
        state = ScaleByAdamState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(step, updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def spam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    threshold: Scalar = 5000.0,
    reset_steps: int = 500,
    warmup_steps: int = 150,
    grace_steps: int = 20,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step as Adam does, without spikes, and with means that begin anew now and then.

    `scale_by_spam` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        threshold: Largest square of an element, in units of its mean square, > 0.
        reset_steps: Steps from one beginning to the next, >= 2.
        warmup_steps: Steps over which the update rises after a beginning but the first, >= 0.
        grace_steps: Steps after a beginning that do not clip, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0, after the step; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed if there is a decay. state: that of `scale_by_spam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is a decay and no parameters are given.

    Source: Huang et al., 2025, arXiv:2501.06842, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.spam(0.1, eps=0.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.1000])
    """
    rule = scale_by_spam(b1, b2, eps, threshold, reset_steps, warmup_steps, grace_steps)
    none = not callable(weight_decay) and not isinstance(weight_decay, Tensor) and weight_decay == 0
    last = () if none else (decay_after_step(weight_decay, learning_rate, mask),)
    return chain(rule, descend(learning_rate), *last)
