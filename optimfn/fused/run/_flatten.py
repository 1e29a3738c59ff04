"""Take trees apart and put them together, for one structure known beforehand.

A step meets the same trees again and again. Functions made for their structure take the leaves out in a few
microseconds for hundreds of leaves, where a general flattening sorts every dict again; and they notice when the
structure has changed.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Set
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

from torch import Tensor

from ... import tree
from ..._typing import Tree
from ._paths import names_of

Read = Callable[[Any, list[Any]], bool]
Build = Callable[[Iterator[Any]], Any]
Functions = tuple[Read, Build, Hashable]


class Structure:
    """The structure of a tree; `None` is a leaf, dict keys stay in their order.

    Equal structures have an equal `key`. `read(tree, leaves)` appends the leaves of a tree and says whether it has this
    structure; `build(leaves)` makes one of an iterator over leaves.

    Args:
        example: A tree of this structure.
    """

    def __init__(self, example: Tree) -> None:
        self.read, self.build, self.key = _functions(example)

    def flatten(self, other: Tree) -> list[Any] | None:
        """The leaves of a tree, or `None` if it has another structure."""
        leaves: list[Any] = []
        return leaves if self.read(other, leaves) else None

    def unflatten(self, leaves: list[Any]) -> Tree:
        """A tree of this structure with these leaves."""
        return self.build(iter(leaves))


class Form:
    """The structures of parameters, state, gradients and extra arguments, which are flattened together.

    Args:
        trees: An example.
        opened: The arguments into which the rule looks; of others, lists and the like are leaves.
    """

    def __init__(self, trees: tuple[Any, ...], opened: Set[str]) -> None:
        self.opened = opened
        self.structures = list(map(Structure, trees))
        self.key = tuple([one.key for one in self.structures])
        pairs = zip(self.structures, trees, strict=True)
        ends = list(accumulate(len(one.flatten(own) or ()) for one, own in pairs))
        self.fixed_size, self.size = ends[1], ends[-1]  # leaves of parameters and state come first
        self.grads = range(ends[1], ends[2])

    def flatten(self, trees: tuple[Any, ...]) -> list[Any] | None:
        """The leaves of arguments, or `None` if they have another structure."""
        leaves: list[Any] = []
        return leaves if all(one.read(own, leaves) for one, own in zip(self.structures, trees, strict=True)) else None

    def unflatten(self, leaves: list[Any]) -> tuple[Any, ...]:
        """Arguments with these leaves."""
        rest = iter(leaves)
        return tuple([one.build(rest) for one in self.structures])

    @cached_property
    def paths(self) -> list[tuple[tuple[Any, ...], int]]:
        """The path of each leaf, and its number."""
        return tree.leaves_with_path(self.unflatten([*range(self.size)]))

    @cached_property
    def names(self) -> list[str]:
        """A name for each leaf, for readers."""
        return names_of(self.paths)

    @cached_property
    def result_key(self) -> Hashable:
        """The key of a result, parameters and state, of the same structure."""
        return Structure(self.unflatten([*range(self.size)])[:2]).key


class OtherStructure(Exception):
    """Where a leaf was, there is a node."""


def are_leaves(found: Collection[Any]) -> bool:
    """Whether no node is among what was read for leaves: reading is quick, and looks at nothing where a leaf was."""
    return all(map(_is_leaf, dict(zip(map(type, found), found, strict=True)).values()))  # the class tells


def _is_leaf(node: Any) -> bool:
    return node is None or isinstance(node, Tensor) or tree.is_leaf(node)


def _functions(example: Any) -> Functions:
    if _is_leaf(example):
        return _read_leaf, next, None
    kind, size = type(example), len(example) if isinstance(example, dict | list | tuple) else 0
    if kind is dict:
        keys = list(example)
        return _functions_of(
            example.values(),
            (dict, *keys),
            lambda node: type(node) is dict and list(node) == keys,
            dict.values,
            lambda values: dict(zip(keys, values, strict=True)),
        )
    if kind in (list, tuple) or (isinstance(example, tuple) and hasattr(example, "_fields")):
        return _functions_of(
            example,
            (kind, size),
            lambda node: type(node) is kind and len(node) == size,
            iter,
            getattr(kind, "_make", kind),
        )
    return _general_functions(example)


def _read_leaf(node: Any, leaves: list[Any]) -> bool:
    leaves.append(node)
    return True


def _functions_of(
    children: Collection[Any],
    key: Hashable,
    fits: Callable[[Any], bool],
    open_node: Callable[[Any], Iterable[Any]],
    make: Callable[[Iterable[Any]], Any],
) -> Functions:
    """For a node with these children.

    Args:
        children: Those of the example.
        key: Says what node it is, but for the children.
        fits: Whether something is such a node.
        open_node: Gives the children of one.
        make: Makes one of its children.
    """
    if all(map(_is_leaf, children)):
        size = len(children)

        def read(node: Any, leaves: list[Any]) -> bool:
            if not fits(node):
                return False
            leaves += open_node(node)
            return True

        return read, lambda leaves: make(list(islice(leaves, size))), (key, None)

    readers, builders, inner = zip(*map(_functions, children), strict=True)

    def read_nested(node: Any, leaves: list[Any]) -> bool:
        return fits(node) and all(reader(child, leaves) for reader, child in zip(readers, open_node(node), strict=True))

    return read_nested, lambda leaves: make([build(leaves) for build in builders]), (key, inner)


def _general_functions(example: Any) -> Functions:
    """For ordered dicts, deques and the nodes that others have registered."""
    leaves, structure = tree.flatten(example)
    size = len(leaves)
    del leaves  # a structure outlives its example

    def read(node: Any, leaves: list[Any]) -> bool:
        own, other = tree.flatten(node)
        leaves += own
        return bool(other == structure)

    return read, lambda leaves: structure.unflatten(islice(leaves, size)), structure
