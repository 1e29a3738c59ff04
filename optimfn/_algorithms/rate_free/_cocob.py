"""COCOB: a bet on the next gradient for every element."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_nonnegative, check_positive, check_rate, need_params
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import scale_by_learning_rate
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates


class COCOBState(NamedTuple):
    """The wealth of the gambler of every element."""

    init_particles: Params  # the parameters at the start, like params
    cumulative_gradients: Updates  # minus the sum of the gradients, like params
    scale: Updates  # largest magnitude of a gradient, like params
    subgradients: Updates  # sum of the magnitudes of the gradients, like params
    reward: Updates  # what the bets have won, >= 0, like params


@factory
def scale_by_cocob(alpha: Scalar = 100.0, eps: Scalar = 1e-8) -> GradientTransformation:
    """Step to where a gambler who bets on the sign of the next gradient puts each element.

    The updates are steps, not directions: nothing is to follow in the chain.

    Maths:
        L <- max(L, |g|),  G <- G + |g|,  R <- max(R - g (p - p_0), 0),  C <- C - g,  L = eps at the start
        update <- p_0 + C (L + R) / (L max(G + L, alpha L)) - p

    Args:
        alpha: How slowly the first bets grow, no unit, >= 0.
        eps: Least magnitude of a gradient, in its unit, > 0.

    Shapes:
        params: needed, real leaves. state: five trees like params (float32 for float16 and bfloat16, but for the
        parameters at the start). Memory: 5 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Orabona and Tommasi, 2017, arXiv:1705.07795, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_cocob(alpha=10.0), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    check_nonnegative(alpha=alpha)
    check_positive(eps=eps)

    def init(params: Params) -> COCOBState:
        zeros = [tree.init_moment(params) for _ in range(3)]
        least = tree.map(lambda z: z + eps, tree.init_moment(params))
        return COCOBState(tree.keep(params, params), zeros[0], tree.cast_like(least, zeros[0]), *zeros[1:])

    def update(
        updates: Updates, state: COCOBState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, COCOBState]:
        need_params("scale_by_cocob", params)
        start, negative, largest, magnitudes, won = state
        away = tree.map(lambda g, w, p, p0: tree.cast_leaf(p, w.dtype) - p0, updates, won, params, start)
        largest = tree.map(lambda g, x: torch.maximum(x, g.abs().to(x.dtype)), updates, largest)
        magnitudes = tree.map(lambda g, x: x + g.abs(), updates, magnitudes)
        won = tree.map(lambda g, x, far: torch.clamp(x - g * far, min=0), updates, won, away)
        negative = tree.map(lambda g, x: x - g, updates, negative)
        # In this order nothing overflows that the result does not.
        bet = tree.map(
            lambda c, x, g, w: c / x / torch.maximum(g + x, alpha * x) * (x + w), negative, largest, magnitudes, won
        )
        kept = (tree.carry(*pair) for pair in zip((negative, largest, magnitudes, won), state[1:], strict=True))
        return tree.cast_like(tree.sub(bet, away), updates), COCOBState(start, *kept)

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def cocob(
    learning_rate: ScalarOrSchedule = 1.0,
    alpha: Scalar = 100.0,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Bet on the next gradient of every element: no rate to tune.

    `scale_by_cocob` gives the maths.

    Args:
        learning_rate: Factor on the gradients, not on the steps, no unit, >= 0; a number, a 0-dim tensor or a schedule.
        alpha: How slowly the first bets grow, no unit, >= 0.
        eps: Least magnitude of a gradient, in its unit, > 0.
        weight_decay: Added to the gradient times the parameters, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed, real leaves. state: that of `scale_by_cocob`. Memory: 5 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Orabona and Tommasi, 2017, arXiv:1705.07795, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.cocob(alpha=10.0), torch.ones(1)
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params)[0]
        tensor([-0.1000])
    """
    check_rate(learning_rate=learning_rate)
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
