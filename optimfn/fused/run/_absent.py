"""Gradients that come and go: one program for all patterns of those that are there.

A step without some gradients leaves out of the program for all of them what is computed from those that are absent (see
`plan._owners`). Whether that is what the rule does is not taken on trust: the first patterns are traced the ordinary
way as well, and must give the very graph that is left. Where they give something else for leaves without a gradient,
such as an average that goes on, there is a second program, which knows that too, and is put to the same test.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from ..ir._graph import Node, Untraceable, is_random, is_together
from ..plan._levels import live
from ..trace._alike import replaced
from ..trace._infer import key
from ..trace._trace import Graph
from ._cache import CannotBuild
from ._code import Code

Pattern = tuple[bool, ...]  # for each gradient that may be absent whether it is there
Instead = dict[int, tuple[int, Node]]  # outputs with another value without the gradient of a leaf: the leaf, the value


def code_for(
    code: Code, pattern: Pattern, trace: Callable[[Pattern], Graph | None], remake: Callable[[Graph, Instead], Code]
) -> Code | None:
    """The code that serves a step with these gradients; `None` if it must be traced by itself.

    Args:
        code: That for all gradients.
        pattern: Which are there; some, and not all.
        trace: Traces the rule with some gradients only.
        remake: Makes code that also knows what is computed for leaves without a gradient.
    """
    if code.plan.owners is None:
        return None
    case = frozenset(itertools.compress(code.kinds, pattern)), sum(pattern) > 1
    if case not in code.trusted:
        patterns = [pattern]
        if not code.trusted:  # with these two every gradient was absent once
            patterns.append(tuple([not here for here in pattern]))
        graphs = {one: trace(one) for one in patterns}
        code.trusted[case] = _serves(code, graphs)
        if not code.trusted[case]:
            if code.joint is None and len(graphs) == 2:
                code.joint = _learn(code, graphs, remake)
            if code.joint is not None:
                code.joint.trusted[case] = _serves(code.joint, graphs)
    if code.trusted[case]:
        return code
    return code.joint if code.joint is not None and code.joint.trusted.get(case) else None


def _serves(code: Code, graphs: Mapping[Pattern, Graph | None]) -> bool:
    return all(graph is not None and _Left(code, one).agrees(graph) for one, graph in graphs.items())


def _learn(code: Code, graphs: Mapping[Pattern, Graph | None], remake: Callable[[Graph, Instead], Code]) -> Code | None:
    """Code that knows what two traces compute where gradients are absent, each of them in one."""
    nodes = {_identity(x, {}, (x.kind == "input" or is_random(x.op)) and x.number): x for x in code.graph.nodes}
    instead = Instead()
    for pattern, graph in graphs.items():
        found = None if graph is None else _Left(code, pattern).others(graph, nodes)
        if found is None:
            return None
        instead |= found
    try:
        return remake(code.graph._replace(nodes=[*nodes.values()]), instead) if instead else None
    except (Untraceable, CannotBuild):
        return None


class _Left:
    """What is left of a graph for one pattern, to be found in the graph of another trace.

    Nodes are alike that do the same to nodes that are alike, so each is looked up by what it does, operands first.
    """

    def __init__(self, code: Code, pattern: Pattern) -> None:
        self._code, self._owners, self._present = code, code.plan.owners or {}, code.present(pattern)
        self._nodes: dict[Hashable, Node] = {}
        self._same: dict[Node, Node] = {}  # sums of one value are that value
        draws = itertools.count()
        for node in code.plan.nodes:
            if node.kind == "input" or not self._runs(node):
                continue
            left = node
            if node.kind == "reduce" and node.args[0].is_scalar:
                left = dataclasses.replace(node, args=tuple([x for x in node.args if self._runs(x)]))
                if node in code.plan.was:
                    if len(left.args) == 1:
                        self._same[node] = self._same.get(left.args[0], left.args[0])
                        continue
                    left.kind, left.op = "pointwise", code.plan.was[node]
            elif is_together(node.op):  # of the parts that are there
                left = dataclasses.replace(node, args=tuple(self._parts(node)))
            elif node.kind == "item" and is_together(node.args[0].op):
                part = node.args[0].args[node.op]
                left = dataclasses.replace(node, op=self._parts(node.args[0]).index(part))
            known = self._nodes.setdefault(_identity(left, self._same, is_random(node.op) and next(draws)), node)
            if known is not node:
                self._same[node] = known

    def agrees(self, other: Graph) -> bool:
        """Whether another trace has found what is left."""
        found = self._match(other)
        return found is not None and all(self._is(i, b, found) for i, b in enumerate(other.outputs))

    def others(self, other: Graph, nodes: dict[Hashable, Node]) -> Instead | None:
        """What another trace computes instead of what is left out; `None` if that cannot be said.

        Args:
            other: The trace.
            nodes: The graph, by what its nodes are, to which is added what is not in it yet.
        """
        found, owners = self._match(other), [values[0][0] for values in self._code.plan.results]
        there = [i for i, own in enumerate(owners) if own in self._present]
        if found is None or not all(self._is(i, other.outputs[i], found) for i in there):
            return None
        gone = Instead()
        for i, own in enumerate(owners):
            if own not in self._present:
                if not (isinstance(own, int) and isinstance(other.outputs[i], Node)):
                    return None
                gone[i] = own, other.outputs[i]
        for node in live(other.nodes, [b for _, b in gone.values()]):
            if node not in found:
                if node.kind == "input" or is_random(node.op):
                    return None
                args, kwargs = replaced(node.args, found), {name: replaced(x, found) for name, x in node.kwargs.items()}
                new = dataclasses.replace(node, args=args, kwargs=kwargs, number=len(nodes), _parents=None)
                found[node] = nodes.setdefault(_identity(new, {}), new)
        return {i: (own, found[b]) for i, (own, b) in gone.items() if found[b] is not self._target(i)}

    def _match(self, other: Graph) -> dict[Node, Node] | None:
        """For nodes of another trace those that are left and do the same; `None` if it was not given what is left."""
        own, held = _apart(self._code.plan.inputs, self._code.graph)
        others, others_held = _apart([node for node in other.nodes if node.kind == "input"], other)
        given = [node for node in own if node not in self._code.leaf_of or self._runs(node)]
        sizes = len(given), len(self._code.graph.outputs)
        if sizes != (len(others), len(other.outputs)) or not others_held.keys() <= held.keys():
            return None
        found = dict(zip(others, given, strict=True)) | {node: held[x] for x, node in others_held.items()}
        draws = itertools.count()
        for node in live(other.nodes, other.outputs):
            if node not in found and all(parent in found for parent in node.parents()):
                alike = self._nodes.get(_identity(node, found, is_random(node.op) and next(draws)))
                if alike is not None:
                    found[node] = alike
        return found

    def _is(self, i: int, b: Any, found: Mapping[Node, Node]) -> bool:
        """Whether what is left of an output is a value of another trace."""
        values = [value for own, value in self._code.plan.results[i] if own in self._present]
        a = values[0] if values else self._target(i)
        return found.get(b) is self._same.get(a, a) if isinstance(b, Node) else key(a) == key(b)

    def _target(self, i: int) -> Node:
        number: int = self._code.targets[i]
        return self._code.plan.inputs[number]

    def _parts(self, node: Node) -> list[Node]:
        return [x for x in node.args if self._runs(x)]

    def _runs(self, node: Node) -> bool:
        return self._owners.get(node) in self._present


def _apart(inputs: Sequence[Node], graph: Graph) -> tuple[Sequence[Node], dict[Hashable, Node]]:
    """What a graph is given, and what the rule holds."""
    first = len(inputs) - len(graph.captured)
    return inputs[:first], dict(zip(graph.captured, inputs[first:], strict=True))


def _identity(node: Node, known: Mapping[Node, Node], draw: int | bool = False) -> Hashable:
    """What a node does.

    Args:
        node: The node.
        known: What stands for its operands.
        draw: Tells inputs, and draws of random numbers, from others.
    """
    args, kwargs = replaced(node.args, known), {name: replaced(x, known) for name, x in node.kwargs.items()}
    return draw, node.kind, node.op, key(args), key(kwargs), node.layout, node.compute
