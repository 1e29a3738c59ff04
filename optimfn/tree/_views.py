"""What a rule sees in the place of what it was given: real leaves for complex ones, float32 for half precision.

Masks and labels that are functions still judge the leaves as users know them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._hints import shown as in_short
from .._typing import Tree
from ._core import as_real, at_least_float32, cast_leaf, leaves, leaves_with_path, map, map_nodes, unflatten
from ._nodes import is_leaf

_WHOLE = "__whole__"  # where a view knows its leaf; the symbols of a trace ask no leaf for such a name


class _Given(threading.local):
    """The gradients of a call without parameters, as users know them."""

    leaves: dict[Any, Tensor] | None = None


_given = _Given()


@contextlib.contextmanager
def shown(updates: Tree) -> Iterator[None]:
    """Have masks and labels judge these leaves where there are no parameters, also after others have been computed."""
    before, _given.leaves = _given.leaves, dict(leaves_with_path(updates))
    try:
        yield
    finally:
        _given.leaves = before


def as_reals(params: Tree) -> Tree:
    """`as_real` of every leaf. Masks and labels that are functions are given the leaves as they were, see `resolve`."""
    return _note(map(as_real, params), params)


class SplitRealAndImaginaryArrays(NamedTuple):
    """Stands for a complex leaf: two real ones, of its shape."""

    real: Any
    imaginary: Any


def split_parts(tree: Tree, like: Tree) -> Tree:
    """The tree with two real leaves in the place of each complex one of another tree.

    Masks and labels that are functions are given the leaves as they were, see `resolve`, until `forget`.
    """

    def leaf(other: Any, x: Any) -> Any:
        if not (isinstance(other, Tensor) and other.is_complex()):
            return x
        parts = (x, x) if not isinstance(x, Tensor) else as_real(x).unbind(-1) if x.is_complex() else (x, x * 0)
        return SplitRealAndImaginaryArrays(*parts)

    parts = map(leaf, like, tree)
    map(_note_part, tree, parts)
    return parts


def widen(tree: Tree) -> Tree:
    """Every leaf of float16 or bfloat16 in float32; the tree itself if it has none.

    Masks and labels that are functions are given the leaves as they were, see `resolve`, until `forget`.
    """
    if not any(isinstance(x, Tensor) and at_least_float32(x.dtype) != x.dtype for x in leaves(tree)):
        return tree
    return _note(map(_widened, tree), tree)


def seen_in(parts: Tree, whole: Tree) -> Tree:
    """The parts, with masks and labels that are functions given the whole leaves, see `resolve`, until `forget`."""
    return _note(parts, whole)


def seen_as(tree: Tree, like: Tree) -> Tree:
    """The tree, with masks and labels that are functions given what they are given for another, see `resolve`."""
    for leaf, other in zip(leaves(tree), leaves(like), strict=True):
        if leaf is not other and hasattr(other, _WHOLE):
            setattr(leaf, _WHOLE, getattr(other, _WHOLE))
    return tree


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

    While a rule is traced, the function is called on the very leaves: it may look at more than shapes. Of real and
    imaginary parts it is shown the complex leaves, and of `widen` those of half precision, as users know them.
    """
    if not (callable(prefix) and is_leaf(prefix)):
        return prefix
    params = map_nodes(_is_split, params)
    found = leaves(params)
    if any(hasattr(leaf, _WHOLE) for leaf in found):
        params = unflatten(params, [_whole(leaf) for leaf in found])
    elif _given.leaves is not None:
        params = unflatten(params, [_before(*named) for named in leaves_with_path(params)])
    decide = next((leaf.decide for leaf in leaves(params) if hasattr(leaf, "decide")), None)
    try:
        return prefix(params) if decide is None else decide(prefix, params)
    except (AttributeError, TypeError) as error:
        if is_leaf(params) or f"'{type(params).__name__}'" not in str(error):
            raise
        raise TypeError(
            f"{in_short(prefix)} is given the tree of all parameters, a {type(params).__name__}, and fails. For a "
            "function of one leaf, give tree.mask_by(function), or tree.label_by(function) for labels"
        ) from error


def _widened(x: Any) -> Any:
    return cast_leaf(x, at_least_float32(x.dtype)) if isinstance(x, Tensor) else x


def _is_split(_: Any, node: Any) -> tuple[bool, Any]:
    """Whether a node is a complex leaf in two parts, and that leaf; where they were computed, a leaf made of them."""
    if not (isinstance(node, SplitRealAndImaginaryArrays) and isinstance(node.real, Tensor)):
        return False, None  # also where another mask, or an absent gradient, has left no leaf
    return True, node.real if hasattr(node.real, _WHOLE) else torch.complex(*node)


def _note_part(leaf: Any, part: Any) -> None:
    if isinstance(part, SplitRealAndImaginaryArrays):
        for own in part:
            setattr(own, _WHOLE, leaf)


def _note(views: Tree, tree: Tree) -> Tree:
    for view, leaf in zip(leaves(views), leaves(tree), strict=True):
        if view is not leaf:
            setattr(view, _WHOLE, leaf)
    return views


def _before(path: Any, leaf: Any) -> Any:
    """What stood in the place of a leaf when a call without parameters began."""
    assert _given.leaves is not None
    given = _given.leaves.get(path, leaf)
    return given if given.shape == leaf.shape else leaf


def _whole(leaf: Any) -> Any:
    """The leaf behind a view, or behind a view of a view."""
    while hasattr(leaf, _WHOLE):
        leaf = getattr(leaf, _WHOLE)
    return leaf
