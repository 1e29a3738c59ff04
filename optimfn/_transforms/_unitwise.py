"""Bound the size of updates by that of the parameters, unit by unit; and of gradients, example by example."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, leafwise, stateless
from .._checks import check_at_least, check_nonnegative, need_params
from .._recipe import factory
from .._torch import is_dtensor, replicate, wrapped_like
from .._typing import Params, Scalar, Tree, Updates


@factory
def adaptive_grad_clip(
    clipping: Scalar, eps: Scalar = 1e-3, axis: int | Sequence[int] | None = None
) -> GradientTransformation:
    """Shrink the updates of each unit so that their norm is at most a fraction of that of its parameters.

    Maths:
        bound = clipping max(|p|, eps)
        update <- g where |g| < bound, else g bound / max(|g|, 1e-6),  norms as in `unitwise_norm`

    Args:
        clipping: Largest ratio of the norms, no unit, >= 0.
        eps: Least norm of a parameter, so that one at zero can move, in its unit, >= 0.
        axis: Axis or axes that the norms are taken over; `None` means all but the first.

    Shapes:
        params: needed. state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax in which axes make a unit: see `unitwise_norm`.

    Source: Brock et al., 2021, arXiv:2102.06171, section 4.1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adaptive_grad_clip(0.1)
        >>> tx.update(torch.tensor([[3.0, 4.0], [0.0, 0.1]]), tx.init(None), torch.ones(2, 2) * 2**0.5)[0]
        tensor([[0.1200, 0.1600],
                [0.0000, 0.1000]])
    """
    check_nonnegative(clipping=clipping, eps=eps)

    def leaf(u: Tensor, of_u: Tensor, of_p: Tensor) -> Tensor:
        return tree.cast_leaf(unitwise_clip(of_u, clipping * tree.clip(of_p, min_value=eps), u), u.dtype)

    def clip(updates: Updates, params: Params | None) -> Updates:
        need_params("adaptive_grad_clip", params)
        own = tree.map(lambda _, p: p, updates, params)
        return tree.map(leaf, updates, _norms(updates, axis), _norms(own, axis))

    return leafwise(stateless(clip))


def unitwise_norm(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """The 2-norm of each unit of a tensor, in the place of each of its elements.

    A unit is what makes one output: in torch's layouts, (out, in), (out, in, width), (out, in, height, width) and so
    on, all axes but the first. A tensor with at most one axis longer than 1 is one unit.

    Args:
        x: The tensor; its squares are accumulated in float64.
        axis: Axis or axes to take the norm over, if it is not that.

    Differs from: optax, which expects (in, out), (height, width, in, out) and so on: there, the first axis of a matrix
        and all but the last of a longer shape.

    Example:
        >>> import torch, optimfn as of
        >>> of.unitwise_norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
        tensor([[ 5.,  5.],
                [10., 10.]])
    """
    norm: Tensor = _norms(x, axis)
    return norm


def _norms(leaves: Tree, axis: int | Sequence[int] | None) -> Tree:
    """`unitwise_norm` of each leaf."""

    def axes(x: Tensor) -> tuple[int, ...] | None:
        own = axis
        if own is None:
            one_unit = sum(size != 1 for size in x.shape) <= 1
            own = range(x.ndim) if one_unit else range(1, x.ndim)
        return ((own,) if isinstance(own, int) else tuple(own)) or None

    def spread(x: Tensor, norm: Tensor) -> Tensor:
        if axes(x) is None:
            return x.abs()
        return tree.cast_leaf(norm, tree.real_dtype(torch.promote_types(x.dtype, torch.float32))).expand(x.shape)

    return tree.map(spread, leaves, tree.fold_each("norm", axes, leaves, keepdim=True))


def unitwise_clip(g_norm: Tensor, max_norm: Tensor, grad: Tensor, div_eps: float = 1e-6) -> Tensor:
    """The gradient, times what makes its norm at most a bound, element by element.

    Args:
        g_norm: Norm that goes with each element, such as `unitwise_norm(grad)`.
        max_norm: Bound for each element.
        grad: The gradient.
        div_eps: Least divisor, in the unit of the gradient.

    Example:
        >>> import torch, optimfn as of
        >>> of.unitwise_clip(torch.tensor([2.0, 0.5]), torch.ones(2), torch.tensor([2.0, 0.5]))
        tensor([1.0000, 0.5000])
    """
    return torch.where(g_norm < max_norm, grad, grad * (max_norm / torch.clamp(g_norm, min=div_eps)))


def per_example_global_norm_clip(grads: Tree, l2_norm_clip: Scalar) -> tuple[Tree, Tensor]:
    """Sum the gradients of a batch of examples, each shrunk so that its global norm is at most a bound.

    Args:
        grads: A tree whose leaves have the examples along their first axis.
        l2_norm_clip: Largest norm of the gradient of an example, in its unit, >= 0.

    Returns:
        The sum, in at least float32, and how many examples were shrunk, as a 0-dim int64 tensor. An example with an
        infinite or NaN element adds nothing, so that no example changes the sum by more than the bound.

    Raises:
        TypeError, ValueError: naming the argument and its value.
        ValueError: if a leaf is 0-dim or the leaves have different numbers of examples.

    Source: Abadi et al., 2016, arXiv:1607.00133, Algorithm 1 without the noise.

    Example:
        >>> import torch, optimfn as of
        >>> of.per_example_global_norm_clip(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.6, 0.8]]), 2.5)
        (tensor([2.1000, 2.8000]), tensor(1))
    """
    check_at_least(0, l2_norm_clip=l2_norm_clip)
    sizes = {tuple(g.shape[:1]) for g in tree.leaves(grads)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"grads must have the examples along the first axis of every leaf, got sizes {sorted(sizes)}")
    sums = tree.fold_each("norm", lambda g: tuple(range(1, g.ndim)) or None, grads)
    parts = [x.abs().to(tree.wide_dtype(x.dtype, x.device)) for x in tree.leaves(tree.whole(sums))]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    bound = torch.zeros_like(norms) + l2_norm_clip
    known = norms.isfinite()
    # An infinite bound, or a gradient of zero, shrinks nothing. What is shrunk stays within the bound when its products
    # are rounded.
    above = known & (norms > bound)
    factor = torch.where(above, bound * (1 - 2**-22) / torch.where(above, norms, 1.0), known.to(norms.dtype))

    def total(g: Tensor) -> Tensor:
        own, weight = (_beside(x, g) for x in (known, factor))
        examples = torch.where(own.reshape(-1, *[1] * (g.ndim - 1)), tree.cast_leaf(g, _wide(g)), 0)
        weight = weight.to(examples.dtype)
        if is_dtensor(g):
            return tree.fold("sum", examples * weight.reshape(-1, *[1] * (g.ndim - 1)), (0,))
        return torch.einsum("b,b...->...", weight, examples)

    return tree.map(total, grads), (factor < 1).sum()


def per_example_layer_norm_clip(grads: Tree, global_l2_norm_clip: Scalar, uniform: bool = True) -> tuple[Tree, Tree]:
    """Sum the gradients of a batch of examples, each leaf shrunk so that its norm is at most its share of a bound.

    Maths:
        bound of leaf i of K, with D_i of the D elements:
        global_l2_norm_clip / sqrt(K)          if `uniform`
        global_l2_norm_clip sqrt(D_i / D)      else

    Args:
        grads: A tree whose leaves have the examples along their first axis.
        global_l2_norm_clip: Largest norm of the gradient of an example, in its unit, >= 0.
        uniform: Whether all leaves have an equal share.

    Returns:
        The sums, and for each leaf how many examples were shrunk.

    Raises:
        TypeError, ValueError: naming the argument and its value.
        ValueError: if a leaf is 0-dim.

    Source: McMahan et al., 2018, arXiv:1710.06963.

    Example:
        >>> import torch, optimfn as of
        >>> of.per_example_layer_norm_clip([torch.tensor([[3.0, 4.0]])], 2.5)
        ([tensor([1.5000, 2.0000])], [tensor(1)])
    """
    check_at_least(0, global_l2_norm_clip=global_l2_norm_clip)
    sizes = [math.prod(g.shape[1:]) for g in tree.leaves(grads)]

    def leaf(g: Tensor, size: int) -> tuple[Tensor, Tensor]:
        share = 1 / len(sizes) if uniform else size / max(sum(sizes), 1)
        summed, shrunk = per_example_global_norm_clip(g, global_l2_norm_clip * share**0.5)
        return summed, shrunk

    pairs = [leaf(g, size) for g, size in zip(tree.leaves(grads), sizes, strict=True)]
    return tree.unflatten(grads, [s for s, _ in pairs]), tree.unflatten(grads, [n for _, n in pairs])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _beside(x: Tensor, leaf: Any) -> Tensor:
    """A number for each example, which all processes have, to go with a leaf."""
    if not is_dtensor(leaf):
        return x
    made: Tensor = wrapped_like(x, leaf, x.shape, [replicate()] * leaf.device_mesh.ndim)
    return made
