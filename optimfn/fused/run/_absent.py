"""Gradients that come and go: one program for all patterns of those that are there.

A step without some gradients leaves out of the program for all of them what is computed from those that are absent (see
`plan._owners`). Whether that is what the rule does is not taken on trust: the first patterns are traced the ordinary
way as well, and must give the very graph that is left.
"""

from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

from ..ir._graph import Node
from ..trace._infer import key
from ..trace._trace import Graph
from ._code import Code, Selection

Pattern = tuple[bool, ...]  # for each gradient that may be absent whether it is there


def select(code: Code, pattern: Pattern, trace: Callable[[Pattern], Graph | None]) -> Selection | None:
    """What a step with these gradients runs of the code for all; `None` if it must be traced by itself.

    Args:
        code: That for all gradients.
        pattern: Which are there; some, and not all.
        trace: Traces the rule with some gradients only.
    """
    if code.plan.owners is None:
        return None
    case = frozenset(compress(code.kinds, pattern)), sum(pattern) > 1
    if case not in code.trusted:
        patterns = [pattern]
        if not code.trusted:  # with these two every gradient was absent once
            patterns.append(tuple([not here for here in pattern]))
        code.trusted[case] = all(_Comparison(code, one).agrees(trace(one)) for one in patterns)
    return code.select(pattern) if code.trusted[case] else None


class _Comparison:
    """Whether what is left of a graph for one pattern is the graph of another trace."""

    def __init__(self, code: Code, pattern: Pattern) -> None:
        self._code, self._owners = code, code.plan.owners or {}
        self._present = code.present(pattern)
        self._pairs: dict[Node, Node] = {}
        self._inputs: Mapping[Node, Node] = {}

    def agrees(self, other: Graph | None) -> bool:
        """Whether another trace has found what is left."""
        if other is None:
            return False
        graph = self._code.graph
        given = self._code.plan.inputs
        inputs = [node for node in given if node not in self._code.leaf_of or self._runs(node)]
        others = [node for node in other.nodes if node.kind == "input"]
        if len(inputs) != len(others) or len(graph.outputs) != len(other.outputs):
            return False
        if [id(x) for x in graph.captured] != [id(x) for x in other.captured]:
            return False
        self._inputs = dict(zip(inputs, others, strict=True))
        pending: list[tuple[Any, Any]] = []
        for i, (a, b) in enumerate(zip(graph.outputs, other.outputs, strict=True)):
            if isinstance(a, Node) and not self._runs(a):
                a = given[self._code.targets[i]]  # it stays as it was
            pending.append((a, b))
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
