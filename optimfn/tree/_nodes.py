"""How trees are opened and closed: what optree does, in code that compilers get through quickly."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import optree
import optree.utils
import torch
from torch import Tensor

from .._torch import constant
from .._typing import Tree


def is_leaf(node: Any) -> bool:
    """Whether a node is a leaf, `None` included."""
    kind = type(node)
    if kind is dict or kind is list or kind is tuple:
        return False
    return node is None or isinstance(node, Tensor) or Nodes.is_other_leaf(node)


class Nodes:
    """How trees are opened and closed: what optree does, in code that compilers get through quickly."""

    @staticmethod
    def open(node: Any) -> tuple[Sequence[Any], Sequence[Any], Callable[[list[Any]], Any]]:
        """The names and children of a node, and a function from new children to a node like it."""
        # The usual nodes by hand: dynamo traces optree's own functions instruction by instruction, half of the time
        # of compiling a step, and folds them wrongly for dicts whose children are all constants.
        kind = type(node)
        if kind is dict:
            keys = Nodes.keys(node)
            return keys, [node[key] for key in keys], lambda new: {**node, **dict(zip(keys, new, strict=True))}
        if kind is list or kind is tuple:
            return range(len(node)), node, kind
        if Nodes.are_plain_named_tuples(kind):
            return kind._fields, node, lambda new: kind(*new)
        children, metadata, entries, unflatten_node = optree.tree_flatten_one_level(node, none_is_leaf=True)
        names = optree.namedtuple_fields(kind) if optree.is_namedtuple_instance(node) else entries
        return names, children, lambda new: unflatten_node(metadata, new)

    @staticmethod
    def keys(node: dict[Any, Any]) -> Sequence[Any]:
        """The keys of a dict in the order in which optree has its children, also those of several types."""
        keys = list(node)
        return [keys[i] for i in Nodes.order(*keys)]

    @staticmethod
    def children(node: Any) -> Sequence[Any]:
        """The children of a node of a kind that `open` has opened."""
        kind = type(node)
        if kind is dict:
            return [node[key] for key in Nodes.keys(node)]
        usual = kind is list or kind is tuple or Nodes.are_plain_named_tuples(kind)
        children: Sequence[Any] = node if usual else Nodes.open(node)[1]
        return children

    @staticmethod
    def leaves(node: Tree) -> list[Any]:
        """The leaves, as `tree.leaves` has them."""
        if node is None:
            return []
        kind = type(node)
        if kind is not dict and kind is not list and kind is not tuple and is_leaf(node):
            return [node]
        found: list[Any] = []
        for child in Nodes.children(node):
            if isinstance(child, Tensor):
                found.append(child)
            elif child is not None:
                found += Nodes.leaves(child)
        return found

    @staticmethod
    def structure(node: Tree) -> Hashable:
        """What `tree.structure` stands for, as tuples."""
        if isinstance(node, Tensor) or is_leaf(node):
            return node is None
        names, children, _ = Nodes.open(node)
        return type(node), (*names,), (*[Nodes.structure(child) for child in children],)

    @staticmethod
    def refilled(node: Tree, new_leaves: Iterator[Any]) -> Tree:
        """A tree like the node with the next of other leaves."""
        if isinstance(node, Tensor) or is_leaf(node):
            return None if node is None else next(new_leaves)
        _, children, rebuild = Nodes.open(node)
        return rebuild([Nodes.refilled(child, new_leaves) for child in children])

    @staticmethod
    def is_other_leaf(node: Any) -> bool:
        """Whether what is none of the usual nodes is a leaf."""
        if torch.compiler.is_compiling():
            return Nodes.are_leaves(type(node))
        return bool(optree.tree_is_leaf(node, none_is_leaf=True))

    # Dynamo would trace optree's own answers instruction by instruction.

    @staticmethod
    @constant
    def order(*keys: Any) -> tuple[int, ...]:
        """Which key of a dict is the first, which the second, and so on."""
        return tuple(optree.utils.total_order_sorted(range(len(keys)), key=keys.__getitem__))

    @staticmethod
    @constant
    def are_leaves(kind: type) -> bool:
        """Whether instances are leaves."""
        return optree.register_pytree_node.get(kind) is None

    @staticmethod
    @constant
    def are_plain_named_tuples(kind: type) -> bool:
        """Whether instances are named tuples that have their fields as children, since nobody has registered others."""
        if not optree.is_namedtuple_class(kind):
            return False
        entry = optree.register_pytree_node.get(kind)
        return entry is not None and entry.type is not kind
