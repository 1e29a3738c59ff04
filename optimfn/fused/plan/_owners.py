"""Find out what a step without some gradients leaves out.

What is computed from the gradient of a leaf is owned by that leaf, and so is what nothing but such values needs, and
what is kept for that leaf alone. A reduction over several leaves goes over those that are there, so that it is owned by
any of them. All else, such as counts, is computed in every step.

Where a rule computes something else for a leaf without a gradient than the value it had, such as an average that goes
on, that is owned by the absence of the leaf.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..ir._graph import Node, is_together
from ..ir._kernels import Owner

_REDUCTION = {"add": "sum", "maximum": "max", "minimum": "min"}
_TRUTH_REDUCTION = {"logical_or": "max", "logical_and": "min"}


class Absence(NamedTuple):
    """What is known beforehand of steps without some gradients.

    Args:
        leaf_of: The inputs that may be absent, each with the leaf whose gradient it is.
        belongs: For each output the leaf that it seems to belong to, by its name.
        instead: Outputs that have another value without the gradient of a leaf, with that leaf, and the value; if that
            is the output itself, the leaf does not matter.
        was: Operators that have become reductions before.
    """

    leaf_of: Mapping[Node, int]
    belongs: Sequence[int | None]
    instead: Mapping[int, tuple[int, Node]]
    was: Mapping[Node, str]


class Owners:
    """Whose gradients the nodes of a graph are computed from.

    Sums that a rule has written as `x + y`, of 0-dim values of different leaves, become reductions, which may go over
    any part of them; `was` keeps the operators that they were.

    Args:
        nodes: The graph, parents first.
        outputs: What it is to compute.
        absence: What is known beforehand.
    """

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[Any], absence: Absence) -> None:
        self.was: dict[Node, str] = {**absence.was}
        self.are_clear = True  # whether every value belongs to one leaf, or to a reduction over several
        self._sets = {node: frozenset([leaf]) for node, leaf in absence.leaf_of.items()}
        self._all = frozenset(absence.leaf_of.values())
        for node in nodes:
            if node.kind != "input":
                found = self._of(node)
                if found and found != self._all:
                    self._sets[node] = found
        self.are_clear &= not any(node in self._sets for _, node in absence.instead.values())
        if not self.are_clear:
            for node, op in self.was.items():
                if node not in absence.was:
                    node.kind, node.op = "pointwise", op
            self._sets = {}
        self.of: dict[Node, Owner] = {
            node: next(iter(own)) if len(own) == 1 else own for node, own in self._sets.items()
        }
        self.of_outputs: list[Owner] = [None] * len(outputs)
        if self._sets:
            self._pass_back(nodes, outputs, absence)

    def _pass_back(self, nodes: Sequence[Node], outputs: Sequence[Any], absence: Absence) -> None:
        """Give what one owner alone needs to that owner, and every output to one."""
        asked: dict[Node, set[Owner]] = {}
        for leaf, node in absence.instead.values():
            asked.setdefault(node, set()).add(~leaf)
        places: dict[Node, list[int]] = {}
        for i, node in enumerate(outputs):
            if isinstance(node, Node):
                places.setdefault(node, []).append(i)
        for node in reversed(nodes):
            by = asked.pop(node, set[Owner]())
            own = self.of.get(node)
            if own is None:
                for i in places.get(node, ()):
                    if i not in absence.instead or absence.instead[i][1] is not node:
                        self.of_outputs[i] = next(iter(by)) if len(by - {None}) == len(by) == 1 else absence.belongs[i]
                by.update([self.of_outputs[i] for i in places.get(node, ())])
                if len(by) == 1 and node.kind != "input":
                    own = by.pop()
            else:
                for i in places.get(node, ()):
                    self.of_outputs[i] = own
            if own is not None:
                self.of[node] = own
            needed = node.parents()
            if node.kind == "item" and is_together(node.args[0].op):
                needed = (*needed, node.args[0].args[node.op])
            elif is_together(node.op):  # whoever needs what it makes of a part needs the part
                needed = ()
            for parent in needed:
                if parent not in self.of:
                    asked.setdefault(parent, set()).add(own)

    def _of(self, node: Node) -> frozenset[int]:
        if node.kind == "item" and is_together(node.args[0].op):
            # What a collective made of a part belongs to whom the part belongs to.
            return self._sets.get(node.args[0].args[node.op], frozenset())
        sets = {self._sets[parent] for parent in node.parents() if parent in self._sets}
        if not sets:
            return frozenset()
        least = min(sets, key=len)
        if (node.kind in ("reduce", "stack") and node.args[0].is_scalar) or is_together(node.op):
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
