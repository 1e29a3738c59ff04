"""Dion: momentum made orthogonal in a few directions, which one power iteration a step keeps up to date."""

import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_fraction, check_nonnegative, check_positive, check_seed, check_steps
from ..._recipe import factory
from ..._state_spec import LeafSpec
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import scale_by_matrix_shape


class DionState(NamedTuple):
    """Dion's memory."""

    mu: Updates  # sum of the gradients, without what moved the parameters, like params
    q: Annotated[Any, LeafSpec("factor"), "exact"]  # right factor of each matrix, (columns, rank)


@factory
def scale_by_dion(
    rank_fraction: float = 1.0,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    rank_multiple_of: int = 1,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Sum the updates, take out their largest directions, orthogonal, and keep what these have not said.

    A power iteration from the directions of the last step finds them. A small rank makes a step cheap, and loses to
    Muon.

    Maths:
        mu <- mu + g
        P = orthogonal columns of mu Q,  R = mu^T P
        mu <- mu - (1 - beta) P R^T
        Q <- R, each column over its norm + eps
        update <- P Q^T
        where mu is all zeros, P = 0 and R = Q

    Args:
        rank_fraction: Columns of `Q` as a share of the shorter side, no unit, in (0, 1].
        beta: What is left of the directions that moved, no unit, in [0, 1).
        eps: Added to the norms of columns, in the unit of `|g|`, >= 0.
        rank_multiple_of: The rank is rounded up to a multiple of it, >= 1, but not beyond the shorter side.
        seed: Of the random numbers that `Q` begins with.

    Shapes:
        updates: real matrices. state: mu like params; q (columns, rank) for each. Memory: 1 x params, and the share of
            the square of a side. Leaves in shards are made whole in every step.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex.

    Source: Ahn et al., 2025, arXiv:2504.05295, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_dion(0.5), torch.zeros(2, 2)
        >>> tx.update(torch.tensor([[30.0, 40.0], [0.0, 0.0]]), tx.init(params))[0][0].round(decimals=3)
        tensor([0.6000, 0.8000])
    """
    check_positive(rank_fraction=rank_fraction)
    check_fraction(rank_fraction=rank_fraction)
    check_decay(beta=beta)
    check_nonnegative(eps=eps)
    check_steps(rank_multiple_of=rank_multiple_of)
    check_seed(seed=seed)

    def start(key: Tensor, p: Tensor) -> Tensor:
        if p.ndim != 2:
            return torch.zeros((), device=p.device)
        shorter = min(p.shape)
        rank = min(rank_multiple_of * math.ceil(rank_fraction * shorter / rank_multiple_of), shorter)
        like = torch.empty((p.shape[1], rank), dtype=torch.float64, device=p.device)
        return tree.cast_leaf(tree.normal(key, like), torch.promote_types(p.dtype, torch.float32))

    def init(params: Params) -> DionState:
        real = tree.map(lambda p: p.real if p.is_complex() else p, params)
        return DionState(tree.init_moment(params), tree.map(start, tree.split_key_like(seed, params), real))

    def update(
        updates: Updates, state: DionState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DionState]:
        for g in tree.leaves(updates):
            if g.ndim != 2 or g.is_complex():
                raise ValueError(
                    f"dion takes real matrices only, got a leaf of shape {tuple(g.shape)} of {g.dtype}; mask it out"
                )
        if not tree.leaves(updates):
            return updates, state
        mu = tree.add(updates, state.mu)
        q = tree.map(lambda _, own: own, updates, state.q)
        wide = tree.map(lambda m, own: tree.cast_leaf(tree.whole(m), own.dtype), mu, q)
        ps, rs, qs = tree.batched(lambda m, own: _powered(m, own, eps), wide, q)
        left = tree.map(
            lambda m, p, r: m - tree.settled(tree.cast_leaf((1 - beta) * (p @ r.mT), m.dtype), m), mu, ps, rs
        )
        u = tree.map(lambda p, own: p @ own.mT, ps, qs)
        return tree.cast_like(u, updates), DionState(tree.carry(left, state.mu), tree.carry(qs, state.q))

    return GradientTransformation(init, update, leafwise=True)


def _powered(m: Tensor, q: Tensor, eps: Scalar) -> tuple[Tensor, Tensor, Tensor]:
    """Orthogonal columns, the right factor that goes with them, and that with columns of length one."""
    nothing = (m == 0).all(-1, keepdim=True).all(-2, keepdim=True)
    p = torch.where(nothing, 0.0, torch.linalg.qr(m @ q).Q)
    r = m.mT @ p
    found = torch.where(nothing, q, r)
    norms = torch.linalg.vector_norm(found, dim=-2, keepdim=True)
    return p, r, found / tree.cast_leaf(norms + eps, norms.dtype)


@factory
def dion(
    learning_rate: ScalarOrSchedule,
    rank_fraction: float = 1.0,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    mode: str = "spectral_unclamped",
    rank_multiple_of: int = 1,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Move matrices along the largest directions of their momentum, made orthogonal; the others wait.

    It takes matrices only. Give embeddings, output layers, biases and gains to another rule, with `partition`.

    Maths:
        update <- -learning_rate (shape factor scale_by_dion(g) + weight_decay p)

    Args:
        learning_rate: Spectral norm of a step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank_fraction: Share of the shorter side, no unit, in (0, 1].
        beta: What is left of the directions that moved, no unit, in [0, 1).
        eps: Added to the norms of columns, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        mode: How the factor depends on the shape, see `scale_by_matrix_shape`.
        rank_multiple_of: As in `scale_by_dion`.
        seed: As in `scale_by_dion`.

    Shapes:
        params: needed. state: that of `scale_by_dion`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex, or no parameters are given.

    Differs from: the authors' code in the default of `weight_decay` (0.01 there), and in that a decomposition makes the
        columns orthogonal, where theirs samples rows first, which is faster on several devices.

    Source: Ahn et al., 2025, arXiv:2504.05295, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dion(0.1, 0.5), torch.zeros(2, 2)
        >>> u, _ = tx.update(torch.diag(torch.tensor([100.0, 0.0])), tx.init(params), params)
        >>> u.diag().round(decimals=3)
        tensor([-0.1000,  0.0000])
    """
    return chain(
        scale_by_dion(rank_fraction, beta, eps, rank_multiple_of=rank_multiple_of, seed=seed),
        scale_by_matrix_shape(mode),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
