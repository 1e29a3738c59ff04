"""Sophia-G: Sophia with the squared gradients of labels that the model has drawn."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_positive
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class SophiaGState(NamedTuple):
    """Sophia-G's memory."""

    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of the squared gradients of drawn labels, like params but real


@factory
def scale_by_sophia_g(
    b1: Scalar = 0.965, b2: Scalar = 0.99, rho: Scalar = 0.04, batch_size: Scalar = 1.0, eps: Scalar = 1e-15
) -> GradientTransformation:
    """Divide the mean of the updates by a Gauss-Newton diagonal, and clip at one.

    Every ten steps or so, give the mean gradient of the loss on labels that are drawn from the model's own output:
    `tx.update(grads, state, params, sampled_grads=drawn)`. Leave it out at other steps, which cost nothing more then.

    Maths:
        m <- b1 m + (1 - b1) g
        update <- sign(m) min(1, |m| / (rho batch_size h + eps))
        then, with sampled_grads s:  h <- b2 h + (1 - b2) |s|^2

    Args:
        b1: Decay of `m`, no unit, in [0, 1).
        b2: Decay of `h`, no unit, in [0, 1).
        rho: Factor on the diagonal, no unit, > 0; so that a share of 10 to 50 % of the elements is not clipped.
        batch_size: Over how many labels `sampled_grads` is a mean, > 0: for a language model the tokens of a batch.
        eps: Added to the divisor, in the unit of the diagonal, > 0.

    Shapes:
        state: mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: `scale_by_sophia`, optax's form, which corrects the bias of the mean and asks an estimator.

    Source: Liu et al., 2023, arXiv:2305.14342, Algorithms 2 and 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.scale_by_sophia_g(b1=0.0, b2=0.0, rho=1.0), torch.tensor([1.0, -4.0])
        >>> first, state = tx.update(g, tx.init(g), sampled_grads=torch.tensor([2.0, 1.0]))
        >>> first, tx.update(g, state)[0]
        (tensor([ 1., -1.]), tensor([ 0.2500, -1.0000]))
    """
    check_decay(b1=b1, b2=b2)
    check_positive(rho=rho, batch_size=batch_size, eps=eps)

    def init(params: Params) -> SophiaGState:
        return SophiaGState(tree.init_moment(params), tree.init_moment(params, real=True))

    def leaf(m: Tensor, h: Tensor) -> Tensor:
        size = m.abs()
        share = torch.clamp(size / (h * (rho * batch_size) + eps), max=1)
        return tree.cast_leaf(torch.sgn(m) * share, m.dtype)

    def update(
        updates: Updates,
        state: SophiaGState,
        params: Params | None = None,
        *,
        sampled_grads: Updates | None = None,
        **extra: Any,
    ) -> tuple[Updates, SophiaGState]:
        mu = tree.update_moment(updates, state.mu, b1, 1)
        direction, nu = tree.map(leaf, mu, state.nu), state.nu
        if sampled_grads is not None:
            nu = tree.carry(tree.update_moment_per_elem_norm(sampled_grads, nu, b2, 2), nu)
        return tree.cast_like(direction, updates), SophiaGState(tree.carry(mu, state.mu), nu)

    return GradientTransformation(init, update)


@factory
def sophia_g(
    learning_rate: ScalarOrSchedule = 1e-4,
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    rho: Scalar = 0.04,
    batch_size: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.1,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the mean gradient over a Gauss-Newton diagonal, clipped: `scale_by_sophia_g`.

    Args:
        learning_rate: Parameter units per step, at most, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the diagonal, no unit, in [0, 1).
        rho: Factor on the diagonal, no unit, > 0.
        batch_size: Over how many labels `sampled_grads` is a mean, > 0: for a language model the tokens of a batch.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_sophia_g`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Liu et al., 2023, arXiv:2305.14342, Algorithms 2 and 3.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.sophia_g(0.1), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params, sampled_grads=torch.tensor([2.0]))[0]
        tensor([-0.1100])
    """
    return chain(
        scale_by_sophia_g(b1, b2, rho, batch_size), add_decayed_weights(weight_decay, mask), descend(learning_rate)
    )
