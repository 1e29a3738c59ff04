"""Take the size, or the mean, out of updates."""

from dataclasses import replace

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, leafwise, stateless
from .._checks import check_nonnegative, check_number
from .._recipe import factory
from .._typing import Params, Scalar, Updates


@factory
def normalize_by_update_norm(scale_factor: Scalar = 1.0, eps: Scalar = 1e-6) -> GradientTransformation:
    """Divide all updates together by their global norm.

    Maths:
        update <- scale_factor g / (|g| + eps),  |g| the 2-norm over all leaves

    Args:
        scale_factor: Norm of the result, roughly, any number.
        eps: Added to the norm, in the unit of the updates, >= 0; with 0, updates that are all zero become NaN.

    Shapes:
        updates: any leaves; their squares are accumulated in float64. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> of.normalize_by_update_norm().update(torch.tensor([3.0, 4.0]), of.EmptyState())[0]
        tensor([0.6000, 0.8000])
    """
    check_number(scale_factor=scale_factor)
    check_nonnegative(eps=eps)

    def normalize(updates: Updates, params: Params | None) -> Updates:
        return tree.scale(scale_factor / (tree.norm(updates, wide=True) + eps), updates)

    return replace(stateless(normalize), elementwise=True)


@factory
def normalize() -> GradientTransformation:
    """Divide all updates together by their global norm; updates that are all zero stay so.

    Maths:
        update <- g / |g|,  |g| the 2-norm over all leaves

    Shapes:
        updates: any leaves; their squares are accumulated in float64. state: empty.

    Differs from: optax, where updates that are all zero become NaN.

    Example:
        >>> import torch, optimfn as of
        >>> of.normalize().update(torch.tensor([3.0, 4.0]), of.EmptyState())[0]
        tensor([0.6000, 0.8000])
    """

    def whole(updates: Updates, params: Params | None) -> Updates:
        norm = tree.norm(updates, wide=True)
        return tree.scale(1 / torch.where(norm == 0, 1.0, norm), updates)

    return replace(stateless(whole), elementwise=True)


@factory
def centralize() -> GradientTransformation:
    """Subtract from the updates of each unit their mean: over all axes but the first.

    In torch's layout the first axis of a weight is that of its outputs. Leaves with fewer than two axes pass.

    Shapes:
        state: empty.

    Source: Yong et al., 2020, arXiv:2004.01461.

    Example:
        >>> import torch, optimfn as of
        >>> of.centralize().update(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]), of.EmptyState())[0]
        tensor([[-1.,  0.,  1.],
                [-2., -1.,  3.]])
    """

    def axes(u: Tensor) -> tuple[int, ...] | None:
        return tuple(range(1, u.ndim)) if u.ndim > 1 else None

    def center(updates: Updates, params: Params | None) -> Updates:
        means = tree.fold_each("mean", axes, updates, keepdim=True)
        return tree.map(lambda u, mean: u - mean if u.ndim > 1 else u, updates, means)

    return leafwise(stateless(center))
