"""AdaMuon: the signs of the momentum made orthogonal, then each element divided by its mean square."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import orthogonalize
from ._newton_schulz import DimensionNumbers, fit_all


class AdaMuonState(NamedTuple):
    """AdaMuon's memory."""

    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean square of the orthogonal updates, like params


@factory
def scale_by_adamuon(
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    b2: Scalar | None = None,
    eps: Scalar = 1e-8,
    *,
    nesterov: bool = True,
    sign: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Make the signs of the momentum of each matrix orthogonal, and divide by the root of their mean squares.

    The root mean square of a leaf is 0.2 then, about AdamW's.

    Maths:
        mu <- beta mu + (1 - beta) g
        m = mu, or with nesterov beta mu + (1 - beta) g
        o = orthogonalize(sign(m)), or of m itself
        nu <- b2 nu + (1 - b2) o^2
        w = o / (sqrt(nu) + eps)
        update <- 0.2 sqrt(elements) w / (|w| + eps)

    Args:
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Iterations of `orthogonalize`, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        b2: Decay of the mean squares, no unit, in [0, 1); `None` means `beta`, as in the authors' code.
        eps: Added to roots and norms, no unit, >= 0.
        nesterov: Look one step ahead with the momentum.
        sign: Whether the signs are made orthogonal, or with False the momentum itself, as in timm.
        dtype: Dtype in which it is made orthogonal.
        weight_dimension_numbers: As in `orthogonalize`.

    Shapes:
        updates: real matrices, or leaves with dimension numbers. state: mu, nu like params. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf is no matrix or is complex.

    Source: Si et al., 2025, arXiv:2507.11005, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_adamuon(), torch.zeros(2, 2)
        >>> tx.update(torch.eye(2), tx.init(params))[0].square().mean().sqrt().round(decimals=3)
        tensor(0.2000)
    """
    check_decay(beta=beta)
    if b2 is not None:
        check_decay(b2=b2)
    check_nonnegative(eps=eps)
    decay = beta if b2 is None else b2
    orthogonal = orthogonalize(ns_coeffs, ns_steps, dtype=dtype, weight_dimension_numbers=weight_dimension_numbers)

    def init(params: Params) -> AdaMuonState:
        return AdaMuonState(tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: AdaMuonState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AdaMuonState]:
        mu = tree.update_moment(updates, state.mu, beta, 1)
        ahead = tree.update_moment(updates, mu, beta, 1) if nesterov else mu
        o, _ = orthogonal.rule(tree.sign(ahead) if sign else ahead, EmptyState(), params)
        nu = tree.update_moment(o, state.nu, decay, 2)
        w = tree.div_by_root(o, nu, eps)
        even = tree.map(
            lambda x, size: tree.scale(0.2 * x.numel() ** 0.5 / (size + eps), x), w, tree.norms(w, wide=True)
        )
        return tree.cast_like(even, updates), AdaMuonState(tree.carry(mu, state.mu), tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=fit_all(weight_dimension_numbers))


@factory
def adamuon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    b2: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    nesterov: bool = True,
    sign: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Move matrices by the signs of their momentum made orthogonal, adapted to each element: Muon with Adam's scale.

    It takes matrices only. Give embeddings, output layers, biases and gains to another rule, with `partition`.

    Maths:
        update <- -learning_rate (scale_by_adamuon(g) + weight_decay p)

    Args:
        learning_rate: Five times the root mean square of a step, >= 0; a number, a 0-dim tensor or a schedule.
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Iterations of `orthogonalize`, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        b2: Decay of the mean squares, no unit, in [0, 1); `None` means `beta`.
        eps: Added to roots and norms, no unit, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        nesterov: Look one step ahead with the momentum.
        sign: Whether the signs of the momentum are made orthogonal, or with False the momentum itself.
        dtype: Dtype in which it is made orthogonal.
        weight_dimension_numbers: As in `orthogonalize`.

    Shapes:
        params: needed. state: that of `scale_by_adamuon`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf is no matrix or is complex, or no parameters are given.

    Differs from: the authors' code in the default of `weight_decay` (0.01 there).

    Source: Si et al., 2025, arXiv:2507.11005, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.adamuon(0.1), torch.zeros(2, 2)
        >>> tx.update(torch.eye(2), tx.init(params), params)[0].square().mean().sqrt().round(decimals=3)
        tensor(0.0200)
    """
    return chain(
        scale_by_adamuon(
            ns_coeffs,
            ns_steps,
            beta,
            b2,
            eps,
            nesterov=nesterov,
            sign=sign,
            dtype=dtype,
            weight_dimension_numbers=weight_dimension_numbers,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
