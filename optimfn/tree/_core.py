"""Maps and walks over trees. With `_nodes` the only module that knows which pytree library is underneath.

Two conventions hold for every verb and are kept nowhere else. `None` is an empty leaf: where the
first tree of a `map` has `None`, so has the result, and the function is not called. And `carry`, the
verb that writes a state, keeps the old value there. Together they say what an absent gradient does:
its update is absent and its state stays as it was.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import optree
import optree.utils
import torch
from torch import Tensor

from .._typing import Tree
from ._nodes import Nodes, is_leaf


def map(f: Callable[..., Any], tree: Tree, /, *rest: Tree) -> Tree:
    """Apply `f` to the leaves of `tree` and to what stands in the same place in the other trees.

    Where `tree` has `None` the result has `None` and `f` is not called. The other trees may have
    whole subtrees, or `None`, where `tree` has a leaf; `f` receives them as they are.

    Args:
        f: Function of one leaf per tree.
        tree: The tree whose structure the result has.
        *rest: Trees of the same structure, or deeper ones.

    Raises:
        ValueError: if another tree differs in structure.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.map(torch.add, {"w": torch.ones(2), "b": None}, {"w": torch.ones(2), "b": None})
        {'w': tensor([2., 2.]), 'b': None}
    """
    return _map(f, tree, *rest) if torch.compiler.is_compiling() else _mapping.map(f, tree, *rest)


def each(f: Callable[..., Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """What a function makes of each of several rows of leaves."""
    if not torch.compiler.is_compiling() and _mapping.each is not None:
        return _mapping.each(f, rows)
    return [f(*row) for row in rows]


class _Mapping(threading.local):
    """Who maps functions in this thread, instead of us."""

    each: Callable[[Callable[..., Any], Sequence[Sequence[Any]]], list[Any]] | None = None

    def map(self, f: Callable[..., Any], tree: Tree, /, *rest: Tree) -> Tree:
        """Collect the rows of arguments, and put the results in their places."""
        if self.each is None:
            return _map(f, tree, *rest)
        rows: list[Sequence[Any]] = []

        def note(*row: Any) -> int:
            rows.append(row)
            return len(rows) - 1

        places = _map(note, tree, *rest)
        found = self.each(f, rows)
        return _map(lambda place: found[place], places)


_mapping = _Mapping()


@contextlib.contextmanager
def mapped_by(each: Callable[[Callable[..., Any], Sequence[Sequence[Any]]], list[Any]]) -> Iterator[None]:
    """Have another apply functions to the leaves of trees, given all rows of arguments, in this thread."""
    before, _mapping.each = _mapping.each, each
    try:
        yield
    finally:
        _mapping.each = before


def _map(f: Callable[..., Any], tree: Tree, /, *rest: Tree) -> Tree:
    # Plain Python: half the time of optree's map for flat dicts and lists of tensors, the usual trees, and up to
    # twice for many small dicts; and dynamo traces it rightly, see Nodes.open. There every instruction counts, hence
    # the short ways for the usual nodes.
    kind = type(tree)
    if kind is dict:
        columns = [[other[key] for key in tree] for other in _alike(tree, rest)] if rest else ()
        return dict(zip(tree, _map_rows(f, tree.values(), columns), strict=True))
    if kind is list or kind is tuple:
        return kind(_map_rows(f, tree, _alike(tree, rest)))
    if isinstance(tree, Tensor) or is_leaf(tree):
        return None if tree is None else f(tree, *rest)
    _, children, rebuild = Nodes.open(tree)
    return rebuild(_map_rows(f, children, [Nodes.children(other) for other in _alike(tree, rest)]))


def leaves(tree: Tree) -> list[Any]:
    """The leaves from left to right, dict keys in sorted order; `None` is not among them."""
    return Nodes.leaves(tree) if torch.compiler.is_compiling() else optree.tree_leaves(tree)


def structure(tree: Tree) -> Hashable:
    """What is left of a tree without its leaves; equal for trees of the same shape."""
    if torch.compiler.is_compiling():  # which cannot compare what optree makes
        return Nodes.structure(tree)
    return optree.tree_structure(tree, none_is_leaf=True)


def flatten(tree: Tree) -> tuple[list[Any], Any]:
    """The leaves, `None` among them, and the structure, whose `unflatten(leaves)` puts them together again."""
    leaves, structure = optree.tree_flatten(tree, none_is_leaf=True)
    return leaves, structure


def unflatten(like: Tree, new_leaves: list[Any]) -> Tree:
    """A tree of the structure of `like` with other leaves, given in the order of `leaves`."""
    if torch.compiler.is_compiling():
        return Nodes.refilled(like, iter(new_leaves))
    return optree.tree_unflatten(optree.tree_structure(like), new_leaves)


def broadcast(prefix: Tree, tree: Tree) -> Tree:
    """Copy every leaf of `prefix` over the whole subtree of `tree` that stands in its place.

    Args:
        prefix: A tree that `tree` extends; a single value stands for all leaves.
        tree: The tree that gives the structure of the result.

    Raises:
        ValueError: if `prefix` is not a prefix of `tree`, or has `None` where `tree` has leaves.

    Example:
        >>> import torch, optimfn as of
        >>> params = {"body": [torch.ones(1), torch.ones(1)], "head": torch.ones(1)}
        >>> of.tree.broadcast({"body": True, "head": False}, params)
        {'body': [True, True], 'head': False}
    """
    if isinstance(tree, ParamsPlaceholder):
        return type(tree)(True)
    if prefix is None:
        if leaves(tree):
            raise ValueError("a prefix must have a value for every leaf of the tree; it has None in the place of some")
        return tree
    if is_leaf(prefix):
        return map(lambda _: prefix, tree)
    _, children, rebuild = Nodes.open(prefix)
    (other,) = _alike(prefix, [tree])
    return rebuild([broadcast(*row) for row in zip(children, Nodes.children(other), strict=True)])


def walk(tree: Tree) -> list[tuple[tuple[Any, ...], Any]]:
    """`(path, node)` for every node and leaf, parents first, leaves in the order of `leaves`.

    A path is a tuple of field names, dict keys and positions. The root comes first, with the path `()`.
    """
    return _walk((), tree)


def leaves_with_path(tree: Tree) -> list[tuple[tuple[Any, ...], Any]]:
    """`(path, leaf)` for every leaf, in the order of `leaves`."""
    return [(path, node) for path, node in walk(tree) if node is not None and is_leaf(node)]


def paths(tree: Tree) -> Tree:
    """A tree of the same structure whose leaves are their own paths, joined with dots.

    A nested `{"head": {"weight": w}}` and a flat `{"head.weight": w}` give the same path.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.paths({"head": [torch.ones(1), torch.ones(1)]})
        {'head': ['head.0', 'head.1']}
    """
    return map_nodes(lambda path, node: (node is not None and is_leaf(node), join_path(path)), tree)


def join_path(path: tuple[Any, ...]) -> str:
    """`("mu", "head", 0)` as `"mu.head.0"`."""
    return ".".join(str(entry) for entry in path)


def cast_leaf(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`x` in `dtype`; no work if it has it already or `dtype` is `None`."""
    return x if dtype is None or x.dtype == dtype else x.to(dtype)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float32 for float16 and bfloat16, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which the squares of all numbers of `dtype` have room: float64, complex where it is."""
    # A device without float64 makes do.
    return torch.promote_types(dtype, torch.float32 if device.type == "mps" else torch.float64)


REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of magnitudes: as `dtype.to_real()`, which `torch.compile` does not know."""
    return REAL.get(dtype, dtype)


def as_real(x: Tensor) -> Tensor:
    """`x`, or if it is complex a view of it with real and imaginary part along a last axis."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def as_complex(x: Tensor, like: Tensor) -> Tensor:
    """The other way round of `as_real`: `x`, made complex again if `like` is."""
    return torch.view_as_complex(x.contiguous()) if like.is_complex() else x


def wide(count: float | Tensor) -> Tensor:
    """A count, or any other scalar, as a 0-dim tensor in float64 (float32 on devices without float64)."""
    x = count if isinstance(count, Tensor) else torch.tensor(count, dtype=torch.float64)
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


class ParamsPlaceholder(NamedTuple):
    """Stands for a whole tree of parameters, so that one can see where `init` puts such trees."""

    leaf: Any

    def within(self) -> tuple[str, ...]:
        """The names that lead from the parameters to the part it stands for."""
        return ()

    def part(self, name: str) -> "ParamsPlaceholder":
        """What stands for one field of the parameters, where a rule wants a named tuple of trees."""
        return _part((*self.within(), name))(self.leaf)


@functools.cache
def _part(path: tuple[str, ...]) -> type[ParamsPlaceholder]:
    return type("ParamsPlaceholder", (ParamsPlaceholder,), {"__slots__": (), "within": lambda self: path})


def map_nodes(change: Callable[..., tuple[bool, Any]], tree: Tree, /, *rest: Tree) -> Tree:
    """Rebuild a tree from the root down: `change(path, node, *others)` says whether to replace a node.

    It returns `(True, replacement)`, or `(False, anything)` to go on to the children of the node.
    """
    return _map_nodes(change, (), tree, *rest)


def _map_nodes(change: Callable[..., tuple[bool, Any]], path: tuple[Any, ...], node: Any, *others: Any) -> Any:
    replaced, value = change(path, node, *others)
    if replaced or is_leaf(node):
        return value if replaced else node
    names, children, rebuild = Nodes.open(node)
    if not children:
        return node
    rows = zip(names, children, *[Nodes.children(other) for other in _alike(node, others)], strict=True)
    return rebuild([_map_nodes(change, (*path, name), *nodes) for name, *nodes in rows])


def map_parts(f: Callable[..., Any], tree: Tree, /, *rest: Tree) -> Tree:
    """Like `map`, where a leaf of another tree may stand for the whole subtree of `tree` in its place."""
    if tree is None or is_leaf(tree):
        return None if tree is None else f(tree, *rest)
    _, children, rebuild = Nodes.open(tree)
    if not children:
        return tree
    columns = [[o] * len(children) if o is None or is_leaf(o) else Nodes.children(*_alike(tree, [o])) for o in rest]
    return rebuild([map_parts(f, *row) for row in zip(children, *columns, strict=True)])


def _map_rows(f: Callable[..., Any], first: Iterable[Any], others: Sequence[Iterable[Any]]) -> list[Any]:
    return [f(*row) if isinstance(row[0], Tensor) else _map(f, *row) for row in zip(first, *others, strict=True)]


def _alike(node: Any, others: Sequence[Any]) -> Sequence[Any]:
    """The others, if each is a node of the same kind with the same keys."""
    for other in others:
        if type(other) is not type(node) or (type(node) is dict and other.keys() != node.keys()):
            raise ValueError(f"trees differ in structure: {_kind(node)} in one, {_kind(other)} in the other")
    return others


def _kind(node: Any) -> str:
    return f"a dict with keys {list(node)}" if isinstance(node, dict) else f"a {type(node).__name__}"


def _walk(path: tuple[Any, ...], node: Any) -> list[tuple[tuple[Any, ...], Any]]:
    found = [(path, node)]
    if not is_leaf(node):
        names, children, _ = Nodes.open(node)
        for name, child in zip(names, children, strict=True):
            found += _walk((*path, name), child)
    return found
