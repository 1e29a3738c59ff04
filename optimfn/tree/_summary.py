"""A tree in a few lines: what it holds, without the numbers."""

import textwrap
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._torch import brief
from .._typing import Tree
from ._nodes import Nodes, is_leaf

_LINE = 88  # what is longer is broken over lines, as the recipe of a transformation is
_SHOWN = 8  # entries of a dict or a list of tensors; of more, the first ones and how many there are


def summary(tree: Tree) -> str:
    """A tree in a few lines: dtypes and shapes in the place of tensors, values of one number on the host.

    States of this package print like this; it is for parameters and gradients, and states of others. Dicts and lists of
    more than eight entries are cut. No tensor on another device is read.

    Example:
        >>> import torch, optimfn as of
        >>> of.adam(1e-3).init({"w": torch.zeros(64, 3)})[0]
        ScaleByAdamState(count=tensor(0), mu={'w': float32[64, 3]}, nu={'w': float32[64, 3]})
        >>> print(of.tree.summary({"w": torch.zeros(64, 3, dtype=torch.bfloat16), "scale": torch.tensor(2.0)}))
        {'w': bfloat16[64, 3], 'scale': tensor(2.)}
    """
    if isinstance(tree, Tensor):
        return brief(tree)
    if tree is None or is_leaf(tree):
        return repr(tree)
    opening, parts, closing = _opened(tree)
    if len(parts) > _SHOWN and _has_tensors(tree):
        parts = [*parts[: _SHOWN - 1], f"and {len(parts) - _SHOWN + 1} more"]
    line = f"{opening}{', '.join(parts)}{',' * (opening == '(' and len(parts) == 1)}{closing}"
    if len(line) <= _LINE and "\n" not in line:
        return line
    body = ",\n".join(parts)
    return f"{opening}\n{textwrap.indent(body, '    ')},\n{closing}"


def _opened(node: Any) -> tuple[str, list[str], str]:
    """How a node begins, what is in it, and how it ends."""
    if isinstance(node, Mapping):
        return "{", [f"{key!r}: {summary(child)}" for key, child in node.items()], "}"
    if type(node) in (list, tuple):
        brackets = "[]" if type(node) is list else "()"
        return brackets[0], list(map(summary, node)), brackets[1]
    names, children, _ = Nodes.open(node)
    named = all(isinstance(name, str) for name in names)
    parts = [
        f"{name}={summary(child)}" if named else summary(child) for name, child in zip(names, children, strict=True)
    ]
    return f"{type(node).__name__}(", parts, ")"


def _has_tensors(node: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in Nodes.leaves(node))
