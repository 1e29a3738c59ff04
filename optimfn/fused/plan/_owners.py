"""Find out what a step without some gradients leaves out.

What is computed from the gradient of a leaf is owned by that leaf. A reduction over several leaves goes over those
that are there, so that it is owned by any of them. All else, such as counts, is computed in every step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..ir._graph import Node
from ..ir._kernels import Owner

_REDUCTION = {"add": "sum", "maximum": "max", "minimum": "min"}
_TRUTH_REDUCTION = {"logical_or": "max", "logical_and": "min"}


class Owners:
    """Whose gradients the nodes of a graph are computed from.

    Sums that a rule has written as `x + y`, of 0-dim values of different leaves, become reductions, which may go over
    any part of them; `was` keeps the operators that they were.

    Args:
        nodes: The graph, parents first.
        leaf_of: The leaf of each gradient.
        kept_by: The leaf of each input that stays as it is without the gradient of that leaf.
    """

    def __init__(self, nodes: Iterable[Node], leaf_of: Mapping[Node, int], kept_by: Mapping[Node, int]) -> None:
        self.was: dict[Node, str] = {}
        self.are_clear = True  # whether every value belongs to one leaf, or to a reduction over several
        self._sets: dict[Node, frozenset[int]] = {
            node: frozenset([leaf]) for node, leaf in [*leaf_of.items(), *kept_by.items()]
        }
        self._all = frozenset(leaf_of.values())
        for node in nodes:
            if node.kind != "input":
                found = self._of(node)
                if found and found != self._all:
                    self._sets[node] = found
        if not self.are_clear:
            for node, op in self.was.items():
                node.kind, node.op = "pointwise", op
            self._sets = {}

    def all(self) -> dict[Node, Owner]:
        """The owner of each node that has one."""
        return {node: next(iter(own)) if len(own) == 1 else own for node, own in self._sets.items()}

    def _of(self, node: Node) -> frozenset[int]:
        sets = {self._sets[parent] for parent in node.parents() if parent in self._sets}
        if not sets:
            return frozenset()
        least = min(sets, key=len)
        if node.kind in ("reduce", "stack") and node.args[0].is_scalar:
            if any(parent not in self._sets for parent in node.parents()):
                return frozenset()
            return frozenset().union(*sets)
        # A value of one leaf may use what several have in common: where the leaf is there, so is that.
        if all(least <= other for other in sets):
            return least
        reduction = _reduction_of(node)
        if reduction is None:
            self.are_clear = False
            return least
        self.was[node] = node.op
        node.kind, node.op = "reduce", reduction
        return frozenset().union(*sets)


def _reduction_of(node: Node) -> str | None:
    """The reduction that a 0-dim operator on two values is, if it is one."""
    alike = len(node.args) == 2 and all(isinstance(x, Node) and x.layout == node.layout for x in node.args)
    if node.kind != "pointwise" or not (alike and node.is_scalar):
        return None
    name: Any = (_TRUTH_REDUCTION if node.dtype == torch.bool else _REDUCTION).get(node.op)
    return None if name is None else str(name)
