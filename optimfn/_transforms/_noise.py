"""Noise on the updates."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._checks import check_nonnegative, check_number, check_seed
from .._recipe import factory
from .._typing import Count, Params, Scalar, Updates


class AddNoiseState(NamedTuple):
    """Where the noise is."""

    count: Count  # () int64, steps taken
    rng_key: Tensor  # () int64, the seed, which does not change


@factory
def add_noise(eta: Scalar, gamma: Scalar, seed: int | Tensor) -> GradientTransformation:
    """Add normal noise to the updates, less from step to step.

    The noise of a step is a function of the seed, the number of the step, and the path and shape of the leaf; it is the
    same on every device and in every execution. Members of an ensemble under `vmap` share it, unless the seed is
    batched.

    Maths:
        update <- g + sqrt(eta / t^gamma) n,  n standard normal

    Args:
        eta: Variance of the noise at the first step, in the unit of `|g|^2`, >= 0.
        gamma: Power with which the variance falls, no unit.
        seed: Any whole number, or a 0-dim int64 tensor.

    Shapes:
        state: count, rng_key () int64. The noise of a complex leaf is complex, of the same variance.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, whose `key` is split at every step, and whose numbers are others.

    Source: Neelakantan et al., 2015, arXiv:1511.06807.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.add_noise(eta=1.0, gamma=0.55, seed=0)
        >>> tx.update(torch.zeros(2), tx.init(torch.zeros(2)))[0]
        tensor([-0.2062,  1.2789])
    """
    check_nonnegative(eta=eta)
    check_number(gamma=gamma)
    check_seed(seed=seed)

    def init(params: Params) -> AddNoiseState:
        count = tree.count(params)
        return AddNoiseState(count, count + seed)

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddNoiseState]:
        count = state.count + 1
        deviation = torch.sqrt(eta / tree.wide(count) ** gamma)
        noise = tree.scale(deviation, tree.random_like(tree.fold_in(state.rng_key, count), updates))
        return tree.add(updates, noise), AddNoiseState(count, state.rng_key)

    return GradientTransformation(init, update)
