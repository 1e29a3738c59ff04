"""A plan as the tables that generated code reads, all of int64.

A gradient that is absent is not a reason to plan anew: the tables of such a step hold what belongs to the others, and
are put together from those of the whole plan. Positions, slots and places of partial results stay the same.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import compress, groupby
from typing import NamedTuple

import torch

from ..ir._graph import Node
from ..ir._kernels import Call, Chain, Form, Kernel, Owner, Row, Stage

CHUNK_FIELDS, CALL_FIELDS, COMBINE_FIELDS = 7, 3, 5
_HOW = {"sum": 0, "max": 1, "min": 2}
_KIND = {torch.float64: 0, torch.float32: 1}  # others are truth values


class Grain(NamedTuple):
    """How much there is in one chunk of a row: elements, or results of a fold, each of so many elements."""

    elements: int
    rows: Callable[[int], int]
    columns: Callable[[int], int]

    def cut(self, row: Row) -> Iterator[tuple[int, int]]:
        """Start and size of each chunk."""
        if row.kernel.loop == "columns":
            times, inner = row.extents
            for first in range(0, row.numel // times, inner):  # no chunk goes beyond the columns of one matrix
                yield from _cut(first, first + inner, self.columns(times))
        elif row.kernel.loop == "rows":
            yield from _cut(0, row.numel // row.extents[0], self.rows(row.extents[0]))
        else:
            block = row.kernel.block or 1
            yield from _cut(0, row.numel, max(self.elements // block, 1) * block)


def _cut(first: int, last: int, part: int) -> Iterator[tuple[int, int]]:
    return ((start, min(part, last - start)) for start in range(first, last, part))


class Extent(NamedTuple):
    """Where the entries of a stage begin in a table, and how many there are."""

    first: int
    size: int


class Section(NamedTuple):
    """What a stage has in the tables."""

    combines: Extent  # 0-dim values made of the partial results of the stage before
    calls: Extent
    chunks: Extent
    kernels: list[tuple[Kernel, Extent]]  # the chunks of each kernel
    elements: int


class _Group(NamedTuple):
    """What rows of one kernel that follow each other have in the tables; the lists are parallel."""

    kernel: Kernel
    owners: int  # the number of those of the rows, among all lists of owners
    chunks: list[bytes]
    combines: list[bytes]
    sizes: list[int]


class _Operation(NamedTuple):
    """What one call has in the tables; where some of it may be left out, also its rows."""

    fields: tuple[int, int, int]
    owners: int = 0  # as above
    rows: Sequence[bytes] = ()  # of a reduction its result and its operands
    reduces: bool = False


class Selection:
    """The part of the tables of a plan that one pattern of gradients needs.

    Args:
        rows: Slots and buffers of 0-dim arithmetic, of the whole plan.
        stages: For each stage what its calls and its rows have.
        owners: The lists of owners of both.
        present: The owners that are present; all if it is `None`.
    """

    def __init__(
        self,
        rows: "array[int]",
        stages: Iterable[tuple[list[_Operation], list[_Group]]],
        owners: Iterable[Sequence[Owner]],
        present: Set[Owner] | None,
    ) -> None:
        self.rows = rows if present is None else rows[:]
        self.chunks = array("q")  # kernel; positions of buffers and slots; partial result, its step; start, count
        self.calls = array("q")  # form, position of its rows, their number
        self.combines = array("q")  # slot, first partial result, their number, how, dtype
        self.sections: list[Section] = []
        # Whole lists at a time: a step whose gradients come and go does this anew.
        here = [[True] * len(own) if present is None else list(map(present.__contains__, own)) for own in owners]
        position, taken = len(rows), list[bytes]()
        pending: list[bytes] = []  # reductions of a stage are combined when the next begins
        for operations, groups in stages:
            combines = _append(self.combines, pending, COMBINE_FIELDS)
            calls = Extent(len(self.calls) // CALL_FIELDS, len(operations))
            for fields, number, own_rows, reduces in operations:
                if present is None or not own_rows:
                    self.calls.extend(fields)
                    continue
                some: Sequence[bytes] = list(compress(own_rows, here[number]))
                if reduces and len(some) == 1:
                    some = own_rows  # one of nothing, which nothing that is present needs; old operands will do
                self.calls.extend((fields[0], position, len(some)))
                taken += some
                position += len(some) * len(own_rows[0]) // self.rows.itemsize
            first, kernels, elements = len(self.chunks) // CHUNK_FIELDS, [], 0
            pending = []
            for kernel, number, chunks, combined, sizes in groups:
                own = here[number]
                kernels.append((kernel, _append(self.chunks, compress(chunks, own), CHUNK_FIELDS)))
                pending += compress(combined, own)
                elements += sum(compress(sizes, own))
            size = len(self.chunks) // CHUNK_FIELDS - first
            kernels = [(kernel, extent) for kernel, extent in kernels if extent.size]
            self.sections.append(Section(combines, calls, Extent(first, size), kernels, elements))
        self.rows.frombytes(b"".join(taken))


def _append(table: "array[int]", entries: Iterable[bytes], fields: int) -> Extent:
    """Put entries at the end of a table; where they are."""
    first = len(table)
    table.frombytes(b"".join(entries))
    return Extent(first // fields, (len(table) - first) // fields)


class Tables:
    """The tables of a plan.

    Args:
        slot: The slot of each 0-dim value.
        stages: The stages of a plan.
        grain: How rows are cut into chunks.
        addresses: What stands in the tables for each kernel and form.
    """

    def __init__(
        self,
        slot: Mapping[Node, int],
        stages: Iterable[Stage],
        grain: Grain,
        addresses: Mapping[Kernel | Form | Chain, int],
    ) -> None:
        self._slot, self._grain, self._addresses = slot, grain, addresses
        self.places = array("q")  # numbers of buffers and slots, and extents, row after row
        self.partials = 0
        self._rows = array("q")
        self._owners: dict[tuple[Owner, ...], int] = {}  # each list once
        self._stages = [(list(map(self._operation, s.calls)), self._groups(s.rows)) for s in stages]
        self.whole = self.select(None)

    def select(self, present: Set[Owner] | None) -> Selection:
        """What is needed when some gradients are absent."""
        return Selection(self._rows, self._stages, self._owners, present)

    def _operation(self, call: Call) -> _Operation:
        position = len(self._rows)
        for row in call.rows:
            self._rows.extend(row)
        count = len(call.rows[0]) if call.reduces else len(call.rows)
        fields = self._addresses[call.form], position, count
        if all(owner is None for owner in call.owners):
            return _Operation(fields)
        rows, owners = call.rows, call.owners
        if call.reduces:
            rows, owners = [[one] for one in call.rows[0]], [None, *owners]
        return _Operation(fields, self._number(owners), [array("q", row).tobytes() for row in rows], call.reduces)

    def _groups(self, rows: Iterable[Row]) -> list[_Group]:
        """Rows by their kernels."""
        found = []
        for kernel, own in groupby(rows, key=lambda row: row.kernel):
            members = list(own)
            chunks, combines = zip(*map(self._cut_up, members), strict=True)
            sizes = [row.numel for row in members]
            found.append(_Group(kernel, self._number([row.owner for row in members]), [*chunks], [*combines], sizes))
        return found

    def _number(self, owners: Iterable[Owner]) -> int:
        return self._owners.setdefault(tuple(owners), len(self._owners))

    def _cut_up(self, row: Row) -> tuple[bytes, bytes]:
        """The chunks of a leaf, and how to combine what they reduce."""
        positions = len(self.places), len(self.places) + len(row.buffers)
        self.places.extend(row.buffers)
        self.places.extend(row.slots)
        self.places.extend(row.extents)
        cuts = list(self._grain.cut(row))
        parts, kernel = len(cuts), self._addresses[row.kernel]
        chunks, combines = array("q"), array("q")
        for part, place in enumerate(cuts):
            chunks.extend((kernel, *positions, self.partials + part, parts, *place))
        for node in row.reductions:
            combines.extend((self._slot[node], self.partials, parts, _HOW[node.op], _KIND.get(node.dtype, 2)))
            self.partials += parts
        return chunks.tobytes(), combines.tobytes()
