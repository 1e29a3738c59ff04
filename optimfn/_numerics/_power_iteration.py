"""The largest singular value of matrices, between two bounds."""

import torch
from torch import Tensor

from .. import tree
from .._checks import check_steps


def spectral_norm(x: Tensor, squarings: int = 4) -> tuple[Tensor, Tensor]:
    """Find two numbers between which the largest singular value of matrices lies, by products of matrices alone.

    Nothing is drawn at random and nothing is read from the device. The bounds hold for every matrix, up to rounding of
    the dtype in the products; they are at most `r^(1/2^(squarings + 2))` apart, `r` the shorter side: 1.15 for 512.
    For an eigenvector, and for linear functions, there is `power_iteration`.

    Maths:
        G = X X^T or X^T X, the smaller one;  P = G^(2^squarings), by squaring
        upper = |P|_F^(1/2^(squarings + 1)),  lower = upper / r^(1/2^(squarings + 2))

    Args:
        x: Matrices (..., m, n); float16 and bfloat16 are computed in float32.
        squarings: How often the product is squared, >= 0.

    Returns:
        The bounds, real, of the shape (...), in the dtype of the computation.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Gelfand's formula for the norm of Schatten.

    Example:
        >>> import torch, optimfn as of
        >>> lower, upper = of.spectral_norm(torch.diag(torch.tensor([3.0, 4.0])))
        >>> lower.round(decimals=2), upper.round(decimals=2)
        (tensor(3.9600), tensor(4.))
    """
    check_steps(squarings=squarings)
    if x.ndim < 2:
        raise ValueError(f"x must be a matrix, or a batch of them, got a tensor of shape {tuple(x.shape)}")
    x = tree.cast_leaf(x, torch.promote_types(x.dtype, torch.float32))
    least = min(x.shape[-2:])
    if not least:
        zero = torch.zeros(x.shape[:-2], dtype=tree.real_dtype(x.dtype), device=x.device)
        return zero, zero
    # The largest magnitude comes out first, and the norm of each square, so that nothing overflows or vanishes.
    size = _or_one(x.abs().amax((-2, -1), keepdim=True))
    x = x / size
    p = x.mH @ x if x.shape[-2] > x.shape[-1] else x @ x.mH
    logarithm = torch.zeros_like(size)
    for step in range(squarings):
        norm = _or_one(torch.linalg.vector_norm(p, dim=(-2, -1), keepdim=True))
        logarithm = logarithm + torch.log(norm) / 2**step
        p = p / norm
        p = p @ p
    last = torch.linalg.vector_norm(p, dim=(-2, -1), keepdim=True)
    root = torch.exp(0.5 * (logarithm + torch.log(_or_one(last)) / 2**squarings))
    upper = torch.where(last == 0, 0.0, size * root)[..., 0, 0]
    return upper / least ** (0.5 ** (squarings + 2)), upper


def _or_one(x: Tensor) -> Tensor:
    """What can be divided by."""
    return torch.where(x == 0, 1.0, x)
