"""Dion2: Muon on the rows that matter most, with the others kept for later."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_dtype, check_fraction, check_nonnegative, check_positive
from ..._numerics._newton_schulz import check_coefficients, polynomials
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._muon import scale_by_matrix_shape
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

_SAFETY = 1.02  # by which the authors divide beside the norm


class Dion2State(NamedTuple):
    """Dion2's memory."""

    mu: Updates  # sum of the gradients that did not move the parameters yet, like params


@factory
def scale_by_dion2(
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    ns_coeffs: tuple[Any, ...] | str = "polar_express",
    ns_steps: int = 5,
    eps: Scalar = 1e-8,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Sum the updates, and make those rows of the sum orthogonal that are largest; the others wait.

    A share of the rows costs its square of Muon's products. Of a tall matrix it is columns.

    Maths:
        mu <- mu + g
        K = the ceil(fraction rows) rows of mu with the largest sums of magnitudes
        update[K] <- orthogonal(mu[K]), update <- 0 elsewhere
        mu[K] <- ef_decay mu[K]

    Args:
        fraction: Share of the rows, no unit, in (0, 1].
        ef_decay: What is left of the rows that moved, no unit, in [0, 1].
        ns_coeffs: The coefficients of `newton_schulz`, no unit.
        ns_steps: Number of its steps, >= 1.
        eps: Added to 1.02 times the norm that is divided by, in the unit of `|g|`, >= 0.
        dtype: Dtype in which the rows are made orthogonal.
        weight_dimension_numbers: As in `orthogonalize`; each matrix of a batch or of blocks has rows of its own.

    Shapes:
        updates: real matrices, or leaves with dimension numbers. state: mu like params. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf is no matrix or is complex.

    Source: Ahn et al., 2025, arXiv:2512.16928.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.scale_by_dion2(0.5), torch.zeros(2, 3)
        >>> tx.update(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), tx.init(params))[0][1]
        tensor([0., 0., 0.])
    """
    check_positive(fraction=fraction)
    check_fraction(fraction=fraction, ef_decay=ef_decay)
    check_nonnegative(eps=eps)
    check_dtype(dtype=dtype)
    steps = check_coefficients(ns_coeffs, ns_steps)

    def chosen(m: Tensor) -> Tensor:
        """The update of matrices (..., rows, columns) with no more rows than columns."""
        rows = m.shape[-2]
        best = torch.topk(m.abs().sum(-1), math.ceil(fraction * rows), dim=-1).indices
        best = best.unsqueeze(-1).expand(*best.shape, m.shape[-1])
        part = torch.gather(m, -2, best)
        wide = tree.cast_leaf(part, torch.promote_types(m.dtype, torch.float32))
        size = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
        o = polynomials(tree.cast_leaf(wide / (_SAFETY * size + eps), dtype), steps)
        return torch.scatter(torch.zeros_like(m), -2, best, tree.cast_leaf(o, m.dtype))

    def matrices(ms: list[Tensor], dims: MuonDimensionNumbers) -> list[Tensor]:
        return orthogonal(ms, dims, chosen, squares_by_outputs=True)

    def moved(us: list[Tensor], dims: MuonDimensionNumbers) -> list[Tensor]:
        """Ones in the rows that moved."""
        return orthogonal(us, dims, _not_zero, squares_by_outputs=True)

    def init(params: Params) -> Dion2State:
        return Dion2State(tree.init_moment(params))

    def update(
        updates: Updates, state: Dion2State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Dion2State]:
        if any(g.is_complex() for g in tree.leaves(updates)):  # by every process, see `tree.on_full_matrix`
            raise ValueError("dion2 takes real matrices only, got a complex leaf; mask it out")
        dims = resolve_dimensions(weight_dimension_numbers, updates if params is None else params)
        mu = tree.add(updates, state.mu)
        o = on_matrices(matrices, mu, dims, "dion2")
        # What moved is told by what it became: rows of zeros decay to zeros, moved or not.
        if all(tree.leaves(tree.map(lambda _, box: box.content.blocks is None, o, dims))):
            sizes = tree.fold_each("sum", _along_rows, tree.map(torch.abs, o), dims, keepdim=True)
        else:
            sizes = on_matrices(moved, o, dims, "dion2")
        left = tree.map(lambda m, size: torch.where(size > 0, tree.scale(ef_decay, m), m), mu, sizes)
        return tree.cast_like(o, updates), Dion2State(tree.carry(left, state.mu))

    return GradientTransformation(init, update, leafwise=fit_all(weight_dimension_numbers))


def _along_rows(x: Tensor, box: Box) -> tuple[int, ...]:
    """The axes along the rows of the shorter side."""
    fan_in, fan_out = fans(x, box.content)
    return sides(x, box.content)[1 if fan_in >= fan_out else 2]


def _not_zero(x: Tensor) -> Tensor:
    return tree.cast_leaf(x.abs().sum(-1, keepdim=True) > 0, x.dtype).expand(x.shape)


@factory
def dion2(
    learning_rate: ScalarOrSchedule,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    ns_coeffs: tuple[Any, ...] | str = "polar_express",
    ns_steps: int = 5,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    *,
    mode: str = "spectral_unclamped",
    dtype: torch.dtype = torch.bfloat16,
    weight_dimension_numbers: DimensionNumbers | None = None,
) -> GradientTransformation:
    """Move the rows of each matrix whose gradients have summed up most, made orthogonal: a share of Muon's products.

    It takes matrices only. Give embeddings, output layers, biases and gains to another rule, with `partition`.

    Maths:
        update <- -learning_rate (shape factor scale_by_dion2(g) + weight_decay p)

    Args:
        learning_rate: Spectral norm of a step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        fraction: Share of the rows, no unit, in (0, 1].
        ef_decay: What is left of the rows that moved, no unit, in [0, 1].
        ns_coeffs: The coefficients of `newton_schulz`, no unit.
        ns_steps: Number of its steps, >= 1.
        eps: Added to 1.02 times the norm that is divided by, in the unit of `|g|`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        mode: How the factor depends on the shape, see `scale_by_matrix_shape`.
        dtype: Dtype in which the rows are made orthogonal.
        weight_dimension_numbers: As in `scale_by_dion2`.

    Shapes:
        params: needed. state: that of `scale_by_dion2`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if a leaf has not two axes or is complex, or no parameters are given.

    Differs from: the authors' code in the default of `weight_decay` (0.01 there).

    Source: Ahn et al., 2025, arXiv:2512.16928.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.dion2(0.1, fraction=0.5), torch.zeros(2, 3)
        >>> tx.update(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), tx.init(params), params)[0][0] < -0.05
        tensor([ True, False, False])
    """
    return chain(
        scale_by_dion2(
            fraction,
            ef_decay,
            ns_coeffs,
            ns_steps,
            eps,
            dtype=dtype,
            weight_dimension_numbers=weight_dimension_numbers,
        ),
        scale_by_matrix_shape(mode, weight_dimension_numbers),
        add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
