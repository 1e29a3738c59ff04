"""Eigenvectors of symmetric matrices, many at once: found anew, or followed from step to step."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._checks import check_steps


class Refined(NamedTuple):
    """A basis, one step nearer to the eigenvectors."""

    vectors: Tensor  # (..., n, n), in columns
    order: Tensor  # (..., n) int64: which of the old vectors each came of
    values: Tensor  # (..., n): what the matrix is along the old vectors, in the new order


def eigenvectors(matrix: Tensor, *, descending: bool = True) -> tuple[Tensor, Tensor]:
    """Find all eigenvalues and eigenvectors of symmetric matrices, in one batch, whatever they hold.

    Where an eigenvalue is zero up to rounding, LAPACK leaves it to the rounding which vectors of that space it gives.
    Here they are near the axes, and the same on every machine up to rounding. A matrix that is not finite gives NaN.
    Where the solver fails in single precision it is tried in double precision, and then singular values are.

    Maths:
        matrix V = V diag(values),  V^H V = I,  to some n units of the largest eigenvalue

    Args:
        matrix: Symmetric, or Hermitian, matrices (..., n, n); float16 and bfloat16 are computed in float32.
        descending: Whether the largest eigenvalue comes first, rather than last.

    Returns:
        The eigenvalues (..., n), real, and the eigenvectors in the columns of (..., n, n).

    Raises:
        ValueError: if the matrices are not square.

    Example:
        >>> import torch, optimfn as of
        >>> values, vectors = of.eigenvectors(torch.diag(torch.tensor([0.0, 4.0, 0.0])))
        >>> values, vectors.abs().round(decimals=1)[:, 0]
        (tensor([4., 0., 0.]), tensor([0., 1., 0.]))
    """
    check_square(matrix)
    scaled, size = unit(matrix)
    if not matrix.numel():
        return scaled.real.new_zeros(scaled.shape[:-1]), scaled
    values, vectors = symmetric_eigen(scaled)
    if descending:
        values, vectors = values.flip(-1), vectors.flip(-1)
    vectors = _settle(values, vectors)
    return values * size.squeeze(-1), vectors + 0 * size


def refine_eigenvectors(matrix: Tensor, basis: Tensor, num_iters: int = 1, *, sort: bool = True) -> Refined:
    """Follow the eigenvectors of symmetric matrices that change slowly: one product and one QR, which cannot fail.

    Each iteration orders the basis by what the matrix is along its vectors, largest first, multiplies it by the matrix,
    and makes that orthogonal. Vectors along which the matrix is zero up to rounding stay as they are, as far as the
    others let them. None changes its sign.

    Maths:
        values = diag(V^H matrix V),  order from the largest to the smallest
        V <- Q of the QR decomposition of (matrix V[:, order])

    Args:
        matrix: Symmetric, or Hermitian, positive semidefinite matrices (..., n, n).
        basis: Orthogonal matrices (..., n, n), the vectors in columns.
        num_iters: Iterations, >= 1.
        sort: Whether the basis is ordered; otherwise each vector stays in its place.

    Returns:
        The new `vectors`; the `order`, so that `x[..., order]` goes with them what went with the old ones; and the
        `values` along the vectors that the last iteration began with, in the new order.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Vyas et al., 2024, arXiv:2409.11321, Algorithm 4.

    Example:
        >>> import torch, optimfn as of
        >>> of.refine_eigenvectors(torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2)).vectors.abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    check_steps(num_iters=num_iters, at_least=1)
    check_square(matrix)
    found = _refined(matrix, basis, sort)
    for _ in range(num_iters - 1):
        again = _refined(matrix, found.vectors, sort)
        found = Refined(again.vectors, found.order.gather(-1, again.order), again.values)
    return found


def _refined(matrix: Tensor, basis: Tensor, sort: bool) -> Refined:
    image = matrix @ basis
    values = (basis.conj() * image).sum(-2).real
    if not matrix.numel():
        return Refined(basis, values.long(), values)
    there = values > rounding(matrix) * values.amax(-1, keepdim=True)
    order = torch.argsort(torch.where(there, values, 0), dim=-1, descending=True, stable=True)
    if not sort:
        order = torch.zeros_like(order) + torch.arange(order.shape[-1], device=order.device)
    columns = along(torch.where(there.unsqueeze(-2), image, basis), order)
    return Refined(orthogonal(columns), order, values.gather(-1, order))


def along(x: Tensor, order: Tensor) -> Tensor:
    """The columns of matrices in another order."""
    return x.gather(-1, order.unsqueeze(-2).expand(x.shape))


def orthogonal(columns: Tensor) -> Tensor:
    """The Q of a QR decomposition, with the signs that leave a matrix that is orthogonal as it is."""
    q, r = torch.linalg.qr(columns)
    sign = torch.sgn(torch.diagonal(r, dim1=-2, dim2=-1))
    found: Tensor = q * torch.where(sign == 0, 1, sign).unsqueeze(-2)
    return found


def symmetric_eigen(a: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of finite matrices of ordinary size; where it does not converge, the next best."""
    values: Tensor
    vectors: Tensor
    if torch.compiler.is_compiling():  # there is no exception to catch in a graph
        values, vectors = torch.linalg.eigh(a)
        return values, vectors
    try:
        values, vectors = torch.linalg.eigh(a)
        return values, vectors
    except RuntimeError:
        wide = a.to(tree.wide_dtype(a.dtype, a.device))
    try:
        values, vectors = torch.linalg.eigh(wide)
    except RuntimeError:
        # The singular values of a shifted matrix without negative eigenvalues are its eigenvalues.
        shift = torch.linalg.matrix_norm(wide).unsqueeze(-1)
        eye = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
        vectors, sizes, _ = torch.linalg.svd(wide + shift.unsqueeze(-1) * eye)
        values, vectors = (sizes - shift).flip(-1), vectors.flip(-1)
    return values.to(tree.real_dtype(a.dtype)), vectors.to(a.dtype)


def unit(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A symmetric matrix of size 1, in float32 at least, and its size; NaN if it is not finite."""
    a = tree.cast_leaf(matrix, torch.promote_types(matrix.dtype, torch.float32))
    if not a.numel():
        return a, a.real.new_ones((*a.shape[:-2], 1, 1))
    a = (a + a.transpose(-1, -2).conj()) / 2
    size = a.detach().abs().amax((-2, -1), keepdim=True)
    ordinary = torch.isfinite(size) & (size > 0)
    scaled = torch.where(ordinary, a / torch.where(ordinary, size, 1), 0)
    return scaled, torch.where(torch.isfinite(size), size, torch.nan)


def rounding(a: Tensor) -> float:
    """What a computed eigenvalue may be off, in units of the largest."""
    return a.shape[-1] * torch.finfo(a.dtype).eps


def check_square(matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must be square, got a tensor of shape {tuple(matrix.shape)}")


def _settle(values: Tensor, vectors: Tensor) -> Tensor:
    """The vectors of the eigenvalue zero, made what the axes are in their space, one after the other."""
    n = vectors.shape[-1]
    is_null = (values.abs() <= rounding(vectors) * values.abs().amax(-1, keepdim=True)).unsqueeze(-2)
    null = torch.where(is_null, vectors, 0)
    # A little of all axes, lest an axis that is not in the space leaves the choice open.
    i = torch.arange(1, n + 1, device=vectors.device, dtype=tree.real_dtype(vectors.dtype))
    beside = torch.cos(i.unsqueeze(-1).square() * i * 0.6180339887) * 0.01
    axes = torch.eye(n, dtype=vectors.dtype, device=vectors.device) + beside
    inside = null @ (null.transpose(-1, -2).conj() @ axes)
    found = orthogonal(torch.where(is_null, inside, vectors))
    nothing = is_null.all(-1, keepdim=True)
    eye = torch.eye(n, dtype=vectors.dtype, device=vectors.device)
    return torch.where(nothing, eye, torch.where(is_null, found, vectors))
