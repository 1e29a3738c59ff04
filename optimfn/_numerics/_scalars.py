"""Numbers that stay finite, and their gradients too."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._checks import check_nonnegative, check_number
from .._typing import Scalar, Tree


def safe_increment(count: Tensor) -> Tensor:
    """`count + 1`, but the largest number of its dtype stays.

    The counts of this library are int64 and need no such care.

    Args:
        count: A tensor of whole or floating numbers.

    Raises:
        TypeError: if it is complex or bool.

    Example:
        >>> import torch, optimfn as of
        >>> of.safe_increment(torch.tensor([7, 127], dtype=torch.int8))
        tensor([  8, 127], dtype=torch.int8)
    """
    if count.dtype == torch.bool or count.is_complex():
        raise TypeError(f"count must hold whole or floating numbers, got {count.dtype}")
    most = (torch.finfo if count.is_floating_point() else torch.iinfo)(count.dtype).max
    below = count < most
    return torch.where(below, torch.where(below, count, 0) + 1, most)


def safe_norm(
    x: Tensor,
    min_norm: Scalar,
    ord: float | None = None,
    axis: int | Sequence[int] | None = None,
    keepdims: bool = False,
) -> Tensor:
    """`max(|x|, min_norm)`, with a gradient of zero where the norm is not above the bound, also at zero.

    Args:
        x: The tensor.
        min_norm: Lower bound, in the unit of `x`, >= 0.
        ord: Which norm; `None` means 2. Over two axes, if it is given, a matrix norm; else a vector norm.
        axis: Axis or axes to take it over; `None` means all.
        keepdims: Keep these axes with length 1.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> torch.func.grad(lambda x: of.safe_norm(x, 1e-3))(torch.zeros(2))
        tensor([0., 0.])
    """
    check_nonnegative(min_norm=min_norm)
    matrix = ord is not None and axis is not None and not isinstance(axis, int) and len(axis) == 2

    def norm(x: Tensor, keepdim: bool) -> Tensor:
        how: dict[str, Any] = {"dim": axis, "keepdim": keepdim}
        if matrix:
            size: Tensor = torch.linalg.matrix_norm(x, ord, **how)
        else:
            # In float64, where squares neither overflow nor vanish.
            how["dtype"] = tree.wide_dtype(x.dtype, x.device)
            size = torch.linalg.vector_norm(x, 2 if ord is None else ord, **how)
        return tree.cast_leaf(size, tree.real_dtype(x.dtype))

    small = norm(x, True) <= min_norm
    # Where the bound holds the norm is taken of something else, so that its gradient is not 0 / 0.
    size = norm(torch.where(small, torch.ones_like(x), x), keepdims)
    low = torch.zeros_like(size) + min_norm
    return torch.where(small if keepdims else small.reshape(size.shape), low, size)


def safe_root_mean_squares(x: Tensor, min_rms: Scalar) -> Tensor:
    """`max(rms(x), min_rms)`, with a gradient of zero where it is not above the bound, also at zero.

    Args:
        x: The tensor.
        min_rms: Lower bound, in the unit of `x`, >= 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> of.safe_root_mean_squares(torch.tensor([3.0, -3.0]), 1e-3)
        tensor(3.)
    """
    check_nonnegative(min_rms=min_rms)
    root = math.sqrt(max(x.numel(), 1))
    return safe_norm(x, min_rms * root) / root


def scale_gradient(inputs: Tree, scale: Scalar) -> Tree:
    """The inputs as they are, but with gradients that are multiplied by `scale` on their way back.

    Args:
        inputs: Any tree.
        scale: The factor, no unit; 0 stops the gradient.

    Raises:
        TypeError: if `scale` is not a number or a 0-dim tensor.

    Example:
        >>> import torch, optimfn as of
        >>> torch.func.grad(lambda x: of.scale_gradient(x, 0.5) ** 2)(torch.tensor(3.0))
        tensor(3.)
    """
    check_number(scale=scale)
    leaf: Callable[..., Tensor] = _ScaleGradient.apply
    return tree.map(lambda x: leaf(x, scale), inputs)


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Scalar) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Scalar], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return tree.cast_leaf(grad * ctx.scale, grad.dtype), None
