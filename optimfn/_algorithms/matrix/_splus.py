"""SPlus: signs in the eigenbasis of Shampoo."""

from dataclasses import replace

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, leafwise, stateless
from ..._checks import check_decay, check_nonnegative, check_steps
from ..._recipe import factory
from ..._transforms._averaging import params_ema
from ..._transforms._decay_kinds import step_decay
from ..._transforms._momentum import ema
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._axes import Layouts, check_spread
from ._eigenbasis import Eigenbasis, in_eigenbasis


def _share(p: Tensor, max_dim: int, nonstandard_constant: Scalar) -> Scalar:
    """The rate of a leaf, as a share of that of all."""
    if p.ndim == 2 and max(p.shape) <= max_dim:
        return 2 / max(sum(p.shape), 1)
    return nonstandard_constant


@factory
def scale_by_splus(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    inverse_every: int = 100,
    max_dim: int = 10000,
    nonstandard_constant: Scalar = 0.001,
    *,
    spread: int = 1,
) -> GradientTransformation:
    """Replace the mean of each matrix by its signs in the eigenbasis of Shampoo, scaled by its shape.

    Signs bound a step whatever the basis, so that this may be old: it is that of the axes at first, then that of the
    first step, and then of every hundredth.

    Maths:
        mu <- b1 mu + (1 - b1) g,  L <- b2 L + (1 - b2) g g^H,  R <- b2 R + (1 - b2) g^H g
        update <- 2 / (rows + cols) Q_L sign(Q_L^H mu Q_R) Q_R^H
        then, in step 1 and every inverse_every steps, Q_L, Q_R = eigenvectors of L, R
        of leaves that are no matrices, nonstandard_constant sign(mu)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of the products, no unit, in [0, 1).
        inverse_every: Steps from one basis to the next, >= 1.
        max_dim: Size of an axis below which it has a basis, >= 2; a matrix with a longer one is scaled as what is none.
        nonstandard_constant: Factor of leaves that are no matrices, no unit, >= 0.
        spread: Parts of the leaves whose bases change in steps of their own, at most `inverse_every`, see `eigenbasis`.

    Shapes:
        state: that of `eigenbasis`. Memory: 1 x params, and for a matrix (m, n) twice m^2 + n^2.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: the authors' code as `eigenbasis`, and in its PyTorch form's factor of a quarter of this one, which is
        that of the paper and of their JAX code.

    Source: Frans, Levine and Abbeel, 2025, arXiv:2506.07254.

    Example:
        >>> import torch, optimfn as of
        >>> tx, g = of.scale_by_splus(), torch.tensor([[3.0, -1.0], [2.0, 0.0]])
        >>> tx.update(g, tx.init(g))[0]
        tensor([[ 0.5000, -0.5000],
                [ 0.5000,  0.0000]])
    """
    check_decay(b1=b1, b2=b2)
    check_steps(inverse_every=inverse_every, at_least=1)
    check_steps(max_dim=max_dim, at_least=2)
    check_nonnegative(nonstandard_constant=nonstandard_constant)
    check_spread(spread, inverse_every=inverse_every)
    signs = leafwise(stateless(lambda updates, params: tree.map(torch.sgn, updates)))

    def shaped(updates: Updates, params: Params | None) -> Updates:
        return tree.map(lambda u: tree.scale(_share(u, max_dim, nonstandard_constant), u), updates)

    # In the authors' code an axis of `max_dim` has no basis, and the factor of a matrix that has.
    layouts = Layouts(max_dim - 1, others=False)
    how = Eigenbasis(b2, inverse_every, layouts, None, "sorted", "identity", by="eigh", spread=spread)
    rule = chain(in_eigenbasis(chain(ema(b1, debias=False), signs), how), leafwise(stateless(shaped)))
    return replace(rule, takes_assigned=False)


@factory
def splus(
    learning_rate: ScalarOrSchedule = 0.1,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    ema_rate: Scalar = 0.999,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    inverse_every: int = 100,
    max_dim: int = 10000,
    nonstandard_constant: Scalar = 0.001,
    *,
    spread: int = 1,
) -> GradientTransformation:
    """Step by SPlus, with an average of the parameters to evaluate, and the decay of what the step makes.

    Evaluate at `eval_params(tx, state, params)`, or within `Optimizer.evaluation()`. Learning rates carry over from
    width to width.

    Maths:
        p <- p - learning_rate scale_by_splus(g)
        average <- ema_rate average + (1 - ema_rate) p,  divided by 1 - ema_rate^t where it is read
        p <- p (1 - learning_rate s weight_decay),  s the factor of the leaf's shape

    Args:
        learning_rate: About the spectral norm of a step, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the products, no unit, in [0, 1).
        ema_rate: Decay of the average of the parameters, no unit, in [0, 1).
        weight_decay: Decay per unit of a leaf's learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        inverse_every: Steps from one basis to the next, >= 1.
        max_dim: Size of an axis below which it has a basis, >= 2.
        nonstandard_constant: Factor of leaves that are no matrices, no unit, >= 0.
        spread: Parts of the leaves whose bases change in steps of their own, at most `inverse_every`, see `eigenbasis`.

    Shapes:
        params: needed. state: those of `scale_by_splus` and `params_ema`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: the authors' code as `scale_by_splus` says.

    Source: Frans, Levine and Abbeel, 2025, arXiv:2506.07254.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.splus(weight_decay=0.0), torch.tensor([[3.0, 1.0], [2.0, 1.0]])
        >>> tx.update(w, tx.init(w), w)[0]
        tensor([[-0.0500, -0.0500],
                [-0.0500, -0.0500]])
    """
    check_decay(ema_rate=ema_rate)

    def shrunk(u: Tensor, p: Tensor, share: Scalar) -> Tensor:
        return u - share * _share(p, max_dim, nonstandard_constant) * (p + u)

    return chain(
        scale_by_splus(b1, b2, inverse_every, max_dim, nonstandard_constant, spread=spread),
        descend(learning_rate),
        params_ema(ema_rate, debias=True),
        step_decay("splus", shrunk, weight_decay, learning_rate, mask),
    )
