"""Adam in two parts, where eps is added before the bias is corrected: as Hugging Face's, and what came of it."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay_kinds import decay_after_step
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class Moments(NamedTuple):
    """The running means."""

    mu: Updates  # of the gradients, like params
    nu: Updates  # of their squared magnitudes, like params but real


class Corrected(NamedTuple):
    """How many steps there were."""

    count: Count  # () int64, steps taken


@factory
def adam_before_correction(b1: Scalar, b2: Scalar, eps: Scalar) -> GradientTransformation:
    """Divide the running mean of the updates by the root of that of their squares, as they are."""
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> Moments:
        return Moments(tree.init_moment(params), tree.init_moment(params, real=True))

    def update(updates: Updates, state: Moments, params: Params | None = None, **extra: Any) -> tuple[Updates, Moments]:
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        direction = tree.cast_like(tree.div_by_root(mu, nu, eps), updates)
        return direction, Moments(tree.carry(mu, state.mu), tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def correct_bias(b1: Scalar, b2: Scalar) -> GradientTransformation:
    """Multiply by `sqrt(1 - b2^t) / (1 - b1^t)`, which corrects the bias of both means."""

    def init(params: Params) -> Corrected:
        return Corrected(tree.count(params))

    def update(
        updates: Updates, state: Corrected, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Corrected]:
        count = state.count + 1
        factor = torch.sqrt(tree.one_minus_power(b2, count)) / tree.one_minus_power(b1, count)
        return tree.scale(factor, updates), Corrected(count)

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


def corrected_and_decayed_last(
    directions: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: Scalar,
    b2: Scalar,
    weight_decay: ScalarOrSchedule,
    mask: Mask | None,
) -> GradientTransformation:
    """The whole optimizer around what came of `adam_before_correction`, in the order of Hugging Face's."""
    return chain(
        directions,
        correct_bias(b1, b2),
        descend(learning_rate),
        decay_after_step(weight_decay, learning_rate, mask),
    )
