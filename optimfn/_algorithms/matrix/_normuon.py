"""NorMuon: Muon whose neurons all move alike."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain
from ..._checks import check_decay
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import orthogonalize, scale_by_matrix_shape
from ._newton_schulz import (
    Box,
    DimensionNumbers,
    MuonDimensionNumbers,
    fans,
    fit_all,
    on_matrices,
    orthogonal,
    resolve_dimensions,
    sides,
)

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
    weight_dimension_numbers: DimensionNumbers | None = None,
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
        weight_dimension_numbers: As in `orthogonalize`; norms are those of each matrix, also of a batch or of blocks.

    Shapes:
        updates: real matrices, or leaves with dimension numbers. state: mu like params; nu (rows,) per matrix. Memory:
            1 x params and a column of each.

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
    matrices = orthogonalize(ns_coeffs, ns_steps, eps, dtype=dtype, weight_dimension_numbers=weight_dimension_numbers)

    def dimensions(params: Params) -> Any:
        return resolve_dimensions(weight_dimension_numbers, params)

    def along_rows(squares: Updates, dims: Any) -> Updates:
        sums = tree.fold_each("sum", _inputs, squares, dims)
        return tree.map(
            lambda total, box, x: total / max(fans(x, box.content)[0], 1) if box.content else total, sums, dims, squares
        )

    def init(params: Params) -> NorMuonState:
        mu = tree.init_moment(params)
        nu = tree.outline(lambda x: along_rows(x, dimensions(params)), tree.init_moment(params, real=True))
        return NorMuonState(mu, nu)

    def update(
        updates: Updates, state: NorMuonState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, NorMuonState]:
        dims = dimensions(updates if params is None else params)
        mu = tree.update_moment(updates, state.mu, beta, 1)
        ahead = tree.update_moment(updates, mu, beta, 1) if nesterov else mu
        o, _ = matrices.rule(ahead, EmptyState(), params)
        nu = tree.update_moment(along_rows(tree.map(tree.abs_sq, o), dims), state.nu, b2, 1)
        w = tree.div_by_root(o, tree.map(_spread, nu, dims, o), _FLOOR)
        even = tree.map(lambda x, gain: tree.scale(gain, x), w, _gains(o, w, dims))
        return tree.cast_like(even, updates), NorMuonState(tree.carry(mu, state.mu), tree.carry(nu, state.nu))

    return GradientTransformation(init, update, leafwise=fit_all(weight_dimension_numbers))


def _inputs(x: Tensor, box: Box) -> tuple[int, ...] | None:
    """The axes of the inputs of a leaf; `None` where it is no matrix."""
    return None if box.content is None else sides(x, box.content)[1]


def _spread(own: Tensor, box: Box, x: Tensor) -> Tensor:
    """Numbers of rows with the axes of the inputs, of one element each."""
    for axis in sorted(sides(x, box.content)[1]):
        own = own.unsqueeze(axis)
    return own


def _gains(o: Updates, w: Updates, dims: Any) -> Updates:
    """For each matrix the norm that it had over that which it has: a number for the whole leaf, or for each row."""
    if all(tree.leaves(tree.map(lambda x, box: _is_one(x, box.content), o, dims))):
        sizes = tree.norms(o, wide=True), tree.norms(w, wide=True)
        return tree.map(lambda was, now: was / (now + _FLOOR), *sizes)
    rows = [tree.fold_each("sum", _inputs, tree.map(tree.abs_sq, x), dims, keepdim=True) for x in (o, w)]
    was, now = on_matrices(_total, rows, [dims, dims], "scale_by_normuon")
    return tree.map(lambda a, b: torch.sqrt(a) / (torch.sqrt(b) + _FLOOR), was, now)


def _total(rows: list[Tensor], dims: MuonDimensionNumbers) -> list[Tensor]:
    """In each row the sum over all rows of its matrix."""
    return orthogonal(rows, dims, lambda x: x.sum((-2, -1), keepdim=True).expand(x.shape))


def _is_one(x: Tensor, dims: MuonDimensionNumbers) -> bool:
    return dims.blocks is None and not sides(x, dims)[0]


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
    weight_dimension_numbers: DimensionNumbers | None = None,
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
        weight_dimension_numbers: As in `scale_by_normuon`.

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
        scale_by_normuon(
            ns_coeffs,
            ns_steps,
            beta,
            b2,
            eps,
            nesterov=nesterov,
            dtype=dtype,
            weight_dimension_numbers=weight_dimension_numbers,
        ),
        scale_by_matrix_shape(mode, weight_dimension_numbers),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
