"""NorMuon: Muon whose neurons all move alike."""

from typing import Any, NamedTuple

import torch

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import orthogonalize, scale_by_matrix_shape

_FLOOR = 1e-10  # what the authors add to roots and norms


class NorMuonState(NamedTuple):
    """NorMuon's memory."""

    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean square of the orthogonal updates along each row, (rows,) per matrix


@factory
def scale_by_normuon(
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-7,
    *,
    nesterov: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> GradientTransformation:
    """Make the momentum of each matrix orthogonal, then all its rows as long as each other, in the mean over steps.

    Maths:
        mu <- beta mu + (1 - beta) g
        o = orthogonalize(mu), or with nesterov orthogonalize(beta mu + (1 - beta) g)
        nu <- b2 nu + (1 - b2) mean of o^2 along each row
        w = o / (sqrt(nu) + 1e-10)
        update <- w |o| / (|w| + 1e-10)

    Args:
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Iterations of `orthogonalize`, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        b2: Decay of the mean squares, no unit, in [0, 1).
        eps: Least norm to divide by, in the unit of `|g|`, >= 0.
        nesterov: Look one step ahead with the momentum.
        dtype: Dtype in which it is made orthogonal.

    Shapes:
        updates: real matrices. state: mu like params; nu (rows,) per matrix. Memory: 1 x params and a column of each.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex.

    Source: Li et al., 2025, arXiv:2510.05491, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_normuon(), torch.zeros(2, 3)
        >>> update, _ = tx.update(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), tx.init(params))
        >>> (update[0, 0] / update[1, 1]).round(decimals=3)
        tensor(1.)
    """
    check_decay(beta=beta, b2=b2)
    orthogonal = orthogonalize(ns_coeffs, ns_steps, eps, dtype=dtype)

    def along_rows(squares: Updates) -> Updates:
        sums = tree.fold_each("sum", lambda x: (-1,) if x.ndim == 2 else None, squares)
        return tree.map(lambda total, x: total / max(x.shape[-1] if x.ndim else 1, 1), sums, squares)

    def init(params: Params) -> NorMuonState:
        return NorMuonState(tree.init_moment(params), tree.outline(along_rows, tree.init_moment(params, real=True)))

    def update(
        updates: Updates, state: NorMuonState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, NorMuonState]:
        mu = tree.update_moment(updates, state.mu, beta, 1)
        ahead = tree.update_moment(updates, mu, beta, 1) if nesterov else mu
        o, _ = orthogonal.rule(ahead, EmptyState())
        nu = tree.update_moment(along_rows(tree.map(tree.abs_sq, o)), state.nu, b2, 1)
        w = tree.div_by_root(o, tree.map(lambda x: x.unsqueeze(-1), nu), _FLOOR)
        sizes = tree.norms(o, wide=True), tree.norms(w, wide=True)
        even = tree.map(lambda x, was, now: tree.scale(was / (now + _FLOOR), x), w, *sizes)
        return tree.cast_like(even, updates), NorMuonState(tree.carry(mu, state.mu), tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=True)


@factory
def normuon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: tuple[Any, ...] | str = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    nesterov: bool = True,
    mode: str = "original",
    dtype: torch.dtype = torch.bfloat16,
) -> GradientTransformation:
    """Move matrices by their momentum made orthogonal, all rows alike: Muon that leaves no neuron behind.

    It takes matrices only. Give embeddings, output layers, biases and gains to another rule, with `partition`.

    Maths:
        update <- -learning_rate (shape factor scale_by_normuon(g) + weight_decay p)

    Args:
        learning_rate: Spectral norm of a step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        ns_coeffs: The coefficients of `orthogonalize`, no unit.
        ns_steps: Iterations of `orthogonalize`, >= 1.
        beta: Decay of the momentum, no unit, in [0, 1).
        b2: Decay of the mean squares of rows, no unit, in [0, 1).
        eps: Least norm to divide by, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        nesterov: Look one step ahead with the momentum.
        mode: How the factor depends on the shape, see `scale_by_matrix_shape`.
        dtype: Dtype in which the momentum is made orthogonal.

    Shapes:
        params: needed. state: that of `scale_by_normuon`. Memory: 1 x params and a column of each.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex, or no parameters are given.

    Source: Li et al., 2025, arXiv:2510.05491, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.normuon(0.1, mode="match_rms_adamw"), torch.zeros(2, 2)
        >>> tx.update(torch.eye(2), tx.init(params), params)[0].shape
        torch.Size([2, 2])
    """
    return chain(
        scale_by_normuon(ns_coeffs, ns_steps, beta, b2, eps, nesterov=nesterov, dtype=dtype),
        scale_by_matrix_shape(mode),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
