"""Trace a function once per kind of leaf.

A model of a thousand leaves has a few kinds of them. The first two of a kind are traced; if what they compute is the
same but for the leaves, what is computed of the others is written down without running the function.
"""

import dis
import enum
import functools
import inspect
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._recipe import Recorded
from ..ir._graph import Node
from ._infer import key
from ._symbol import Symbol

_OURS = __name__.partition(".")[0] + "."


class Call(NamedTuple):
    """A node that was asked for."""

    arguments: tuple[Any, ...]  # of `Builder.add`
    node: Node


class Example(NamedTuple):
    """A row that was traced: its leaves, the calls, and the result."""

    given: Mapping[Node, Tensor]  # the symbols among its leaves
    calls: list[Call]
    leaves: list[Any]
    structure: Any


def is_steady(value: Any, depth: int = 4) -> bool:
    """Whether a function gives the same for the same arguments, as far as one can see: it holds nothing that changes.

    Args:
        value: A function, or what one refers to.
        depth: How far to look.
    """
    if value is None or isinstance(value, int | float | complex | str | bytes | enum.Enum | Tensor):
        return True
    if isinstance(value, torch.dtype | torch.device | types.ModuleType | type):
        return True
    if isinstance(value, types.BuiltinFunctionType):  # such as `torch.add`; but also the `append` of a list
        return is_steady(value.__self__, depth)
    if depth == 0:
        return False
    if isinstance(value, tuple | frozenset):
        return all(is_steady(x, depth - 1) for x in value)
    if isinstance(value, functools.partial):
        return all(is_steady(x, depth - 1) for x in (value.func, value.args, *value.keywords.values()))
    if isinstance(value, Recorded):
        return all(is_steady(x, depth - 1) for x in vars(value).values() if inspect.isfunction(x))
    if not inspect.isfunction(value):
        return False
    held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if value.__module__.startswith("torch."):
        return True
    if value.__module__.startswith(_OURS):  # which keep nothing in globals
        held = [y for x in held for y in (tree.leaves(x) if isinstance(x, list | dict | tuple) else [x])]
    else:
        held += [value.__globals__[name] for name in _globals(value.__code__) if name in value.__globals__]
    return all(is_steady(x, depth - 1) for x in held)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


@functools.cache
def _globals(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function, and those defined inside of it, look up among globals."""
    own = [x.argval for x in dis.get_instructions(code) if x.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for x in code.co_consts if isinstance(x, types.CodeType) for name in _globals(x)]
    return tuple(dict.fromkeys([*own, *inner]))


def open_row(row: Sequence[Any]) -> tuple[dict[Node, Symbol], Hashable]:
    """The symbols among the arguments of one call, and of what kind the arguments are."""
    leaves, structure = row, None
    if not all(x is None or isinstance(x, Tensor) for x in row):
        leaves, structure = tree.flatten(tuple(row))
    given: dict[Node, Symbol] = {}
    kinds: list[Any] = [structure]
    for x in leaves:
        if type(x) is not Symbol:
            kinds.append(id(x) if isinstance(x, Tensor) else key(x))
            continue
        node = x.node
        own = x.leaf.__class__, node.kind, node.spreads, node.layout
        kinds.append((*own, [*given].index(node)) if node in given else own)
        given.setdefault(node, x)
    return given, tuple(kinds)


def replaced(value: Any, by: Mapping[Node, Node]) -> Any:
    """Arguments of a node with other nodes in the place of some."""
    if isinstance(value, Node):
        return by.get(value, value)
    if isinstance(value, tuple):
        return tuple([by.get(x, x) if type(x) is Node else replaced(x, by) for x in value])
    return value


def are_alike(a: Example, b: Example) -> bool:
    """Whether two rows compute the same, each of its own leaves."""
    if len(a.calls) != len(b.calls) or a.structure != b.structure or len(a.leaves) != len(b.leaves):
        return False
    by = dict(zip(a.given, b.given, strict=True))
    for x, y in zip(a.calls, b.calls, strict=True):
        kind, op, args, kwargs, *rest = x.arguments
        same = (kind, op, rest) == (*y.arguments[:2], list(y.arguments[4:]))
        operands = replaced((args, tuple(kwargs.values())), by)
        if not same or list(kwargs) != list(y.arguments[3]):
            return False
        if key(operands) != key((y.arguments[2], tuple(y.arguments[3].values()))):
            return False
        if by.setdefault(x.node, y.node) is not y.node:
            return False
    return bool(key(replaced(tuple(a.leaves), by)) == key(tuple(b.leaves)))
