"""Put what is computed on a leaf in one stage into a row, the program of which is a kernel."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from ..ir._graph import Node, Untraceable
from ..ir._kernels import Constant, Entry, Kernel, Owner, Result, Row
from ._blocks import Blocks
from ._levels import Levels
from ._numbers import Number, settled
from ._scalars import Scalars
from ._stores import Store


class Rows:
    """Makes rows, with one object for all kernels that are equal.

    Args:
        at: When each value is there, and where it lies.
        scalars: The slots of 0-dim values.
        owners: The owner of each node that has one.
        written: The buffers that something is stored into.
        has_sides: Whether something is computed for leaves without a gradient.
    """

    def __init__(
        self, at: Levels, scalars: Scalars, owners: Mapping[Node, Owner], written: Set[int], *, has_sides: bool
    ) -> None:
        self.at, self.scalars = at, scalars
        self._owners, self._written, self._has_sides = owners, written, has_sides
        self._kernels: dict[Kernel, Kernel] = {}
        self.lines: dict[Kernel, list[str]] = {}
        self.are_clear = True  # whether all that a row computes has one owner

    def of_stage(self, k: int, roots: Sequence[Store | Node], folds: Iterable[Node]) -> list[Row]:
        """The rows of a stage, those of one kernel side by side, so that its code stays in the cache.

        Roots that touch the same memory, of which something is written, are of one row: it loads each element before
        it stores it, whatever other threads do meanwhile. So are those of one owner that read or compute the same.
        """
        groups = Groups(len(roots))
        for i, root in enumerate(roots):
            node = root.node if isinstance(root, Store) else root.args[0]
            owner = self._owner(root)
            # What runs with a gradient never meets what runs without it.
            sides = (owner < 0,) if isinstance(owner, int) else (False, True) if self._has_sides else (False,)
            touched: list[Any] = [root.buffer] if isinstance(root, Store) else []
            found = [x for x in self.at.closure(node, k) if not x.is_scalar and x.op not in ("fill", "index", "spread")]
            found = [x.args[0] if x.op == "unpack" else x for x in found]
            touched += [self.at.buffer(x) if x.has_memory else x for x in found]
            for thing in touched:
                for tag in sides if thing in self._written else (owner,):
                    groups.join(i, (thing, tag))
        rows = [self._row(k, [roots[i] for i in group]) for group in groups.members()]
        rows += [self._row(k, [fold]) for fold in folds]
        order: dict[int, int] = {}
        for row in rows:
            order.setdefault(id(row.kernel), len(order))
        return sorted(rows, key=lambda row: order[id(row.kernel)])

    def _owner(self, root: Store | Node) -> Owner:
        return root.owner if isinstance(root, Store) else self._owners.get(root)

    def _row(self, k: int, roots: Sequence[Store | Node]) -> Row:
        nodes = [root.node if isinstance(root, Store) else root.args[0] for root in roots]
        values = dict.fromkeys([x for node in nodes for x in self.at.closure(node, k)])
        blocks = Blocks(values, lambda x: self.at.is_given(x, k))
        program = _Program(self, k, blocks.values)
        results: list[Result] = []
        reductions: list[Node] = []
        targets: list[int] = []
        sizes, owners = set(blocks.numels), set()
        loop: Literal["flat", "runs", "rows", "columns", "blocks"] = "flat"
        extents: list[int] = []
        for root, node in zip(roots, nodes, strict=True):
            packs = node.op == "pack" and not self.at.is_given(node, k)
            node = node.args[0] if packs else node
            if node not in blocks.values:
                sizes.add(node.numel)
            owners.add(self._owner(root))
            entry = program.visit(node)
            if isinstance(root, Store):
                results.append(Result("pack" if packs else "store", entry, node.dtype, root.name, root.is_new))
                targets.append(root.buffer)
                continue
            results.append(Result(root.op, entry, root.dtype, root.name))
            if root.kind == "fold":
                targets.append(self.at.folds[root])
                loop, extents = ("rows" if root.args[2] == 1 else "columns"), [*root.args[1:]]
            else:
                reductions.append(root)
        if len(sizes) > 1:
            raise Untraceable(f"leaves of {sorted(sizes)} elements are computed together")
        self.are_clear &= len(owners) == 1
        if program.spreads:
            run = math.gcd(*(times if inner == 1 else inner for times, inner in program.spreads))
            loop, extents = "runs", [run, *(extent for spread in program.spreads for extent in spread)]
        if blocks.size:
            loop, extents = "blocks", extents or [blocks.size]
        kernel = Kernel(tuple(program.entries), tuple(results), loop, blocks.size)
        known = self._kernels.setdefault(kernel, kernel)
        if known is kernel:
            self.lines[kernel] = program.lines
        return Row(known, program.buffers + targets, program.slots, extents, sizes.pop(), reductions, owners.pop())


class _Program:
    """The entries of one row, and what they are read from."""

    def __init__(self, rows: Rows, k: int, of_block: Set[Node]) -> None:
        self._at, self._scalars, self._stage, self._of_block = rows.at, rows.scalars, k, of_block
        self._numbers: dict[Node, int] = {}
        self.entries: list[Entry] = []
        self.lines: list[str] = []
        self.buffers: list[int] = []
        self.slots: list[int] = []
        self.spreads: list[tuple[int, int]] = []

    def visit(self, root: Node) -> int:
        """The number of the entry that computes a node, after those of its operands."""
        for node in self._at.closure(root, self._stage):
            if node not in self._numbers:
                self._numbers[node] = self._append(self._enter(node), node.line)
        return self._numbers[root]

    def _enter(self, node: Node) -> Entry:
        of_block = node in self._of_block
        if node.is_scalar:
            self.slots.append(self._scalars.slot[node])
            return Entry("scalar", "", (), node.dtype, node.dtype, node.name)
        if self._at.is_given(node, self._stage):
            self.buffers.append(self._at.buffer(node))
            return Entry("buffer", "", (), node.dtype, node.dtype, node.name, of_block)
        if node.op == "to_blocks":
            source = node.args[0]
            return Entry("compute", "copy", (self._numbers[source],), node.dtype, node.dtype, source.name)
        if node.op == "unpack":
            self.buffers.append(self._at.buffer(node.args[0]))
            return Entry("packed", "", (), node.dtype, node.dtype, node.args[0].name)
        if node.op == "spread":
            source, times, inner = node.args
            self.buffers.append(self._at.buffer(source))
            self.spreads.append((times, inner))
            return Entry("spread", "row" if inner == 1 else "column", (), node.dtype, node.dtype, source.name)
        op, args = settled(node)
        return Entry("compute", op, tuple(map(self._operand, args)), node.dtype, node.compute, node.name, of_block)

    def _operand(self, x: Node | Number | Constant) -> int | Constant:
        if isinstance(x, Node):
            return self._numbers[x]
        if isinstance(x, Constant):
            return x
        # Every use has an entry of its own: numbers that happen to be equal must not make another kernel.
        self.slots.append(self._scalars.numbers.slot(x))
        return self._append(Entry("scalar", "", (), x.dtype, x.dtype, "number"), "")

    def _append(self, entry: Entry, line: str) -> int:
        """Add an entry; returns its number."""
        self.entries.append(entry)
        self.lines.append(line)
        return len(self.entries) - 1


class Groups:
    """Which of several roots belong together because they touch the same things."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._first: dict[Any, int] = {}

    def join(self, i: int, thing: Any) -> None:
        """Put `i` together with all others that touch the thing."""
        first = self._first.setdefault(thing, i)
        if first != i:
            self._parent[self._find(i)] = self._find(first)

    def members(self) -> Iterable[list[int]]:
        """The groups."""
        groups: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self._parent)):
            groups[self._find(i)].append(i)
        return groups.values()

    def _find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i
