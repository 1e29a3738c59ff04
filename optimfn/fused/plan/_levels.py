"""When each value of a graph can be computed, and where it lies."""

from collections.abc import Sequence
from typing import Any

from ..ir._graph import Node
from ._memory import same_memory


class Levels:
    """The first stage in which each value can be computed, and the buffers of those that must lie in memory.

    Attributes:
        level: The stage of each.
        buffer_of: The buffers of inputs, folds and opaque nodes.
        temporary: Values that kernels leave in memory, each with its buffer.
        folds: Reductions over some axes, which are in memory too.
        solid: Opaque nodes whose result must be dense memory of its own, since kernels read it.
        buffers: How many there are.

    Args:
        inputs: What is given, whether it is needed or not.
        nodes: All nodes that are needed, parents first.
    """

    def __init__(self, inputs: Sequence[Node], nodes: Sequence[Node]) -> None:
        self.nodes, self.buffers = nodes, 0
        self.buffer_of = {node: self.new_buffer() for node in inputs}
        self.level: dict[Node, int] = {}
        self.temporary: dict[Node, int] = {}
        self.folds: dict[Node, int] = {}
        self.solid: dict[Node, None] = {}  # in the order of the graph, so that equal graphs have equal plans
        self._closures: dict[tuple[Node, int], dict[Node, None]] = {}
        self._set()

    def new_buffer(self) -> int:
        """One more buffer."""
        self.buffers += 1
        return self.buffers - 1

    def is_given(self, node: Node, k: int) -> bool:
        """Whether a kernel of stage k finds a node computed."""
        return node.is_scalar or node.has_memory or (node in self.temporary and self.level[node] < k)

    def closure(self, root: Node, k: int) -> dict[Node, None]:
        """The nodes that a kernel computes or reads for a root, each after its operands."""
        known = self._closures.get((root, k))
        if known is not None:
            return known
        seen = self._closures[root, k] = {}
        stack = [root]  # not by recursion: a rule may be longer than Python's stack
        while stack:
            node = stack[-1]
            is_leaf = node in seen or node.op in ("spread", "unpack") or self.is_given(node, k)
            missing = [] if is_leaf else [x for x in node.parents() if x not in seen]
            if missing:
                stack.extend(reversed(missing))
            else:
                seen[stack.pop()] = None
        return seen

    def buffer(self, node: Node) -> int:
        """Where a value lies."""
        return self.temporary[node] if node in self.temporary else self.buffer_of[node]

    def _set(self) -> None:
        """The first stage in which each node can be computed, and what must lie in memory for it.

        A reduction is known when the stage that goes over its operand has ended. An opaque node runs before the
        kernels of its stage, so it needs its operands in memory from the stage before; so does what is spread,
        whose elements are read by many rows.
        """
        for node in self.nodes:
            levels = [self.level[parent] for parent in node.parents()]
            if node.kind == "reduce" and not node.args[0].is_scalar:
                self.level[node] = levels[0] + 1
            elif node.kind == "fold":
                self.level[node] = levels[0] + 1
                self.buffer_of[node] = self.folds[node] = self.new_buffer()
            elif node.op in ("spread", "unpack") and not node.args[0].has_memory:
                self.level[node] = levels[0] + 1
                self._keep(node.args[0])
            elif node.kind in ("opaque", "item"):
                self.level[node] = max([self.level[x] + (not x.has_memory) for x in node.parents()], default=0)
                self.buffer_of[node] = self.new_buffer()
                for parent in node.parents():
                    if not parent.has_memory:
                        self._keep(parent)
            else:
                packed = [parent for parent in node.parents() if parent.op == "pack"]
                self.level[node] = max(levels, default=0) + bool(packed)
                for parent in packed:
                    self._keep(parent)
            if node.kind not in ("opaque", "item"):  # a kernel reads the parents
                self.solid |= dict.fromkeys(x for x in node.parents() if x.kind in ("opaque", "item"))

    def _keep(self, node: Node) -> None:
        """Give a value memory of its own, or the same as another with its bytes, such as a transpose."""
        if node in self.temporary:
            return
        root = same_memory(node)
        if root is not node:
            self._keep(root)
        self.temporary[node] = self.temporary[root] if root is not node else self.new_buffer()


def live(nodes: Sequence[Node], outputs: Sequence[Any]) -> list[Node]:
    """The nodes that the outputs depend on, parents first."""
    needed: set[Node] = set()
    queue = [output for output in outputs if isinstance(output, Node)]
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue.extend(node.parents())
    return [node for node in nodes if node in needed]
