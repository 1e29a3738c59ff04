"""A plan as the tables that generated code reads, all of int64."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from ..ir._graph import Node
from ..ir._kernels import Call, Chain, Form, Kernel, Row, Stage

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
        self.rows = array("q")  # slots and buffers of 0-dim arithmetic
        self.chunks = array("q")  # kernel; positions of buffers and slots; partial result, its step; start, count
        self.calls = array("q")  # form, position of its rows, their number
        self.combines = array("q")  # slot, first partial result, their number, how, dtype
        self.partials = 0
        self.sections: list[Section] = []
        pending: list[tuple[int, ...]] = []  # reductions of a stage are combined when the next begins
        for stage in stages:
            combines = self._extent(self.combines, COMBINE_FIELDS, [x for combine in pending for x in combine])
            calls = self._extent(self.calls, CALL_FIELDS, [x for call in stage.calls for x in self._call(call)])
            pending = []
            first = len(self.chunks) // CHUNK_FIELDS
            starts: dict[Kernel, int] = {}
            for row in stage.rows:
                starts.setdefault(row.kernel, len(self.chunks) // CHUNK_FIELDS)
                pending += self._row(row)
            last = len(self.chunks) // CHUNK_FIELDS
            ends = pairwise([*starts.values(), last])
            extents = [(kernel, Extent(a, b - a)) for kernel, (a, b) in zip(starts, ends, strict=True)]
            elements = sum(row.numel for row in stage.rows)
            self.sections.append(Section(combines, calls, Extent(first, last - first), extents, elements))

    def _extent(self, table: "array[int]", fields: int, values: Sequence[int]) -> Extent:
        """Append entries."""
        first = len(table) // fields
        table.extend(values)
        return Extent(first, len(values) // fields)

    def _call(self, call: Call) -> tuple[int, int, int]:
        reduces = isinstance(call.form, Form) and call.form.kind == "reduce"
        count = len(call.rows[0]) if reduces else len(call.rows)
        position = len(self.rows)
        for row in call.rows:
            self.rows.extend(row)
        return self._forms[call.form], position, count

    def _row(self, row: Row) -> Sequence[tuple[int, ...]]:
        """Cut a leaf into chunks; returns how to combine what they reduce."""
        positions = len(self.places), len(self.places) + len(row.buffers)
        self.places.extend(row.buffers)
        self.places.extend(row.slots)
        self.places.extend(row.extents)
        chunks = list(self._cut(row))
        parts = len(chunks)
        for part, chunk in enumerate(chunks):
            self.chunks.extend((self._kernels[row.kernel], *positions, self.partials + part, parts, *chunk))
        combines = []
        for node in row.reductions:
            combines.append((self._slot[node], self.partials, parts, _HOW[node.op], _KIND.get(node.dtype, 2)))
            self.partials += parts
        return combines
