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


def cut(size: int, part: int) -> Iterator[tuple[int, int]]:
    """Start and size of every part of something, all but the last of one size."""
    return ((start, min(part, size - start)) for start in range(0, size, part))


def cut_columns(row: Row, part: int) -> Iterator[tuple[int, int]]:
    """The results of a fold over columns: no chunk goes beyond those of one matrix."""
    times, inner = row.extents
    for first in range(0, row.numel // times, inner):
        yield from ((first + start, size) for start, size in cut(inner, part))


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


class _Part(NamedTuple):
    """What one row has in the tables."""

    owner: Owner
    kernel: Kernel
    chunks: "array[int]"
    combines: "array[int]"
    numel: int


class _Operation(NamedTuple):
    """What one call has in the tables; where some of it may be left out, also its rows."""

    fields: tuple[int, int, int]
    owners: Sequence[Owner] = ()
    rows: Sequence[bytes] = ()  # of a reduction its result and its operands
    reduces: bool = False


class Selection:
    """The part of the tables of a plan that one pattern of gradients needs.

    Args:
        rows: Slots and buffers of 0-dim arithmetic, of the whole plan.
        stages: For each stage what its calls and its rows have.
        present: The owners that are present; all if it is `None`.
    """

    def __init__(
        self,
        rows: "array[int]",
        stages: Iterable[tuple[list[_Operation], list[_Part]]],
        present: Set[Owner] | None,
    ) -> None:
        self.rows = rows if present is None else rows[:]
        self.chunks = array("q")  # kernel; positions of buffers and slots; partial result, its step; start, count
        self.calls = array("q")  # form, position of its rows, their number
        self.combines = array("q")  # slot, first partial result, their number, how, dtype
        self.sections: list[Section] = []
        pending: list[_Part] = []  # reductions of a stage are combined when the next begins
        for operations, parts in stages:
            first = len(self.combines)
            for part in pending:
                self.combines += part.combines
            combines = Extent(first // COMBINE_FIELDS, (len(self.combines) - first) // COMBINE_FIELDS)
            calls = Extent(len(self.calls) // CALL_FIELDS, len(operations))
            for operation in operations:
                whole = present is None or not operation.rows
                self.calls.extend(operation.fields if whole else self._some(operation, present or set()))
            pending = parts if present is None else [part for part in parts if part.owner in present]
            chunks, kernels = len(self.chunks) // CHUNK_FIELDS, []
            for kernel, members in groupby(pending, key=lambda part: part.kernel):
                start = len(self.chunks)
                for part in members:
                    self.chunks += part.chunks
                extent = Extent(start // CHUNK_FIELDS, (len(self.chunks) - start) // CHUNK_FIELDS)
                kernels.append((kernel, extent))
            size = len(self.chunks) // CHUNK_FIELDS - chunks
            elements = sum([part.numel for part in pending])
            self.sections.append(Section(combines, calls, Extent(chunks, size), kernels, elements))

    def _some(self, operation: _Operation, present: Set[Owner]) -> tuple[int, int, int]:
        """The rows of a call that are present; of a reduction, the operands."""
        position, rows = len(self.rows), operation.rows
        here = map(present.__contains__, operation.owners)
        if operation.reduces:
            # One of nothing is not needed by anything that is present; the old values of its operands will do.
            some = [rows[0], *(list(compress(rows[1:], here)) or rows[1:])]
        else:
            some = list(compress(rows, here))
        self.rows.frombytes(b"".join(some))
        return operation.fields[0], position, len(some)


class Tables:
    """The tables of a plan.

    Args:
        slot: The slot of each 0-dim value.
        stages: The stages of a plan.
        cut: Where to cut a row of a plan into chunks: the start and the size of each.
        kernels: What stands in the tables for each kernel.
        forms: And for each form.
    """

    def __init__(
        self,
        slot: Mapping[Node, int],
        stages: Iterable[Stage],
        cut: Callable[[Row], Iterable[tuple[int, int]]],
        kernels: Mapping[Kernel, int],
        forms: Mapping[Form | Chain, int],
    ) -> None:
        self._slot, self._cut, self._kernels, self._forms = slot, cut, kernels, forms
        self.places = array("q")  # numbers of buffers and slots, and extents, row after row
        self.partials = 0
        self._rows = array("q")
        self._stages = [(list(map(self._operation, s.calls)), list(map(self._part, s.rows))) for s in stages]
        self.whole = self.select(None)

    def select(self, present: Set[Owner] | None) -> Selection:
        """What is needed when some gradients are absent."""
        return Selection(self._rows, self._stages, present)

    def _operation(self, call: Call) -> _Operation:
        position = len(self._rows)
        for row in call.rows:
            self._rows.extend(row)
        count = len(call.rows[0]) if call.reduces else len(call.rows)
        fields = self._forms[call.form], position, count
        if all(owner is None for owner in call.owners):
            return _Operation(fields)
        rows = [[one] for one in call.rows[0]] if call.reduces else call.rows
        return _Operation(fields, call.owners, [array("q", row).tobytes() for row in rows], call.reduces)

    def _part(self, row: Row) -> _Part:
        """Cut a leaf into chunks, and say how to combine what they reduce."""
        positions = len(self.places), len(self.places) + len(row.buffers)
        self.places.extend(row.buffers)
        self.places.extend(row.slots)
        self.places.extend(row.extents)
        cuts = list(self._cut(row))
        parts, kernel = len(cuts), self._kernels[row.kernel]
        chunks, combines = array("q"), array("q")
        for part, place in enumerate(cuts):
            chunks.extend((kernel, *positions, self.partials + part, parts, *place))
        for node in row.reductions:
            combines.extend((self._slot[node], self.partials, parts, _HOW[node.op], _KIND.get(node.dtype, 2)))
            self.partials += parts
        return _Part(row.owner, row.kernel, chunks, combines, row.numel)
