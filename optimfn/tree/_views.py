"""What a rule sees in the place of what it was given: reals for complex numbers, float32 for half precision.

Masks and labels that are functions still judge the leaves as users know them.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._typing import Tree
from ._core import as_real, at_least_float32, cast_leaf, is_leaf, leaves, map, unflatten

_WHOLE = "__whole__"  # where a view knows its leaf; the symbols of a trace ask no leaf for such a name


def as_reals(params: Tree) -> Tree:
    """`as_real` of every leaf. Masks and labels that are functions are given the leaves as they were, see `resolve`."""
    return _note(map(as_real, params), params)


def widen(tree: Tree) -> Tree:
    """Every leaf of float16 or bfloat16 in float32; the tree itself if it has none.

    Masks and labels that are functions are given the leaves as they were, see `resolve`, until `forget`.
    """
    if not any(isinstance(x, Tensor) and at_least_float32(x.dtype) != x.dtype for x in leaves(tree)):
        return tree
    return _note(map(_widened, tree), tree)


def narrow(tree: Tree) -> Tree:
    """The leaves that `widen` has made as they were, for a state in the dtypes of the parameters."""

    def leaf(x: Tensor) -> Tensor:
        before: Tensor = getattr(x, _WHOLE, x)
        return before if at_least_float32(before.dtype) == x.dtype else x

    return map(leaf, tree)


def forget(tree: Tree) -> None:
    """Let the leaves of a view be tensors like others, as they go out."""
    for leaf in leaves(tree):
        if hasattr(leaf, _WHOLE):
            delattr(leaf, _WHOLE)


def resolve(prefix: Tree | Callable[[Tree], Tree], params: Tree) -> Tree:
    """What a mask or labels stand for: a function is called, a tree is taken as it is, also one that can be called.

    While a rule is traced, the function is called on the very leaves: it may look at more than shapes. Of `as_reals` it
    is shown the complex leaves, and of `widen` those of half precision, as users know them.
    """
    if not (callable(prefix) and is_leaf(prefix)):
        return prefix
    found = leaves(params)
    if any(hasattr(leaf, _WHOLE) for leaf in found):
        params = unflatten(params, [_whole(leaf) for leaf in found])
    decide = next((leaf.decide for leaf in leaves(params) if hasattr(leaf, "decide")), None)
    return prefix(params) if decide is None else decide(prefix, params)


def _widened(x: Any) -> Any:
    return cast_leaf(x, at_least_float32(x.dtype)) if isinstance(x, Tensor) else x


def _note(views: Tree, tree: Tree) -> Tree:
    for view, leaf in zip(leaves(views), leaves(tree), strict=True):
        if view is not leaf:
            setattr(view, _WHOLE, leaf)
    return views


def _whole(leaf: Any) -> Any:
    """The leaf behind a view, or behind a view of a view."""
    while hasattr(leaf, _WHOLE):
        leaf = getattr(leaf, _WHOLE)
    return leaf
