"""Roots of inverses of symmetric matrices, many at once."""

import functools
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._checks import check_choice, check_nonnegative, check_positive, check_steps
from .._typing import Scalar
from ._eigenbasis import check_square, rounding, symmetric_eigen, unit


class _Coupled(NamedTuple):
    """Newton's iteration for a root and, at the same time, for what is left to do."""

    left: Tensor  # goes to the identity
    root: Tensor
    error: Tensor  # largest element of what is left
    going: Tensor  # whether there is more to do


def inverse_root(
    matrix: Tensor, p: float, ridge: Scalar = 0.0, *, by: str = "eigh", num_iters: int = 100, tolerance: Scalar = 1e-6
) -> Tensor:
    """Compute `matrix^(-1/p)` of symmetric positive semidefinite matrices, in one batch.

    Where rounding, or whoever made the matrix, has left eigenvalues below the ridge, all are raised until the smallest
    is the ridge. A matrix that is not finite gives NaN.

    Maths:
        matrix + ridge I = V diag(l) V^H
        l <- l + max(ridge - min l, 0)
        root = V diag(l^(-1/p)) V^H

        by "pseudo": l is that of the matrix itself, and l^(-1/p) is 0 where l is at most n units of max l
        by "newton", coupled: M <- z (matrix + ridge I), X <- z^(1/p) I, z = (1 + p) / (2 |matrix + ridge I|)
            T = (1 + 1/p) I - M / p,  M <- T^p M,  X <- X T,  until max |M - I| <= tolerance, or it grows

    Args:
        matrix: Symmetric, or Hermitian, matrices (..., n, n); float16 and bfloat16 are computed in float32.
        p: The root, > 0; for "newton" a whole number.
        ridge: Least eigenvalue, in the unit of the matrix, >= 0.
        by: "eigh", by eigenvalues, which gives the root of a matrix that differs by some n units of its largest one;
            "pseudo", the same without the directions that have none; or "newton", products only.
        num_iters: Iterations of "newton" at most, >= 1.
        tolerance: Largest element of its error at which it stops, no unit, >= 0.

    Returns:
        The roots (..., n, n), symmetric.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Differs from: `matrix_inverse_pth_root`, optax's, which is "newton" with a ridge relative to the largest eigenvalue.

    Source: Shi et al., 2023, arXiv:2309.06497; Higham, 2008, "Functions of Matrices", equation 7.18.

    Example:
        >>> import torch, optimfn as of
        >>> of.inverse_root(torch.diag(torch.tensor([4.0, 16.0])), 2)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """
    check_positive(p=p)
    check_nonnegative(ridge=ridge, tolerance=tolerance)
    check_choice("by", by, ("eigh", "pseudo", "newton"))
    check_steps(num_iters=num_iters, at_least=1)
    check_square(matrix)
    if by == "newton" and p != int(p):
        raise ValueError(f"p must be a whole number for 'newton', got {p!r}")
    scaled, size = unit(matrix)
    if not matrix.numel():
        return matrix
    found = _newton(scaled, size, int(p), ridge, num_iters, tolerance) if by == "newton" else None
    root = _spectral(scaled, size, p, ridge, by) if found is None else found
    return tree.cast_leaf((root + root.transpose(-1, -2).conj()) / 2, matrix.dtype)


def _spectral(scaled: Tensor, size: Tensor, p: float, ridge: Scalar, by: str) -> Tensor:
    values, vectors = symmetric_eigen(scaled)
    own = values * size.squeeze(-1)
    if by == "pseudo":
        there = values > rounding(scaled) * values.amax(-1, keepdim=True)
        powers = torch.where(there, torch.where(there, own, 1) ** (-1 / p), 0) + 0 * own
    else:
        own = own + ridge
        raised = own + torch.clamp(ridge - own.amin(-1, keepdim=True), min=0)
        powers = tree.cast_leaf(raised, own.dtype) ** (-1 / p)
    return (vectors * powers.unsqueeze(-2)) @ vectors.transpose(-1, -2).conj()


def _newton(scaled: Tensor, size: Tensor, p: int, ridge: Scalar, num_iters: int, tolerance: Scalar) -> Tensor:
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    zero = size == 0
    unit_size = torch.where(zero, 1, size)
    a = scaled + tree.cast_leaf(ridge / unit_size, size.dtype) * eye
    z = (1 + p) / (2 * torch.linalg.matrix_norm(a, keepdim=True))

    def error(m: Tensor) -> Tensor:
        return (m - eye).abs().amax((-2, -1), keepdim=True)

    def turn(state: _Coupled) -> _Coupled:
        t = (1 + 1 / p) * eye - state.left / p
        left = functools.reduce(operator.matmul, [t] * p) @ state.left
        now = error(left)
        # Far from the end the largest element may grow a little; near it, only rounding makes it.
        near = state.error < 1 / (1 + scaled.shape[-1])
        better = state.going & (now < torch.where(near, 1, 1.2) * state.error)
        return _Coupled(
            torch.where(better, left, state.left),
            torch.where(better, state.root @ t, state.root),
            torch.where(better, now, state.error),
            better & (now > tolerance),
        )

    start = z * a
    begun = _Coupled(start, eye * z ** (1 / p), error(start), error(start) > tolerance)
    ended = tree.while_loop(lambda state: state.going.any(), turn, begun, num_iters)
    root: Tensor = ended.root * unit_size ** (-1 / p) + 0 * size
    return root
