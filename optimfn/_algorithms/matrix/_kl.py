"""Factors of gradients that the other axes have whitened, as minimise the Kullback-Leibler divergence."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import tree
from ..._typing import Scalar
from ._axes import Axes, Layout, adjoint, outer, scaled, seen, times

_LEAST, _MOST = 10, 4000  # between which a scale is held, in the authors' code


def statistics(layout: Layout, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    """For each axis the product of the gradient that the others whiten, and its mean squares along the basis."""
    n, d = len(layout.axes), len(layout.shape)
    basis, scales = given[:n], given[n:]
    products: list[Tensor] = []
    squares: list[Tensor] = []
    turned, flat = seen(layout, x), layout._replace(ndim=d)
    for axis, q in zip(layout.axes, basis, strict=True):
        turned = times(turned, axis - d, adjoint(q))
    for i, axis in enumerate(layout.axes):
        others = [None if j == i else e for j, e in enumerate(scales)]
        size = math.prod(layout.shape) / layout.shape[axis]
        white = scaled(layout, turned, others)
        # Along this axis it is in the basis, so its product is turned back.
        inside = outer(flat, i, white) / size
        products.append(basis[i] @ inside @ adjoint(basis[i]))
        squares.append(torch.diagonal(inside, dim1=-2, dim2=-1).real)
    return (*products, *squares)


def whitened(eps: Scalar, layout: Layout, x: Tensor, *scales: Tensor) -> Tensor:
    """A leaf in the basis times the inverse roots of its eigenvalues, which eps bounds."""
    y = seen(layout, x)
    w = scaled(layout, torch.ones_like(y), scales)
    return tree.cast_leaf(y * (w / (1 + eps * w)), x.dtype).reshape(x.shape)


def new_scales(old: Sequence[Axes], squares: Sequence[Tensor], decay: Scalar) -> list[Tensor]:
    """Inverse roots of eigenvalues that have taken in the mean squares."""
    own = [e for node in old for e in node.axes]
    values = tree.lerp([torch.where(e == 0, 0, e**-2) for e in own], list(squares), 1 - decay)

    def leaf(value: Tensor) -> Tensor:
        there = value > 0
        found = torch.where(there, torch.where(there, value, 1).rsqrt(), 0)
        return torch.clamp(found, max=max(_LEAST, min(value.shape[-1], _MOST)))

    return [leaf(value) for value in values]
