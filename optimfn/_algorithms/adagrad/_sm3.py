"""SM3: AdaGrad with one number per row and column instead of one per element."""

import functools
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_fraction, check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates


class ScaleBySM3State(NamedTuple):
    """The covers of the second moment, and the momentum."""

    mu: Updates  # per leaf a list with one vector for each axis; of a 0-dim leaf, with one 0-dim tensor
    nu: Annotated[Updates, "signed"]  # running mean of the scaled updates, like params


@factory
def scale_by_sm3(b1: Scalar = 0.9, b2: Scalar = 1.0, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide the updates by the root of a bound on the sum of their squares, and average them.

    Maths:
        s = w |g|^2 + b2 min over the axes a of mu_a,  w = 1 if b2 = 1, else 1 - b2
        mu_a <- max of s over the axes but a
        nu <- b1 nu + (1 - b1) g / sqrt(s + eps),  with 0 for the fraction where s = 0
        update <- nu

    Args:
        b1: Decay of the mean of the scaled updates, no unit, in [0, 1).
        b2: Factor on the sums so far, no unit, in [0, 1]; 1 adds all squares up, as the paper does.
        eps: Added inside the root, in the unit of `|g|^2`, >= 0.

    Shapes:
        state: mu a list of one real vector per axis for each leaf; nu like params (float32 for float16 and
            bfloat16). Memory: 1 x params, and a row and a column of each matrix.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax (0.2.8 and before), which fails on 0-dim leaves and refuses complex ones; here the squares
        are those of magnitudes.

    Source: Anil et al., 2019, arXiv:1901.11150, Algorithm SM3-II.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_sm3(b1=0.5, eps=0.0)
        >>> tx.update(torch.tensor([[3.0, -4.0]]), tx.init(torch.ones(1, 2)))[0]
        tensor([[ 0.5000, -0.5000]])
    """
    check_decay(b1=b1)
    check_fraction(b2=b2)
    check_nonnegative(eps=eps)

    def init(params: Params) -> ScaleBySM3State:
        return ScaleBySM3State(tree.outline(_covers, tree.init_moment(params, real=True)), tree.init_moment(params))

    def update(
        updates: Updates, state: ScaleBySM3State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleBySM3State]:
        new = torch.where(tree.wide(b2) == 1, 1.0, 1.0 - tree.wide(b2))
        bound = tree.map(lambda g, covers: functools.reduce(torch.minimum, _spread(covers, g.ndim)), updates, state.mu)
        sums = tree.add(tree.scale(new, tree.abs_sq(updates)), tree.scale(b2, bound))
        scaled = tree.map(lambda g, s: g * _inverse_root(s, eps), updates, sums)
        nu = tree.update_moment(scaled, state.nu, b1, 1)
        mu = tree.map(
            lambda _, new, covers: covers if new is None else tree.carry(new, covers), state.nu, _covers(sums), state.mu
        )
        return tree.cast_like(nu, updates), ScaleBySM3State(mu, tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True)


@factory
def sm3(learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9) -> GradientTransformation:
    """Step as AdaGrad does, with a second moment kept by rows and columns: for large embeddings.

    `scale_by_sm3` gives the maths.

    Args:
        learning_rate: Parameter units per step at first, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        momentum: Decay of the mean of the scaled gradients, no unit, in [0, 1).

    Shapes:
        state: that of `scale_by_sm3`. Memory: 1 x params, and a row and a column of each matrix.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, as `scale_by_sm3` says, and in that the learning rate may be a schedule.

    Source: Anil et al., 2019, arXiv:1901.11150.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.sm3(0.1, momentum=0.5)
        >>> tx.update(torch.tensor([3.0, -4.0]), tx.init(torch.ones(2)))[0]
        tensor([-0.0500,  0.0500])
    """
    check_decay(momentum=momentum)
    return chain(scale_by_sm3(momentum), descend(learning_rate))


def _spread(covers: list[Tensor], ndim: int) -> list[Tensor]:
    """Each vector along its own axis of a leaf."""

    def along(v: Tensor, a: int) -> Tensor:
        # One axis at a time, of which the shards of a vector with one element come through as they are.
        for axis in range(ndim):
            v = v if axis == a else v.unsqueeze(axis)
        return v

    return [along(v, a) for a, v in enumerate(covers)]


def _covers(sums: Updates) -> Updates:
    """For each leaf and each of its axes the largest element of every slice; zeros where there are none."""

    def others(s: Tensor, a: int) -> tuple[int, ...] | None:
        return tuple(axis for axis in range(s.ndim) if axis != a) or None

    again = tree.map(lambda s: [s] * max(s.ndim, 1), sums)
    axes = tree.map(lambda s: list(range(max(s.ndim, 1))), sums)
    return tree.fold_each("max", others, again, axes)


def _inverse_root(s: Tensor, eps: Scalar) -> Tensor:
    positive = s > 0
    return torch.where(positive, torch.rsqrt(torch.where(positive, tree.cast_leaf(s + eps, s.dtype), 1.0)), 0.0)
