"""Write the program of a leaf as C: loops over the elements of a chunk."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..ir import _ops
from ..ir._kernels import Kernel
from ._function import indented
from ._types import C_MEMORY as MEMORY
from ._types import C_TYPES as COMPUTE

BLOCK = 512  # elements summed in the precision of the data before they join a double
LINES = 128  # elements of each new result that go past the caches at a time; with more of them it is slower
CHUNK = 16384  # elements a thread takes at a time: three to six arrays of them fit into a core's own cache


class Total(NamedTuple):
    """Something that a kernel reduces: `{name}_all`, and for sums `{name}_part` of one block."""

    name: str
    how: str
    value: str
    kind: str

    @property
    def empty(self) -> str:
        return {"sum": "0", "max": "-INFINITY", "min": "INFINITY"}[self.how]

    def add(self, to: str) -> str:
        if self.how == "sum":
            return f"{to} += {self.value};"
        return f"{to} = {'MAXIMUM' if self.how == 'max' else 'MINIMUM'}((double){self.value}, {to});"


class Leaf:
    """Writes the program of a leaf, as loops over the elements of a chunk."""

    def __init__(self, kernel: Kernel) -> None:
        self._loop = kernel.loop
        self._start = "" if kernel.loop in ("rows", "columns") else " + start"
        # Compilers do not spread sums of halves over lanes, and one long sum in float loses three bits.
        self._is_wide = any(e.kind == "buffer" and e.dtype in _ops.LOW_PRECISION for e in kernel.entries)
        self._loads, self._runs, self._body, self._ends = list[str](), list[str](), list[str](), list[str]()
        self._totals: list[Total] = []
        self._new: list[tuple[str, str]] = []  # what may go past the caches, and what it is in memory
        self._most: list[str] = []  # greatest whole numbers of a block

    def extents(self, positions: Sequence[int]) -> None:
        names = {"flat": (), "rows": ("times",), "columns": ("times", "inner")}.get(self._loop, ("run",))
        for name, position in zip(names, positions, strict=False):
            self._loads.append(f"const int64_t {name} = {extent(position)};")

    def scalar(self, name: str, dtype: torch.dtype, slot: int) -> None:
        value = f"plan->values[plan->places[chunk->slots + {slot}]].{member(dtype)}"
        self._loads.append(f"const {COMPUTE[dtype]} {name} = {value};")

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"const {MEMORY[dtype]} *{name}_at = {pointer(dtype, buffer)}{self._start};")
        self._body.append(f"const {COMPUTE[dtype]} {name} = {loaded(dtype, f'{name}_at[i]')};")

    def spread(self, name: str, dtype: torch.dtype, buffer: int, extents: tuple[int, int], axis: str) -> None:
        kind, times, inner = COMPUTE[dtype], f"{name}_times", f"{name}_inner"
        self._loads.append(f"const {MEMORY[dtype]} *{name}_of = {pointer(dtype, buffer)};")
        self._loads.append(f"const int64_t {times} = {extent(extents[0])}, {inner} = {extent(extents[1])};")
        if axis == "row":
            self._runs.append(f"const {kind} {name} = {loaded(dtype, f'{name}_of[place / {times}]')};")
        else:
            first = f"place / ({times} * {inner}) * {inner} + place % {inner}"
            self._runs.append(f"const {MEMORY[dtype]} *{name}_at = {name}_of + {first};")
            self._body.append(f"const {kind} {name} = {loaded(dtype, f'{name}_at[i - from]')};")

    def index(self, name: str) -> None:
        self._body.append(f"const int64_t {name} = i{self._start};")

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        self._body.append(f"const {COMPUTE[dtype]} {name} = {text};" + (f"  // {line}" if line else ""))

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        kind = MEMORY[dtype]
        self._loads.append(f"{kind} *{name}_to = {pointer(dtype, buffer)}{self._start};")
        if is_new and self._loop == "flat":
            self._new.append((name, kind))
            self._body.append(f"{name}_in[i - from] = {stored(dtype, value)};")
        else:
            self._body.append(f"{name}_to[i] = {stored(dtype, value)};")

    def reduce(self, name: str, how: str, value: str, dtype: torch.dtype) -> None:
        self._totals.append(Total(name, how, value, "double" if self._is_wide else COMPUTE[dtype]))
        self._ends.append(f"plan->partials[chunk->partial + {len(self._ends)} * chunk->partial_step] = {name}_all;")

    def fold(self, name: str, how: str, value: str, dtype: torch.dtype, buffer: int, to: torch.dtype) -> None:
        kind = "double" if self._is_wide else COMPUTE[dtype]
        self._totals.append(Total(name, "sum" if how == "mean" else how, value, kind))
        self._loads.append(f"{MEMORY[to]} *to = {pointer(to, buffer)};")
        self._loads.append(f"const double among = {'times' if how == 'mean' else '1'};")

    def text(self) -> str:
        head = "void $(const Plan *plan, const Chunk *chunk) {\n"
        lines = ["const int64_t start = chunk->start, n = chunk->count;", *self._loads, *self._loops(), *self._ends]
        return f"{head}{indented(lines, 2)}}}\n"

    def _loops(self) -> list[str]:
        """The loops over the elements."""
        if self._loop == "columns":
            return self._columns(*self._totals)
        starts = [f"double {total.name}_all = {total.empty};" for total in self._totals]
        if self._loop == "rows":
            inner = [*starts, *self._blocks("out * times", "(out + 1) * times")]
            inner.append(f"to[out] = {self._totals[0].name}_all / among;")
            return ["for (int64_t out = start; out < start + n; out++) {", *(f"  {line}" for line in inner), "}"]
        if self._loop == "runs":
            self._runs.insert(0, "const int64_t place = start + from;")
            return [*starts, *self._blocks("0", "n", "run - (start + from) % run")]
        if self._new:
            return [*starts, *self._blocks_of_new()]
        if not any(total.how == "sum" for total in self._totals):
            return [*starts, *self._elements("0", "n")]
        return [*starts, *self._blocks("0", "n")]

    def _blocks_of_new(self) -> list[str]:
        """The blocks of a leaf with new results. Those of large leaves go past the caches, whole lines at a time."""
        self._runs += [f"{kind} *{name}_in = past ? {name}_block : {name}_to + from;" for name, kind in self._new]
        most = BLOCK if any(total.how == "sum" for total in self._totals) else LINES
        *blocks, end = self._blocks("0", "n", str(most))
        writes = [f"stream({name}_to + from, {name}_block, (to_ - from) * sizeof({kind}));" for name, kind in self._new]
        return [
            "const int past = plan->past_caches && chunk->partial_step > 1;",
            *(f"ALIGNED {kind} {name}_block[{most}];" for name, kind in self._new),
            *blocks,
            "  if (past) {",
            *(f"    {write}" for write in writes),
            "  }",
            end,
            "if (past) STREAMED;",
        ]

    def _blocks(self, start: str, end: str, most: str = "") -> list[str]:
        """A loop over parts that are summed by themselves, and no longer than `most`."""
        sums = [total for total in self._totals if total.how == "sum"]
        size = f"{end} - from"
        if sums and most != str(BLOCK):
            size = f"LEAST({size}, {BLOCK})"
        if most:
            size = f"LEAST({size}, {most})"
        lines = [
            *self._runs,
            *(f"{total.kind} {total.name}_part = 0;" for total in sums),
            *self._elements("from", "to_"),
            *(f"{total.name}_all += {total.name}_part;" for total in sums),
        ]
        return [
            f"for (int64_t from = {start}, to_; from < {end}; from = to_) {{",
            f"  to_ = from + {size};",
            *(f"  {line}" for line in lines),
            "}",
        ]

    def _elements(self, start: str, end: str) -> list[str]:
        """The innermost loop."""
        clauses, adds = "".join(f" reduction(max : {name})" for name in self._most), []
        for total in self._totals:
            name = f"{total.name}_part" if total.how == "sum" else f"{total.name}_all"
            clauses += f" reduction({ {'sum': '+', 'max': 'greatest', 'min': 'least'}[total.how] } : {name})"
            adds.append(total.add(name))
        head = f"for (int64_t i = {start}; i < {end}; i++) {{"
        return [f"#pragma omp simd{clauses}", head, *(f"  {line}" for line in [*self._body, *adds]), "}"]

    def _columns(self, total: Total) -> list[str]:
        """Row after row into the results of all columns."""
        return [
            f"double all[{BLOCK}];",
            f"for (int64_t c = 0; c < n; c++) all[c] = {total.empty};",
            "const int64_t first = start / inner * inner * times + start % inner;",
            "for (int64_t from = first; from < first + times * inner; from += inner) {",
            "  #pragma omp simd",
            "  for (int64_t i = from; i < from + n; i++) {",
            *(f"    {line}" for line in self._body),
            f"    {total.add('all[i - from]')}",
            "  }",
            "}",
            "for (int64_t c = 0; c < n; c++) to[start + c] = all[c] / among;",
        ]


def pointer(dtype: torch.dtype, buffer: int) -> str:
    return f"({MEMORY[dtype]} *)plan->buffers[plan->places[chunk->buffers + {buffer}]]"


def extent(position: int) -> str:
    return f"plan->places[chunk->slots + {position}]"


def loaded(dtype: torch.dtype, place: str) -> str:
    """A value of what stands in memory."""
    if dtype == torch.bfloat16:
        return f"from_bfloat16({place})"
    return f"(float){place}" if dtype == torch.float16 else place


def stored(dtype: torch.dtype, value: str) -> str:
    """What stands in memory for a value."""
    if dtype == torch.bfloat16:
        return f"to_bfloat16({value})"
    return f"(_Float16){value}" if dtype == torch.float16 else value


def member(dtype: torch.dtype) -> str:
    """The member of the union `Value` that holds 0-dim values of this dtype."""
    return {"float": "f", "double": "d"}.get(COMPUTE[dtype], "i")
