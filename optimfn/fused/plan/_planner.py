"""Cut a graph into stages: what can be computed when, what must lie in memory, and what is written at which point."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ir import _ops
from ..ir._graph import Node, Untraceable
from ..ir._kernels import Output, Owner, Stage
from ._levels import Levels, live
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
        self.inputs = [node for node in nodes if node.kind == "input"]
        self.nodes = live(nodes, [*outputs, *(node for _, node in absence.instead.values())])
        self.owned = Owners(self.nodes, outputs, absence)
        self.owners = self.owned.of
        self._absence = absence
        self.at = Levels(self.inputs, self.nodes)
        self.copies: list[tuple[Node, int, Owner]] = []
        opaque = [node for node in self.nodes if node.kind in ("opaque", "item")]
        self._last_opaque = max([self.at.level[node] for node in opaque], default=0)
        # By the stage that works on them: a reduction is there when the next one begins.
        self._opaque = _by_stage(opaque, self.at.level, 0)
        whole = [n for n in self.nodes if n.kind == "reduce" and not n.args[0].is_scalar]
        self._reductions, self._folding = _by_stage(whole, self.at.level, 1), _by_stage(self.at.folds, self.at.level, 1)
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
        kept = [(x, at) for x, at in self.at.temporary.items() if same_memory(x) is x]
        self._stores += [Store(x, at, self.at.level[x], x.name, self.owners.get(x)) for x, at in kept]
        count = 1 + max([*self.at.level.values(), *(store.stage for store in self._stores)], default=0)
        count = delay(self._stores, count, 2 * len(self.nodes) + 2, self._read)
        stages = [Stage(opaque=self._opaque.get(k, [])) for k in range(count)]
        scalars = Scalars(self.at, [x for x in self._stores if x.node.is_scalar], self.owners)
        final = scalars.schedule(stages)
        written = {store.buffer for store in self._stores}
        rows = Rows(self.at, scalars, self.owners, written, has_sides=bool(self._absence.instead))
        stored = self._stored()
        for k, stage in enumerate(stages):
            roots: list[Store | Node] = [*stored.get(k, []), *self._reductions.get(k, [])]
            stage.rows = rows.of_stage(k, roots, self._folding.get(k, []))
        is_clear = bool(self.owners) and self.owned.are_clear and rows.are_clear
        return Plan(
            nodes=self.nodes,
            inputs=self.inputs,
            outputs=outcome,
            results=results,
            stages=stages,
            final=final,
            buffers=self.at.buffers,
            buffer_of=self.at.buffer_of,
            temporary=self.at.temporary,
            folds=self.at.folds,
            copies=self.copies,
            solid=self.at.solid.keys(),
            places=places(self.nodes, self.at.level, self.at.temporary, self.at.solid.keys(), results),
            slot=scalars.slot,
            numbers=scalars.numbers.held,
            kernels=list({id(row.kernel): row.kernel for stage in stages for row in stage.rows}.values()),
            lines=rows.lines,
            owners=self.owners if is_clear else None,
            was=self.owned.was,
        )

    def _output(self, node: Any, target: int | None, name: str, owner: Owner) -> Output:
        if not isinstance(node, Node):
            return Output("value", node)
        if node.kind == "input" and target in (None, self.at.buffer_of[node]):
            return Output("buffer", self.at.buffer_of[node])
        if node.kind in ("opaque", "item"):
            self.at.solid[node] = None
            if target is None:
                return Output("opaque", node, node)
        if target is not None and node.dtype not in _ops.DTYPES:
            self.copies.append((node, target, owner))
            return Output("buffer", target)
        buffer = self.at.new_buffer() if target is None else target
        # Nothing that was given is overwritten before all that might raise, or read it, is over: see `_stores`.
        stage = self.at.level[node] if target is None else max(self.at.level[node], self._last_opaque)
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
        own = dict.fromkeys([node for root in roots for node in self.at.closure(root, k)])
        folded = dict.fromkeys([x for fold in self._folding.get(k, ()) for x in self.at.closure(fold.args[0], k)])
        spread = [node.args[0] for node in (*own, *folded) if node.op == "spread"]
        # Rows that pack what they unpack go block by block; whatever else is put there has elements of two codes.
        packs = {store.buffer for store in self._stores if store.node.op == "pack"}
        unpacked = [node.args[0] for node in (*own, *folded) if node.op == "unpack" and node.args[0].kind == "input"]
        spread += [node for node in unpacked if self.at.buffer_of[node] not in packs]
        in_order = [self.at.buffer_of[node] for node in (*own, *unpacked) if node.kind == "input"]
        return in_order, [self.at.buffer_of[node] for node in (*folded, *spread) if node.kind == "input"]


def _by_stage(nodes: Iterable[Node], level: Mapping[Node, int], ahead: int) -> dict[int, list[Node]]:
    """Nodes by the stage that computes them, which may be ahead of the one in which they are there."""
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(level[node] - ahead, []).append(node)
    return found
