"""The nearest point of a set, for whole trees: to be applied to parameters after each step.

Norms, sums and inner products are those of all leaves together, as if they were one vector. The results keep the dtypes
of the leaves; float16 and bfloat16 are accumulated in float32.
"""

import math

import torch
from torch import Tensor

from .. import tree as trees
from .._checks import check_nonnegative, check_number, check_positive
from .._typing import Scalar, Tree


def projection_non_negative(tree: Tree) -> Tree:
    """The nearest tree without negative elements.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_non_negative(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return trees.map(torch.relu, tree)


def projection_box(tree: Tree, lower: Tree, upper: Tree) -> Tree:
    """The nearest tree whose elements lie between bounds.

    Args:
        tree: The tree.
        lower: Lower bound: a number, a tree like the first, or a prefix of one.
        upper: Upper bound, likewise.

    Raises:
        ValueError: if a bound is not a prefix of the tree.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_box({"a": torch.tensor([-1.0, 2.0]), "b": torch.ones(1)}, 0.0, {"a": 1.0, "b": 0.5})
        {'a': tensor([0., 1.]), 'b': tensor([0.5000])}
    """
    return trees.map(trees.clip, tree, trees.broadcast(lower, tree), trees.broadcast(upper, tree))


def projection_hypercube(tree: Tree, scale: Tree = 1.0) -> Tree:
    """The nearest tree whose elements lie between 0 and `scale`.

    Args:
        tree: The tree.
        scale: Upper bound: a number, a tree like the first, or a prefix of one.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_hypercube(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return projection_box(tree, 0.0, scale)


def projection_simplex(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """The nearest tree without negative elements whose sum is `scale`.

    Maths:
        p = max(x - t, 0), with t such that the elements of p add up to scale

    Args:
        tree: A tree of real leaves.
        scale: The sum, in the unit of the elements, > 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Held, Wolfe and Crowder, 1974; Duchi et al., 2008, figure 1.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_simplex(torch.tensor([0.5, 1.0, -2.0]))
        tensor([0.2500, 0.7500, 0.0000])
    """
    check_positive(scale=scale)
    leaves = trees.leaves(tree)
    if not trees.size(tree):
        return tree
    dtype = trees.wide_dtype(trees.dtype(tree, "promote"), leaves[0].device)
    x = torch.cat([trees.cast_leaf(leaf, dtype).reshape(-1) for leaf in leaves])
    # Relative to the largest, the sums are of the size of the result however large the elements are.
    top = x.detach().amax()
    falling = torch.sort(x - top, descending=True).values
    rank = torch.arange(1, len(falling) + 1, device=x.device)
    inside = falling * rank > torch.cumsum(falling, 0) - scale
    threshold = (torch.where(inside, falling, 0).sum() - scale) / inside.sum()

    def leaf(x: Tensor) -> Tensor:
        return trees.cast_leaf(torch.relu(trees.cast_leaf(x, dtype) - top - threshold), x.dtype)

    return trees.map(leaf, tree)


def projection_l1_sphere(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """A nearest tree whose magnitudes add up to `scale`.

    Args:
        tree: A tree of real leaves; a zero counts as positive.
        scale: The sum, in the unit of the elements, > 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Differs from: optax, which leaves zeros at zero, so that the result may miss the sphere.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_l1_sphere(torch.tensor([-0.5, 1.0]))
        tensor([-0.2500,  0.7500])
    """
    sizes = projection_simplex(trees.map(torch.abs, tree), scale)
    return trees.map(lambda size, x: torch.where(x < 0, -size, size), sizes, tree)


def projection_l1_ball(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """The nearest tree whose magnitudes add up to at most `scale`.

    Args:
        tree: A tree of real leaves.
        scale: The largest sum, in the unit of the elements, > 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Source: Duchi et al., 2008, section 4.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_l1_ball(torch.tensor([-0.5, 1.0])), of.projection_l1_ball(torch.tensor([-0.5, 0.25]))
        (tensor([-0.2500,  0.7500]), tensor([-0.5000,  0.2500]))
    """
    return trees.where(trees.norm(tree, ord=1, wide=True) <= scale, tree, projection_l1_sphere(tree, scale))


def projection_l2_sphere(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """A nearest tree whose global norm is `scale`.

    Args:
        tree: The tree; from zero the result has all elements equal.
        scale: The norm, in the unit of the elements, >= 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Differs from: optax, where a tree of zeros gives NaN.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_l2_sphere(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    check_nonnegative(scale=scale)
    norm = trees.norm(tree, wide=True)
    zero = norm == 0
    factor = scale / torch.where(zero, 1.0, norm)
    even = scale / math.sqrt(max(trees.size(tree), 1))

    def leaf(x: Tensor) -> Tensor:
        return trees.cast_leaf(torch.where(zero, torch.zeros_like(x) + even, trees.scale(factor, x)), x.dtype)

    return trees.map(leaf, tree)


def projection_l2_ball(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """The nearest tree whose global norm is at most `scale`.

    Args:
        tree: The tree.
        scale: The largest norm, in the unit of the elements, > 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_l2_ball(torch.tensor([3.0, 4.0])), of.projection_l2_ball(torch.tensor([0.3, 0.4]))
        (tensor([0.6000, 0.8000]), tensor([0.3000, 0.4000]))
    """
    check_positive(scale=scale)
    return trees.shrink(tree, trees.norm(tree, wide=True), scale)


def projection_linf_ball(tree: Tree, scale: Scalar = 1.0) -> Tree:
    """The nearest tree whose elements have at most the magnitude `scale`.

    Args:
        tree: A tree of real leaves.
        scale: The largest magnitude, in the unit of the elements, >= 0.

    Raises:
        TypeError, ValueError: naming the argument and its value.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_linf_ball(torch.tensor([-3.0, 0.5]))
        tensor([-1.0000,  0.5000])
    """
    check_nonnegative(scale=scale)
    return trees.clip(tree, -scale, scale)


def projection_vector(x: Tree, a: Tree) -> Tree:
    """The nearest multiple of a tree.

    Args:
        x: The tree.
        a: The tree to take a multiple of, like `x`; of zeros, the result is zero.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_vector(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        tensor([1.3200, 1.7600])
    """
    return trees.cast_like(trees.scale(_along(x, a, 0.0), a), x)


def projection_hyperplane(x: Tree, a: Tree, b: Scalar) -> Tree:
    """The nearest tree whose inner product with `a` is `b`.

    Args:
        x: The tree.
        a: Normal of the plane, like `x`, not zero.
        b: The inner product.

    Raises:
        TypeError: if `b` is not a number or a 0-dim tensor.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_hyperplane(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 5.0)
        tensor([0.2800, 1.0400])
    """
    check_number(b=b)
    return trees.cast_like(trees.add_scale(x, -_along(x, a, b), a), x)


def projection_halfspace(x: Tree, a: Tree, b: Scalar) -> Tree:
    """The nearest tree whose inner product with `a` is at most `b`.

    Args:
        x: A tree of real leaves.
        a: Outer normal of the half space, like `x`, not zero.
        b: The largest inner product.

    Raises:
        TypeError: if `b` is not a number or a 0-dim tensor.

    Example:
        >>> import torch, optimfn as of
        >>> of.projection_halfspace(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 20.0)
        tensor([1., 2.])
    """
    check_number(b=b)
    return trees.cast_like(trees.add_scale(x, -torch.relu(_along(x, a, b)), a), x)


def _along(x: Tree, a: Tree, b: Scalar) -> Tensor:
    """How many times `a` lies between `x` and the plane where the inner product with `a` is `b`."""
    size = trees.vdot(a, a, wide=True)
    return (trees.vdot(a, x, wide=True) - b) / torch.where(size == 0, 1.0, size)
