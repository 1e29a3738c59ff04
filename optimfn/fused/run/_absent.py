"""Gradients that come and go: one program for all patterns of those that are there.

A step without some gradients leaves out of the program for all of them what is computed from those that are absent (see
`plan._owners`). Whether that is what the rule does is not taken on trust: the first patterns are traced the ordinary
way as well, and must give the very graph that is left. Where they give something else for leaves without a gradient,
such as an average that goes on, there is a second program, which knows that too, and is put to the same test.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import compress
from typing import Any

from ..ir._graph import Node, Untraceable, is_random
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
    case = frozenset(compress(code.kinds, pattern)), sum(pattern) > 1
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
    return all(graph is not None and _Comparison(code, one).agrees(graph) for one, graph in graphs.items())


def _learn(code: Code, graphs: Mapping[Pattern, Graph | None], remake: Callable[[Graph, Instead], Code]) -> Code | None:
    """Code that knows what two traces compute where gradients are absent, each of them in one."""
    nodes, instead = {_identity(node): node for node in code.graph.nodes}, Instead()
    for pattern, graph in graphs.items():
        found = None if graph is None else _Comparison(code, pattern).others(graph, nodes)
        if found is None:
            return None
        instead |= found
    try:
        return remake(code.graph._replace(nodes=[*nodes.values()]), instead) if instead else None
    except (Untraceable, CannotBuild):
        return None


class _Comparison:
    """Whether what is left of a graph for one pattern is the graph of another trace."""

    def __init__(self, code: Code, pattern: Pattern) -> None:
        self._code, self._owners = code, code.plan.owners or {}
        self._present = code.present(pattern)
        self._pairs: dict[Node, Node] = {}
        self._inputs: Mapping[Node, Node] = {}

    def agrees(self, other: Graph) -> bool:
        """Whether another trace has found what is left."""
        if not self._meet(other):
            return False
        return self._are_alike([(self._left(i), b) for i, b in enumerate(other.outputs)])

    def others(self, other: Graph, nodes: dict[Hashable, Node]) -> Instead | None:
        """What another trace computes instead of what is left out; `None` if that cannot be said.

        Args:
            other: The trace.
            nodes: The graph, by what its nodes are, to which is added what is not in it yet.
        """
        if not self._meet(other):
            return None
        owners = [values[0][0] for values in self._code.plan.results]
        there = [i for i, own in enumerate(owners) if own in self._present]
        if not self._are_alike([(self._left(i), other.outputs[i]) for i in there]):
            return None
        known = {b: a for a, b in self._pairs.items()} | {b: a for a, b in self._inputs.items()}
        found = Instead()
        for i, (own, b) in enumerate(zip(owners, other.outputs, strict=True)):
            if own not in self._present:
                value = _adopted(b, known, nodes) if isinstance(b, Node) else None
                if value is None or not isinstance(own, int):
                    return None
                if value is not self._target(i):
                    found[i] = own, value
        return found

    def _meet(self, other: Graph) -> bool:
        """Pair the inputs."""
        own, held = _apart(self._code.plan.inputs, self._code.graph)
        others, others_held = _apart([node for node in other.nodes if node.kind == "input"], other)
        given = [node for node in own if node not in self._code.leaf_of or self._runs(node)]
        sizes = len(given), len(self._code.graph.outputs)
        if sizes != (len(others), len(other.outputs)) or not others_held.keys() <= held.keys():
            return False
        self._inputs = dict(zip(given, others, strict=True)) | {held[x]: node for x, node in others_held.items()}
        return True

    def _left(self, i: int) -> Any:
        """What is left of an output."""
        values = [value for own, value in self._code.plan.results[i] if own in self._present]
        return values[0] if values else self._target(i)

    def _target(self, i: int) -> Node:
        number: int = self._code.targets[i]
        return self._code.plan.inputs[number]

    def _are_alike(self, pending: list[tuple[Any, Any]]) -> bool:
        while pending:
            a, b = pending.pop()
            if not isinstance(a, Node) or not isinstance(b, Node):
                if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
                    pending += zip(a, b, strict=True)
                elif key(a) != key(b):
                    return False
            elif a not in self._pairs:
                self._pairs[a] = b
                inside = self._open(a, b)
                if inside is None:
                    return False
                pending += inside
            elif self._pairs[a] is not b:
                return False
        return True

    def _runs(self, node: Node) -> bool:
        return self._owners.get(node) in self._present

    def _open(self, a: Node, b: Node) -> list[tuple[Any, Any]] | None:
        """What must be equal for two nodes to be; `None` if they are not."""
        if a.kind == "input":
            return [] if self._inputs.get(a) is b else None
        args, kind, op = a.args, a.kind, a.op
        if kind == "reduce" and args[0].is_scalar:
            args = tuple([x for x in args if self._runs(x)])
            if a in self._code.plan.was:
                if len(args) == 1:
                    return [(args[0], b)]
                kind, op = "pointwise", self._code.plan.was[a]
        same = (kind, a.layout, a.compute) == (b.kind, b.layout, b.compute) and op == b.op
        if not same or len(args) != len(b.args) or list(a.kwargs) != list(b.kwargs):
            return None
        return [*zip(args, b.args, strict=True), *zip(a.kwargs.values(), b.kwargs.values(), strict=True)]


def _apart(inputs: Sequence[Node], graph: Graph) -> tuple[Sequence[Node], dict[Hashable, Node]]:
    """What a graph is given, and what the rule holds."""
    first = len(inputs) - len(graph.captured)
    return inputs[:first], dict(zip(graph.captured, inputs[first:], strict=True))


def _adopted(root: Node, known: dict[Node, Node], nodes: dict[Hashable, Node]) -> Node | None:
    """A node of one graph as one of another, to which is added what it lacks.

    `None` if that is not possible: it has other inputs, or draws random numbers.

    Args:
        root: The node.
        known: The nodes of the other graph that nodes of the one stand for.
        nodes: The other graph, by what its nodes are.
    """
    stack = [root]
    while stack:
        node = stack.pop()
        missing = [parent for parent in node.parents() if parent not in known]
        if node in known:
            continue
        if missing:
            stack += [node, *missing]
        elif node.kind == "input" or is_random(node.op):
            return None
        else:
            args, kwargs = replaced(node.args, known), {name: replaced(x, known) for name, x in node.kwargs.items()}
            same = dataclasses.replace(node, args=args, kwargs=kwargs, number=len(nodes), _parents=None)
            known[node] = nodes.setdefault(_identity(same), same)
    return known[root]


def _identity(node: Node) -> Hashable:
    own = node.number if node.kind == "input" or is_random(node.op) else None
    return own, node.kind, node.op, key(node.args), key(node.kwargs), node.layout, node.compute
