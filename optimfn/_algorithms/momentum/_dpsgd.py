"""Gradient descent that says little about any single example."""

from typing import Any, NamedTuple

from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import check_at_least, check_momentum, check_nonnegative, check_seed
from ..._recipe import factory
from ..._transforms._momentum import trace
from ..._transforms._rate import descend
from ..._transforms._unitwise import per_example_global_norm_clip
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates


class DifferentiallyPrivateAggregateState(NamedTuple):
    """Where the noise is."""

    rng_key: Tensor  # () int64, what the noise of the next step is a function of


def _one_key(key: int | Tensor | None, seed: int | Tensor | None) -> int | Tensor:
    if (key is None) == (seed is None):
        raise ValueError(f"give a key or a seed, one of them, got key={key!r} and seed={seed!r}")
    found = seed if key is None else key
    check_seed(**{"seed" if key is None else "key": found})
    return found  # type: ignore[return-value]  # one of the two is there


@factory
def differentially_private_aggregate(
    l2_norm_clip: Scalar, noise_multiplier: Scalar, key: int | Tensor | None = None, *, seed: int | Tensor | None = None
) -> GradientTransformation:
    """Shrink the gradient of each example, add noise to their sum, and divide by their number.

    It takes the gradients of all examples of a batch, along the first axis of every leaf, as
    `torch.func.vmap(torch.func.grad(loss), (None, 0))` gives them. There is no account of the privacy that is spent.

    Maths:
        update <- (sum over examples of g min(1, l2_norm_clip / |g|) + l2_norm_clip noise_multiplier n) / batch size
        n standard normal, |g| over all leaves of the example

    Args:
        l2_norm_clip: Largest norm of the gradient of an example, in its unit, >= 0.
        noise_multiplier: Deviation of the noise as a multiple of that, no unit, >= 0.
        key: What the noise is a function of: any whole number, or a 0-dim int64 tensor.
        seed: Another name of `key`.

    Shapes:
        updates: as params with an axis of examples before; the result is like params. state: rng_key () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has no axis, or the leaves have different numbers of examples.

    Differs from: optax in the numbers of the noise; it begins with a `key` of 0 if there is none.

    Source: Abadi et al., 2016, arXiv:1607.00133, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.differentially_private_aggregate(2.5, 0.0, key=0)
        >>> tx.update(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), tx.init(torch.ones(2)))[0]
        tensor([1.0500, 1.4000])
    """
    check_at_least(0, l2_norm_clip=l2_norm_clip)
    check_nonnegative(noise_multiplier=noise_multiplier)
    start = _one_key(key, seed)

    def init(params: Params) -> DifferentiallyPrivateAggregateState:
        return DifferentiallyPrivateAggregateState(tree.count(params) + start)

    def update(
        updates: Updates, state: DifferentiallyPrivateAggregateState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DifferentiallyPrivateAggregateState]:
        following = DifferentiallyPrivateAggregateState(tree.fold_in(state.rng_key, 0))
        examples = tree.leaves(updates)
        if not examples:
            return updates, following
        total, _ = per_example_global_norm_clip(updates, l2_norm_clip)
        noise = tree.random_like(tree.fold_in(state.rng_key, 1), total)
        total = tree.add_scale(total, l2_norm_clip * noise_multiplier, noise)
        mean = tree.scale(1 / max(len(examples[0]), 1), total)
        return tree.map(lambda x, g: tree.cast_leaf(x, g.dtype), mean, updates), following

    return GradientTransformation(init, update)


@factory
def dpsgd(
    learning_rate: ScalarOrSchedule,
    l2_norm_clip: Scalar,
    noise_multiplier: Scalar,
    key: int | Tensor | None = None,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    *,
    seed: int | Tensor | None = None,
) -> GradientTransformation:
    """Gradient descent with `differentially_private_aggregate` in front.

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        l2_norm_clip: Largest norm of the gradient of an example, in its unit, >= 0.
        noise_multiplier: Deviation of the noise as a multiple of that, no unit, >= 0.
        key: What the noise is a function of: any whole number, or a 0-dim int64 tensor.
        momentum: Decay of the momentum, no unit, in [0, 1]; `None` means none.
        nesterov: Look one step ahead with the momentum.
        seed: Another name of `key`.

    Shapes:
        updates: as params with an axis of examples before. state: that of its parts.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Abadi et al., 2016, arXiv:1607.00133, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.dpsgd(0.1, 2.5, 0.0, key=0)
        >>> tx.update(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), tx.init(torch.ones(2)))[0]
        tensor([-0.1050, -0.1400])
    """
    check_momentum(momentum, nesterov)
    private = differentially_private_aggregate(l2_norm_clip, noise_multiplier, key, seed=seed)
    return chain(private, identity() if momentum is None else trace(momentum, nesterov), descend(learning_rate))
