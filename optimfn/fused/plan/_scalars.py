"""Give every 0-dim value a slot, and order what computes them into calls."""

from collections.abc import Iterable, Mapping, Sequence

from ..ir._graph import Node
from ..ir._kernels import Call, Chain, Constant, Form, Owner, Stage
from ._levels import Levels
from ._numbers import Numbers, settled
from ._stores import Store


class Scalars:
    """The slots of 0-dim values, and the calls that compute and store them.

    Args:
        at: When each value is there, and where it lies.
        stores: The stores of 0-dim values.
        owners: The owner of each node that has one.
    """

    def __init__(self, at: Levels, stores: Sequence[Store], owners: Mapping[Node, Owner]) -> None:
        self._at, self._owners, self._stores, nodes = at, owners, stores, at.nodes
        computed = [n for n in nodes if n.is_scalar and n.kind in ("pointwise", "reduce")]
        needed = dict.fromkeys([p for n in nodes if n.kind in ("pointwise", "reduce") for p in n.parents()])
        needed |= dict.fromkeys([store.node for store in stores])
        loaded = [node for node in needed if node.is_scalar and node.has_memory]
        # Combined partial results come last, so that the slots of the others do not depend on their number.
        whole = dict.fromkeys([n for n in computed if n.kind == "reduce" and not n.args[0].is_scalar])
        others = [*loaded, *(n for n in computed if n not in whole)]
        self.slot = {node: i for i, node in enumerate([*others, *whole])}
        self.numbers = Numbers(len(self.slot))
        self._by_level: dict[int, list[Node]] = {}
        for node in sorted(others, key=lambda node: node.number):
            self._by_level.setdefault(at.level[node], []).append(node)

    def schedule(self, stages: Sequence[Stage]) -> Stage:
        """Fill in the calls of the stages, and return one more with the last stores.

        A call computes all values of equal depth and form in a stage: none needs another. A value that must lie in
        memory, for an opaque node or to be spread, is stored in its own stage. All else is stored at the very end:
        what is given is loaded once, in the stage of its level, which no store may come before.
        """
        for k, stage in enumerate(stages):
            calls: dict[tuple[int, int, Form], Call] = {}
            depth: dict[Node, int] = {}
            for node in self._by_level.get(k, ()):
                own = 0 if node.has_memory else 1 + max([depth[p] for p in node.parents() if p in depth], default=0)
                depth[node] = own
                form, row, owners = self._form(node)
                unique = row[0] if node.kind == "reduce" else -1  # a reduction takes in as many values as it will
                call = calls.setdefault((own, unique, form), Call(form, [], []))
                call.rows.append(row)
                call.owners += owners
            stage.calls = [calls[key] for key in sorted(calls, key=lambda key: key[0])]
            stage.calls += [self._store(x) for x in self._stores if self._is_kept(x) and x.stage == k]
        merged: dict[Form | Chain, Call] = {}
        for store in self._stores:
            if not self._is_kept(store):
                call = self._store(store)
                known = merged.setdefault(call.form, Call(call.form, [], []))
                known.rows += call.rows
                known.owners += call.owners
        return Stage(calls=list(merged.values()))

    def _store(self, store: Store) -> Call:
        form = Form("store", "", (), store.node.dtype, store.node.dtype)
        return Call(form, [[self.slot[store.node], store.buffer]], [store.owner])

    def _form(self, node: Node) -> tuple[Form, list[int], Iterable[Owner]]:
        slot, owner = self.slot[node], self._owners.get(node)
        if node.has_memory:
            return Form("load", "", (), node.dtype, node.dtype), [slot, self._at.buffer_of[node]], [owner]
        if node.kind == "reduce":
            form = Form("reduce", node.op, (), node.dtype, node.dtype)
            return form, [slot, *(self.slot[p] for p in node.args)], [self._owners.get(p) for p in node.args]
        op, args = settled(node, whole=True)
        dtypes = tuple([x if isinstance(x, Constant) else x.dtype for x in args])
        given = [x for x in args if not isinstance(x, Constant)]
        row = [slot, *(self.slot[x] if isinstance(x, Node) else self.numbers.slot(x) for x in given)]
        return Form("compute", op, dtypes, node.dtype, node.compute), row, [owner]

    def _is_kept(self, store: Store) -> bool:
        """Whether a store makes a value that is needed later in memory."""
        return self._at.temporary.get(store.node) == store.buffer
