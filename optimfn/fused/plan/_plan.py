"""Cut a graph into stages, and every stage into rows of a few kernels.

Stage k runs in three steps: the opaque nodes whose operands are ready (ATen), the 0-dim arithmetic (tables of
calls), and the leaf kernels, in one parallel region. A reduction ends a stage. Pointwise values are computed
again in each stage that needs them, which is cheaper than storing them.

What is computed on one leaf in one stage is a row; rows with the same program are of one kernel. A kernel knows
neither how many leaves there are nor how large they are, so the C source does not depend on the model.
"""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..ir import _ops
from ..ir._graph import Node, Untraceable
from ..ir._kernels import Call, Chain, Constant, Entry, Form, Kernel, Output, Result, Row, Stage


@dataclass
class _Store:
    node: Node
    buffer: int
    stage: int
    name: str


class Plan:
    """The stages that compute the outputs of a graph.

    Args:
        nodes: The graph, parents first.
        outputs: Nodes, and values that are no tensors.
        targets: For each output the number of the input to overwrite; `None` to make a new tensor.
        names: For each output a name for readers.
    """

    def __init__(
        self, nodes: Sequence[Node], outputs: Sequence[Any], targets: Sequence[int | None], names: Sequence[str]
    ) -> None:
        self.buffers = 0
        self.buffer_of: dict[Node, int] = {}
        self.inputs = [node for node in nodes if node.kind == "input"]
        for node in self.inputs:
            self.buffer_of[node] = self._new_buffer()
        self.nodes = _live(nodes, outputs)
        self.level: dict[Node, int] = {}
        self.temporary: dict[Node, int] = {}  # values that must lie in memory, and the buffer each is stored in
        self.folds: dict[Node, int] = {}  # and those that kernels reduce over some axes
        self.copies: list[tuple[Node, int]] = []  # outputs of dtypes without a C type, and their targets
        self.solid: set[Node] = set()  # opaque nodes whose result must be dense memory of its own
        self._set_levels()
        self._last_opaque = max([self.level[node] for node in self.nodes if node.kind in ("opaque", "item")], default=0)
        self._closures: dict[tuple[Node, int], set[Node]] = {}
        self.outputs: list[Output] = []
        self._stores: list[_Store] = []
        for output, target, name in zip(outputs, targets, names, strict=True):
            self.outputs.append(self._output(output, target, name))
        for node, buffer in self.temporary.items():
            self._stores.append(_Store(node, buffer, self.level[node], node.name))
        last = max([*self.level.values(), *(store.stage for store in self._stores)], default=0)
        self.stages = [Stage() for _ in range(last + 1)]
        self._delay_stores()
        self.slot: dict[Node, int] = {}
        self.lines: dict[Kernel, list[str]] = {}  # where the rule says what the entries of a kernel compute
        self._schedule_scalars()
        for k, stage in enumerate(self.stages):
            stage.rows = self._rows(k)
            stage.opaque = [node for node in self.nodes if node.kind in ("opaque", "item") and self.level[node] == k]
        self.kernels = list({row.kernel: None for stage in self.stages for row in stage.rows})
        calls = [call for stage in self.all_stages for call in stage.calls]
        self.forms = list(dict.fromkeys(call.form for call in calls if isinstance(call.form, Form)))

    @property
    def all_stages(self) -> list[Stage]:
        """The stages, and last the stores of 0-dim values, which nobody reads any more."""
        return [*self.stages, self.final]

    def _new_buffer(self) -> int:
        self.buffers += 1
        return self.buffers - 1

    def _set_levels(self) -> None:
        """The first stage in which each node can be computed."""
        for node in self.nodes:
            levels = [self.level[parent] for parent in node.parents()]
            if node.kind == "reduce" and not node.args[0].is_scalar:
                self.level[node] = levels[0] + 1
            elif node.kind == "fold":
                self.level[node] = levels[0] + 1
                self.buffer_of[node] = self.folds[node] = self._new_buffer()
            elif node.op == "spread" and not node.args[0].has_memory:
                self.level[node] = levels[0] + 1
                if node.args[0] not in self.temporary:
                    self.temporary[node.args[0]] = self._new_buffer()
            elif node.kind in ("opaque", "item"):
                self.level[node] = max(
                    [self.level[parent] + (not parent.has_memory) for parent in node.parents()], default=0
                )
                self.buffer_of[node] = self._new_buffer()
                for parent in node.parents():
                    if not parent.has_memory and parent not in self.temporary:
                        self.temporary[parent] = self._new_buffer()
            else:
                self.level[node] = max(levels, default=0)
            if node.kind not in ("opaque", "item"):  # a kernel reads the parents
                self.solid.update(parent for parent in node.parents() if parent.kind in ("opaque", "item"))

    def _output(self, node: Any, target: int | None, name: str) -> Output:
        if not isinstance(node, Node):
            return Output("value", node)
        if node.kind == "input" and target in (None, self.buffer_of[node]):
            return Output("buffer", self.buffer_of[node])
        if node.kind in ("opaque", "item"):
            self.solid.add(node)
            if target is None:
                return Output("opaque", node)
        if target is not None and node.dtype not in _ops.DTYPES:
            self.copies.append((node, target))
            return Output("buffer", target)
        buffer = self._new_buffer() if target is None else target
        stage = self.level[node]
        if target is not None:
            # What is given is overwritten only when all that might raise, or read it, is over.
            stage = max(stage, self._last_opaque)
        self._stores.append(_Store(node, buffer, stage, name))
        return Output("new", buffer, node) if target is None else Output("buffer", buffer)

    def _delay_stores(self) -> None:
        """Put a store off until no later stage reads what the buffer held before.

        Nor may another row of the same stage: what is spread or folded is not read by the row that writes it.
        """
        moved = True
        while moved:
            moved, first_free = False, dict[int, int]()
            for k in range(len(self.stages)):
                own = dict.fromkeys([node for root in self._roots(k) for node in self._closure(root, k)])
                folded = dict.fromkeys([node for fold in self._folds(k) for node in self._closure(fold.args[0], k)])
                spread = [node.args[0] for node in (*own, *folded) if node.op == "spread"]
                for node in own:
                    if node.kind == "input":
                        first_free[self.buffer_of[node]] = k
                for node in (*folded, *spread):
                    if node.kind == "input":
                        first_free[self.buffer_of[node]] = k + 1
            for store in self._stores:
                if first_free.get(store.buffer, 0) > store.stage:
                    store.stage, moved = first_free[store.buffer], True
                    while len(self.stages) <= store.stage:
                        self.stages.append(Stage())
            if len(self.stages) > 2 * len(self.nodes) + 2:
                raise Untraceable("leaves are overwritten with what is computed from each other's rows")

    # Leaves

    def _roots(self, k: int) -> list[Node]:
        """What leaf kernels must compute in a stage."""
        stored = [store.node for store in self._stores if store.stage == k and not store.node.is_scalar]
        return stored + [node.args[0] for node in self._reductions(k)]

    def _folds(self, k: int) -> list[Node]:
        return [node for node in self.folds if self.level[node] == k + 1]

    def _reductions(self, k: int) -> list[Node]:
        return [n for n in self.nodes if n.kind == "reduce" and not n.args[0].is_scalar and self.level[n] == k + 1]

    def _is_given(self, node: Node, k: int) -> bool:
        """Whether a kernel of stage k finds a node computed."""
        return node.is_scalar or node.has_memory or (node in self.temporary and self.level[node] < k)

    def _closure(self, root: Node, k: int) -> set[Node]:
        """The nodes that a kernel computes or reads for a root."""
        if (root, k) in self._closures:
            return self._closures[root, k]
        seen = self._closures[root, k] = set()
        queue = [root]
        while queue:
            node = queue.pop()
            if node not in seen:
                seen.add(node)
                if not self._is_given(node, k) and node.op != "spread":
                    queue.extend(node.parents())
        return seen

    def _in_order(self, root: Node, k: int, known: Container[Node]) -> list[Node]:
        """What a kernel computes or reads for a root, operands first; all but what is known.

        Not a function that calls itself: a rule of some hundred operators in a row is deeper than the stack.
        """
        found: dict[Node, None] = {}
        pending = [root]
        while pending:
            node = pending[-1]
            inside = () if self._is_given(node, k) or node.op == "spread" else node.args
            missing = [x for x in inside if isinstance(x, Node) and x not in known and x not in found]
            pending += reversed(missing)
            if not missing and pending.pop() not in known:
                found[node] = None
        return list(found)

    def _rows(self, k: int) -> list[Row]:
        stores = [store for store in self._stores if store.stage == k and not store.node.is_scalar]
        roots: list[_Store | Node] = [*stores, *self._reductions(k)]
        groups = _Groups(len(roots))
        for i, root in enumerate(roots):
            node = root.node if isinstance(root, _Store) else root.args[0]
            for other in self._closure(node, k):
                if not other.is_scalar and other.op not in ("fill", "spread"):
                    groups.join(i, self.buffer_of.get(other, other))
            if isinstance(root, _Store):
                groups.join(i, root.buffer)
        rows = [self._row(k, [roots[i] for i in group]) for group in groups.members()]
        rows += [self._row(k, [fold]) for fold in self._folds(k)]
        # Rows of one kernel side by side: its code stays in the cache.
        order = {kernel: i for i, kernel in enumerate({row.kernel: None for row in rows})}
        return sorted(rows, key=lambda row: order[row.kernel])

    def _row(self, k: int, roots: list["_Store | Node"]) -> Row:
        numbers: dict[Node, int] = {}
        entries: list[Entry] = []
        lines: list[str] = []
        buffers: list[int] = []
        slots: list[int] = []
        spreads: list[tuple[int, int]] = []

        def visit(value: Any) -> int | Constant:
            if not isinstance(value, Node):
                return _constant(value)
            for node in self._in_order(value, k, numbers):
                entry = enter(node)
                numbers[node] = len(entries)
                entries.append(entry)
                lines.append(node.line)
            return numbers[value]

        def enter(node: Node) -> Entry:
            if node.is_scalar:
                slots.append(self.slot[node])
                return Entry("scalar", "", (), node.dtype, node.dtype, node.name)
            if self._is_given(node, k):
                buffers.append(self._buffer(node))
                return Entry("buffer", "", (), node.dtype, node.dtype, node.name)
            if node.op == "spread":
                source, times, inner = node.args
                buffers.append(self._buffer(source))
                spreads.append((times, inner))
                return Entry("spread", "row" if inner == 1 else "column", (), node.dtype, node.dtype, source.name)
            args = node.args[:1] if node.op == "fill" else node.args
            known = tuple([numbers[x] if isinstance(x, Node) else _constant(x) for x in args])
            return Entry("compute", node.op, known, node.dtype, node.compute, node.name)

        results: list[Result] = []
        reductions: list[Node] = []
        targets: list[int] = []
        sizes = set()
        loop: Literal["flat", "runs", "rows", "columns"] = "flat"
        extents: list[int] = []
        for root in roots:
            node = root.node if isinstance(root, _Store) else root.args[0]
            sizes.add(node.numel)
            entry = visit(node)
            assert isinstance(entry, int)
            if isinstance(root, _Store):
                results.append(Result("store", entry, node.dtype, root.name))
                targets.append(root.buffer)
                continue
            results.append(Result(root.op, entry, root.dtype, root.name))
            if root.kind == "fold":
                targets.append(self.folds[root])
                loop, extents = ("rows" if root.args[2] == 1 else "columns"), [*root.args[1:]]
            else:
                reductions.append(root)
        if len(sizes) > 1:
            raise Untraceable(f"leaves of {sorted(sizes)} elements are computed together")
        if spreads:
            run = math.gcd(*(times if inner == 1 else inner for times, inner in spreads))
            loop, extents = "runs", [run, *(extent for spread in spreads for extent in spread)]
        kernel = Kernel(tuple(entries), tuple(results), loop)
        self.lines.setdefault(kernel, lines)
        return Row(kernel, buffers + targets, slots, extents, sizes.pop(), reductions)

    def _buffer(self, node: Node) -> int:
        return self.temporary[node] if node in self.temporary else self.buffer_of[node]

    # 0-dim values

    def _schedule_scalars(self) -> None:
        """Give every 0-dim value a slot, and order what computes them into calls of equal depth and form."""
        computed = [n for n in self.nodes if n.is_scalar and n.kind in ("pointwise", "reduce")]
        stored = [store for store in self._stores if store.node.is_scalar]
        needed = dict.fromkeys([p for n in self.nodes if n.kind in ("pointwise", "reduce") for p in n.parents()])
        needed |= dict.fromkeys([store.node for store in stored])
        loaded = [node for node in needed if node.is_scalar and node.has_memory]
        # Combined partial results come last, so that the slots of the others do not depend on their number.
        whole = [n for n in computed if n.kind == "reduce" and not n.args[0].is_scalar]
        for node in [*loaded, *(n for n in computed if n not in set(whole)), *whole]:
            self.slot[node] = len(self.slot)
        depth: dict[Node, int] = {}
        for k, stage in enumerate(self.stages):
            calls: dict[tuple[int, int, Form], Call] = {}
            here = [node for node in self.slot if self.level[node] == k and node not in whole]
            for node in sorted(here, key=lambda node: node.number):
                own = 0 if node.has_memory else 1 + max([depth[p] for p in node.parents() if p in depth], default=0)
                depth[node] = own
                form, row = self._form(node)
                unique = row[0] if node.kind == "reduce" else -1  # a reduction takes in as many values as it will
                calls.setdefault((own, unique, form), Call(form, [])).rows.append(row)
            stage.calls = [calls[key] for key in sorted(calls, key=lambda key: key[0])]
            depth.clear()
            for store in stored:
                if store.node in self.temporary and store.buffer == self.temporary[store.node] and store.stage == k:
                    stage.calls.append(self._store_call(store))
        self.final = Stage()
        for store in stored:
            if self.temporary.get(store.node) != store.buffer:
                self.final.calls.append(self._store_call(store))
        self.final.calls = _merged(self.final.calls)

    def _store_call(self, store: _Store) -> Call:
        form = Form("store", "", (), store.node.dtype, store.node.dtype)
        return Call(form, [[self.slot[store.node], store.buffer]])

    def _form(self, node: Node) -> tuple[Form, list[int]]:
        slot = self.slot[node]
        if node.has_memory:
            return Form("load", "", (), node.dtype, node.dtype), [slot, self.buffer_of[node]]
        if node.kind == "reduce":
            return Form("reduce", node.op, (), node.dtype, node.dtype), [slot, *(self.slot[p] for p in node.args)]
        args = node.args[:1] if node.op == "fill" else node.args
        form = Form(
            "compute",
            node.op,
            tuple([x.dtype if isinstance(x, Node) else _constant(x) for x in args]),
            node.dtype,
            node.compute,
        )
        return form, [slot, *(self.slot[x] for x in args if isinstance(x, Node))]


class _Groups:
    """Which of several roots belong together because they touch the same things."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._first: dict[Any, int] = {}

    def join(self, i: int, thing: Any) -> None:
        self._parent[self._find(i)] = self._find(self._first.setdefault(thing, i))

    def members(self) -> Iterable[list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self._parent)):
            groups[self._find(i)].append(i)
        return groups.values()

    def _find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i


def _live(nodes: Sequence[Node], outputs: Sequence[Any]) -> list[Node]:
    """The nodes that the outputs depend on, parents first."""
    live: set[Node] = set()
    queue = [output for output in outputs if isinstance(output, Node)]
    while queue:
        node = queue.pop()
        if node not in live:
            live.add(node)
            queue.extend(node.parents())
    return [node for node in nodes if node in live]


def _merged(calls: list[Call]) -> list[Call]:
    merged: dict[Form | Chain, Call] = {}
    for call in calls:
        merged.setdefault(call.form, Call(call.form, [])).rows.extend(call.rows)
    return list(merged.values())


def _constant(value: Any) -> Constant:
    return Constant(value, value.hex() if isinstance(value, float) else repr(value))
