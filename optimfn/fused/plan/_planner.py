"""Cut a graph into stages: what can be computed when, what must lie in memory, and what is written at which point."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ir import _ops
from ..ir._graph import Node, Untraceable
from ..ir._kernels import Output, Owner, Stage
from ._memory import places, same_memory
from ._owners import Absence, Owners
from ._plan import Plan
from ._rows import Rows
from ._scalars import Scalars
from ._stores import Store, delay


def make_plan(
    nodes: Sequence[Node],
    outputs: Sequence[Any],
    targets: Sequence[int | None],
    names: Sequence[str],
    absence: Absence | None = None,
) -> Plan:
    """Plan the stages that compute the outputs of a graph.

    Args:
        nodes: The graph, parents first.
        outputs: Nodes, and values that are no tensors.
        targets: For each output the number of the input to overwrite; `None` to make a new tensor.
        names: For each output a name for readers.
        absence: What is known of steps without some gradients.
    """
    return _Planner(nodes, outputs, absence or Absence({}, [None] * len(outputs), {}, {})).plan(outputs, targets, names)


class _Planner:
    """What is known half way."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[Any], absence: Absence) -> None:
        self.buffers = 0
        self.inputs = [node for node in nodes if node.kind == "input"]
        self.buffer_of = {node: self._new_buffer() for node in self.inputs}
        self.nodes = live(nodes, [*outputs, *(node for _, node in absence.instead.values())])
        self.owned = Owners(self.nodes, outputs, absence)
        self.owners = self.owned.of
        self._absence = absence
        self.level: dict[Node, int] = {}
        self.temporary: dict[Node, int] = {}
        self.folds: dict[Node, int] = {}
        self.copies: list[tuple[Node, int, Owner]] = []
        self.solid: set[Node] = set()
        self._closures: dict[tuple[Node, int], dict[Node, None]] = {}
        self._set_levels()
        opaque = [node for node in self.nodes if node.kind in ("opaque", "item")]
        self._last_opaque = max([self.level[node] for node in opaque], default=0)
        # By the stage that works on them: a reduction is there when the next one begins.
        self._opaque = _by_stage(opaque, self.level, 0)
        whole = [n for n in self.nodes if n.kind == "reduce" and not n.args[0].is_scalar]
        self._reductions, self._folding = _by_stage(whole, self.level, 1), _by_stage(self.folds, self.level, 1)
        self._stores: list[Store] = []

    def plan(self, outputs: Sequence[Any], targets: Sequence[int | None], names: Sequence[str]) -> Plan:
        """Put everything into its place."""
        outcome, results = list[Output](), list[list[tuple[Owner, Any]]]()
        for i, (node, target, name) in enumerate(zip(outputs, targets, names, strict=True)):
            results.append([(self.owned.of_outputs[i], node)])
            outcome.append(self._output(node, target, name, self.owned.of_outputs[i]))
            leaf, other = self._absence.instead.get(i, (None, node))
            if leaf is not None and other is not node:
                results[i].append((~leaf, other))
                self._output(other, self._target(outcome[i]), name, ~leaf)
        kept = [(x, at) for x, at in self.temporary.items() if same_memory(x) is x]
        self._stores += [Store(x, at, self.level[x], x.name, self.owners.get(x)) for x, at in kept]
        count = 1 + max([*self.level.values(), *(store.stage for store in self._stores)], default=0)
        count = delay(self._stores, count, 2 * len(self.nodes) + 2, self._read)
        stages = [Stage(opaque=self._opaque.get(k, [])) for k in range(count)]
        scalars = Scalars(
            self.nodes, [x for x in self._stores if x.node.is_scalar], self.level, self.buffer_of, self.owners
        )
        final = scalars.schedule(stages, self.temporary)
        rows = Rows(
            scalars.slot,
            scalars.numbers,
            self._buffer,
            self.folds,
            self.owners,
            self._is_given,
            {store.buffer for store in self._stores},
            bool(self._absence.instead),
        )
        stored = self._stored()
        for k, stage in enumerate(stages):
            roots: list[Store | Node] = [*stored.get(k, []), *self._reductions.get(k, [])]
            stage.rows = rows.of_stage(k, roots, self._folding.get(k, []), self._closure)
        is_clear = bool(self.owners) and self.owned.are_clear and rows.are_clear
        return Plan(
            nodes=self.nodes,
            inputs=self.inputs,
            outputs=outcome,
            results=results,
            stages=stages,
            final=final,
            buffers=self.buffers,
            buffer_of=self.buffer_of,
            temporary=self.temporary,
            folds=self.folds,
            copies=self.copies,
            solid=self.solid,
            places=places(self.nodes, self.level, self.temporary, self.solid, results),
            slot=scalars.slot,
            numbers=scalars.numbers.held,
            kernels=list({id(row.kernel): row.kernel for stage in stages for row in stage.rows}.values()),
            lines=rows.lines,
            owners=self.owners if is_clear else None,
            was=self.owned.was,
        )

    def _new_buffer(self) -> int:
        self.buffers += 1
        return self.buffers - 1

    def _set_levels(self) -> None:
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
                self.buffer_of[node] = self.folds[node] = self._new_buffer()
            elif node.op in ("spread", "unpack") and not node.args[0].has_memory:
                self.level[node] = levels[0] + 1
                self._keep(node.args[0])
            elif node.kind in ("opaque", "item"):
                self.level[node] = max([self.level[x] + (not x.has_memory) for x in node.parents()], default=0)
                self.buffer_of[node] = self._new_buffer()
                for parent in node.parents():
                    if not parent.has_memory:
                        self._keep(parent)
            else:
                packed = [parent for parent in node.parents() if parent.op == "pack"]
                self.level[node] = max(levels, default=0) + bool(packed)
                for parent in packed:
                    self._keep(parent)
            if node.kind not in ("opaque", "item"):  # a kernel reads the parents
                self.solid.update(parent for parent in node.parents() if parent.kind in ("opaque", "item"))

    def _keep(self, node: Node) -> None:
        """Give a value memory of its own, or the same as another with its bytes, such as a transpose."""
        if node in self.temporary:
            return
        root = same_memory(node)
        if root is not node:
            self._keep(root)
        self.temporary[node] = self.temporary[root] if root is not node else self._new_buffer()

    def _output(self, node: Any, target: int | None, name: str, owner: Owner) -> Output:
        if not isinstance(node, Node):
            return Output("value", node)
        if node.kind == "input" and target in (None, self.buffer_of[node]):
            return Output("buffer", self.buffer_of[node])
        if node.kind in ("opaque", "item"):
            self.solid.add(node)
            if target is None:
                return Output("opaque", node, node)
        if target is not None and node.dtype not in _ops.DTYPES:
            self.copies.append((node, target, owner))
            return Output("buffer", target)
        buffer = self._new_buffer() if target is None else target
        # Nothing that was given is overwritten before all that might raise, or read it, is over: see `_stores`.
        stage = self.level[node] if target is None else max(self.level[node], self._last_opaque)
        self._stores.append(Store(node, buffer, stage, name, owner, target is None))
        return Output("new", buffer, node) if target is None else Output("buffer", buffer)

    def _target(self, output: Output) -> int:
        """The buffer of an output, for one more value that may stand there."""
        if output.kind not in ("buffer", "new"):
            raise Untraceable("what ATen computes is handed out itself")
        buffer: int = output.value
        return buffer

    # What rows compute and read

    def _stored(self) -> dict[int, list[Store]]:
        """The stores of leaves, by stage."""
        found: dict[int, list[Store]] = {}
        for store in self._stores:
            if not store.node.is_scalar:
                found.setdefault(store.stage, []).append(store)
        return found

    def _read(self, k: int) -> tuple[Iterable[int], Iterable[int]]:
        """The buffers of inputs that the rows of a stage read, and those they read in an order of their own."""
        roots = [store.node for store in self._stores if store.stage == k and not store.node.is_scalar]
        roots += [node.args[0] for node in self._reductions.get(k, ())]
        own = dict.fromkeys([node for root in roots for node in self._closure(root, k)])
        folded = dict.fromkeys([x for fold in self._folding.get(k, ()) for x in self._closure(fold.args[0], k)])
        spread = [node.args[0] for node in (*own, *folded) if node.op == "spread"]
        # Rows that pack what they unpack go block by block; whatever else is put there has elements of two codes.
        packs = {store.buffer for store in self._stores if store.node.op == "pack"}
        unpacked = [node.args[0] for node in (*own, *folded) if node.op == "unpack" and node.args[0].kind == "input"]
        spread += [node for node in unpacked if self.buffer_of[node] not in packs]
        in_order = [self.buffer_of[node] for node in (*own, *unpacked) if node.kind == "input"]
        return in_order, [self.buffer_of[node] for node in (*folded, *spread) if node.kind == "input"]

    def _is_given(self, node: Node, k: int) -> bool:
        """Whether a kernel of stage k finds a node computed."""
        return node.is_scalar or node.has_memory or (node in self.temporary and self.level[node] < k)

    def _closure(self, root: Node, k: int) -> dict[Node, None]:
        """The nodes that a kernel computes or reads for a root, each after its operands."""
        known = self._closures.get((root, k))
        if known is not None:
            return known
        seen = self._closures[root, k] = {}
        stack = [root]  # not by recursion: a rule may be longer than Python's stack
        while stack:
            node = stack[-1]
            is_leaf = node in seen or node.op in ("spread", "unpack") or self._is_given(node, k)
            missing = [] if is_leaf else [x for x in node.parents() if x not in seen]
            if missing:
                stack.extend(reversed(missing))
            else:
                seen[stack.pop()] = None
        return seen

    def _buffer(self, node: Node) -> int:
        return self.temporary[node] if node in self.temporary else self.buffer_of[node]


def _by_stage(nodes: Iterable[Node], level: Mapping[Node, int], ahead: int) -> dict[int, list[Node]]:
    """Nodes by the stage that computes them, which may be ahead of the one in which they are there."""
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(level[node] - ahead, []).append(node)
    return found


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
