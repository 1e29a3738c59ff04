"""Eigenvalues, roots of matrices, and least squares, without decompositions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._checks import check_nonnegative, check_positive, check_steps
from .._typing import Scalar, Tree


class _Eigen(NamedTuple):
    vector: Tree
    image: Tree
    value: Tensor


class _Root(NamedTuple):
    m: Tensor
    h: Tensor
    last_h: Tensor
    error: Tensor
    good: Tensor


def power_iteration(
    matrix: Tensor | Callable[[Tree], Tree],
    *,
    v0: Tree | None = None,
    num_iters: int = 100,
    error_tolerance: Scalar = 1e-6,
    key: int | Tensor = 0,
) -> tuple[Tensor, Tree]:
    """Find the eigenvalue of largest magnitude of a matrix, and its eigenvector.

    It converges if the matrix is diagonalisable and no other eigenvalue has that magnitude.

    Maths:
        v <- A v / |A v|,  value <- v . A v,  until |A v - value v| <= error_tolerance |value|

    Args:
        matrix: A square matrix (n, n), or a linear function of trees.
        v0: Where to begin: (n,), or a tree for a function, which needs it. `None` means random numbers in (-1, 1).
        num_iters: Iterations at most, >= 1.
        error_tolerance: Relative error at which to stop, no unit, >= 0.
        key: What the random numbers are a function of.

    Returns:
        The eigenvalue, 0-dim, and the eigenvector, of norm 1; for a matrix of zeros, 0 and where it began.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> value, vector = of.power_iteration(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> value
        tensor(3.)
    """
    check_steps(num_iters=num_iters, at_least=1)
    check_nonnegative(error_tolerance=error_tolerance)
    if isinstance(matrix, Tensor):
        _check_square(matrix)
        times: Callable[[Tree], Tree] = matrix.matmul
        v0 = 2 * tree.random_like(key, matrix[0], tree.uniform) - 1 if v0 is None else v0
    elif v0 is None:
        raise ValueError("v0 must be given where matrix is a function, got None")
    else:
        times = matrix

    def far(state: _Eigen) -> Tensor:
        residual = tree.norm(tree.sub(state.image, tree.scale(state.value, state.vector)))
        return ~(residual <= error_tolerance * state.value.abs())

    def turn(state: _Eigen) -> _Eigen:
        vector = _normalized(state.image, state.vector)
        image = times(vector)
        return _Eigen(vector, image, tree.vdot(vector, image))

    start = _normalized(v0, v0)
    image = times(start)
    state = tree.while_loop(far, turn, _Eigen(start, image, 0 * tree.vdot(start, image)), num_iters)
    return state.value, _normalized(state.image, state.vector)


def matrix_inverse_pth_root(
    matrix: Tensor, p: int, num_iters: int = 100, ridge_epsilon: Scalar = 1e-6, error_tolerance: Scalar = 1e-6
) -> tuple[Tensor, Tensor]:
    """Compute `matrix^(-1/p)` by the coupled Newton iteration.

    Maths:
        A = matrix + ridge_epsilon max(l, 1e-16) I,  l the largest eigenvalue
        z = (1 + p) / (2 |A|),  M <- z A,  H <- z^(1/p) I
        T = (1 + 1/p) I - M / p,  M <- T^p M,  H <- H T
        until max |M - I| <= error_tolerance, or it grows by a fifth

    Args:
        matrix: A symmetric positive semidefinite matrix (n, n); float16 and bfloat16 are computed in float32.
        p: The root, >= 1.
        num_iters: Iterations at most, >= 0.
        ridge_epsilon: What to add to the eigenvalues, relative to the largest, no unit, >= 0.
        error_tolerance: Largest element of the error at which to stop, no unit, >= 0.

    Returns:
        The root, and the error, 0-dim.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Differs from: optax, which computes in float32 always, and in which `p` is a power of 2 up to 8.

    Source: Higham, 2008, "Functions of Matrices", equation 7.18; Anil et al., 2020, arXiv:2002.09018.

    Example:
        >>> import torch, optimfn as of
        >>> of.matrix_inverse_pth_root(torch.diag(torch.tensor([4.0, 16.0])), 2)[0]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """
    check_steps(p=p, at_least=1)
    check_steps(num_iters=num_iters)
    check_nonnegative(ridge_epsilon=ridge_epsilon, error_tolerance=error_tolerance)
    _check_square(matrix)
    a = tree.cast_leaf(matrix, torch.promote_types(matrix.dtype, torch.float32))
    identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
    largest, _ = power_iteration(a)
    a = a + ridge_epsilon * torch.clamp(largest, min=1e-16) * identity
    z = (1 + p) / (2 * tree.norm(a))

    def error(m: Tensor) -> Tensor:
        return (m - identity).abs().amax()

    def turn(state: _Root) -> _Root:
        t = (1 + 1 / p) * identity - state.m / p
        m = torch.linalg.matrix_power(t, p) @ state.m
        return _Root(m, state.h @ t, state.h, error(m), error(m) < 1.2 * state.error)

    start = identity * z ** (1 / p)
    begun = _Root(z * a, start, start, error(z * a), torch.ones_like(z, dtype=torch.bool))
    ended = tree.while_loop(lambda state: (state.error > error_tolerance) & state.good, turn, begun, num_iters)
    return tree.cast_leaf(torch.where(ended.good, ended.h, ended.last_h), matrix.dtype), ended.error


def nnls(A: Tensor, b: Tensor, iters: int, L: Scalar | None = None) -> Tensor:
    """Minimise `|A x - b|` over `x` without negative elements, by accelerated projected gradients.

    Maths:
        x' = max(p - (A^T A p - A^T b) / L, 0),  c' = (1 + sqrt(1 + 4 c^2)) / 2
        p <- x' + (c - 1) (x' - x) / c'

    Args:
        A: Matrix (m, n).
        b: Vector (m,), or several as a matrix (m, k).
        iters: Iterations, >= 0.
        L: Upper bound on the largest eigenvalue of `A^T A`, > 0; `None` means its Frobenius norm, or its largest column
            sum if that is smaller.

    Returns:
        The solution (n,) or (n, k).

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Differs from: optax, which has an argument `unroll` for its compiler.

    Source: Polyak, 2015, "Projected gradient method for non-negative least square".

    Example:
        >>> import torch, optimfn as of
        >>> of.nnls(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0]), 100)
        tensor([0.0000, 1.7000])
    """
    check_steps(iters=iters)
    if A.ndim != 2 or b.ndim not in (1, 2) or len(A) != len(b):
        raise ValueError(
            f"A and b must have the shapes (m, n) and (m,) or (m, k), got {tuple(A.shape)}, {tuple(b.shape)}"
        )
    # Of size 1 the products neither overflow nor vanish; the solution scales along.
    unit_a, unit_b = _size(A), _size(b)
    a = tree.scale(1 / unit_a, A)
    gram, image = a.mT @ a, a.mT @ tree.scale(1 / unit_b, b)
    if L is not None:
        check_positive(L=L)
        L = L / unit_a**2
    else:
        sums = gram.abs().sum(0).amax() if gram.numel() else gram.sum()
        bound = torch.minimum(tree.norm(gram), sums)
        L = torch.where(bound == 0, 1.0, bound)
    x = p = torch.zeros_like(image)
    c = 0.0
    for _ in range(iters):
        ahead = (1 + (1 + 4 * c**2) ** 0.5) / 2
        new = torch.relu(p - tree.cast_leaf((gram @ p - image) / L, p.dtype))
        x, p, c = new, new + (c - 1) / ahead * (new - x), ahead
    solution: Tensor = tree.scale(unit_b / unit_a, x)
    return solution


def _normalized(v: Tree, otherwise: Tree) -> Tree:
    """`v` with norm 1, or something else if it is zero."""
    norm = tree.norm(v, wide=True)
    zero = norm == 0
    return tree.where(zero, otherwise, tree.scale(1 / torch.where(zero, 1.0, norm), v))


def _size(x: Tensor) -> Tensor:
    """The largest magnitude, in float64; 1 if there is none."""
    size = tree.wide(tree.norm(x.detach(), ord=math.inf))
    return torch.where(size == 0, 1.0, size)


def _check_square(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, got a tensor of shape {tuple(matrix.shape)}")
