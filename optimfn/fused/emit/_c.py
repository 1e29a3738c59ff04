"""Write kernels as C.

Every kernel is a function of its own, under a name made of what it computes and a digest of its text, so that
plans share what they have in common. The driver runs any plan; all it knows of one are tables.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..ir import _ops
from ..ir._kernels import Chain, Form, Kernel
from ..ir._numbers import in_registers
from ._function import Function, indented, prelude

BLOCK = 512  # elements summed in the precision of the data before they join a double
LINES = 128  # elements of each new result that go past the caches at a time; with more of them it is slower
CHUNK = 16384  # elements a thread takes at a time: three to six arrays of them fit into a core's own cache

_COMPUTE = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "float",
    torch.float16: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "uint8_t",
}  # the type that values have in registers
_MEMORY = {**_COMPUTE, torch.bfloat16: "uint16_t", torch.float16: "_Float16"}  # and in memory


class C:
    """The language."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        kind, value = _COMPUTE[dtype], in_registers(value, dtype)
        if isinstance(value, int):
            return f"(({kind}){value}LL)"
        if not math.isfinite(value):
            return f"(({kind}){'NAN' if math.isnan(value) else '-INFINITY' if value < 0 else 'INFINITY'})"
        return f"({value.hex()}{self.suffix(dtype)})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"({_COMPUTE[dtype]}){text}"

    def suffix(self, dtype: torch.dtype) -> str:
        """What C appends to the names of functions on this dtype."""
        return "f" if _COMPUTE[dtype] == "float" else ""

    def leaf(self, kernel: Kernel) -> "_Leaf":
        """For a kernel."""
        return _Leaf(kernel)

    def scalars(self, form: Form | Chain) -> "_Scalars":
        """For a form that is no reduction."""
        return _Scalars()

    def reduction(self, form: Form) -> str:
        """The function that reduces 0-dim values to one."""
        kind, member = _COMPUTE[form.dtype], _member(form.dtype)
        step = {"sum": "all + next", "max": "MAXIMUM(next, all)", "min": "MINIMUM(next, all)"}[form.op]
        lines = [
            f"{'double' if form.op == 'sum' and form.dtype.is_floating_point else kind} all = v[row[1]].{member};",
            "for (int64_t i = 2; i < n; i++) {",
            f"  const {kind} next = v[row[i]].{member};",
            f"  all = {step};",
            "}",
            f"v[row[0]].{member} = {_ops.rounded(form.dtype, f'({kind})all')};",
        ]
        return f"{_SCALARS}{indented(lines, 2)}}}\n"


def print_unit(functions: Iterable[Function]) -> str:
    """A whole source file: the functions in alphabetical order, and the driver."""
    words = "\n".join(f"#define {word} {means.c}" for word, means in _ops.WORDS.items())
    texts = [function.text for function in sorted(functions)]
    return "\n".join([prelude("prelude.c", words=words), *texts, prelude("driver.c", chunk=CHUNK)])


class _Scalars:
    """Writes the program of 0-dim values, which goes over rows."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def slot(self, name: str, dtype: torch.dtype, position: int) -> None:
        self._lines.append(f"const {_COMPUTE[dtype]} {name} = v[row[{position}]].{_member(dtype)};")

    def load(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        value = _loaded(dtype, f"*(const {_MEMORY[dtype]} *)plan->buffers[row[{buffer}]]")
        self._lines.append(f"const {_COMPUTE[dtype]} {name} = {value};")

    def value(self, name: str, dtype: torch.dtype, text: str) -> None:
        self._lines.append(f"const {_COMPUTE[dtype]} {name} = {text};")

    def keep(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._lines.append(f"v[row[{slot}]].{_member(dtype)} = {name};")

    def store(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._lines.append(f"*({_MEMORY[dtype]} *)plan->buffers[row[{buffer}]] = {_stored(dtype, name)};")

    def text(self, fields: int) -> str:
        head = f"  for (const int64_t *end = row + {fields} * n; row < end; row += {fields}) {{\n"
        return f"{_SCALARS}{head}{indented(self._lines, 4)}  }}\n}}\n"


_SCALARS = "RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {\n  Value *v = plan->values;\n"


class _Total(NamedTuple):
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


class _Leaf:
    """Writes the program of a leaf, as loops over the elements of a chunk."""

    def __init__(self, kernel: Kernel) -> None:
        self._loop = kernel.loop
        self._start = "" if kernel.loop in ("rows", "columns") else " + start"
        # Compilers do not spread sums of halves over lanes, and one long sum in float loses three bits.
        self._halves = any(e.kind == "buffer" and e.dtype in _ops.LOW_PRECISION for e in kernel.entries)
        self._loads, self._runs, self._body, self._ends = list[str](), list[str](), list[str](), list[str]()
        self._totals: list[_Total] = []
        self._new: list[tuple[str, str]] = []  # what may go past the caches, and what it is in memory

    def extents(self, positions: Sequence[int]) -> None:
        names = {"flat": (), "runs": ("run",), "rows": ("times",), "columns": ("times", "inner")}[self._loop]
        for name, position in zip(names, positions, strict=False):
            self._loads.append(f"const int64_t {name} = {_extent(position)};")

    def scalar(self, name: str, dtype: torch.dtype, slot: int) -> None:
        value = f"plan->values[plan->places[chunk->slots + {slot}]].{_member(dtype)}"
        self._loads.append(f"const {_COMPUTE[dtype]} {name} = {value};")

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"const {_MEMORY[dtype]} *{name}_at = {_pointer(dtype, buffer)}{self._start};")
        self._body.append(f"const {_COMPUTE[dtype]} {name} = {_loaded(dtype, f'{name}_at[i]')};")

    def spread(self, name: str, dtype: torch.dtype, buffer: int, extents: tuple[int, int], axis: str) -> None:
        kind, times, inner = _COMPUTE[dtype], f"{name}_times", f"{name}_inner"
        self._loads.append(f"const {_MEMORY[dtype]} *{name}_of = {_pointer(dtype, buffer)};")
        self._loads.append(f"const int64_t {times} = {_extent(extents[0])}, {inner} = {_extent(extents[1])};")
        if axis == "row":
            self._runs.append(f"const {kind} {name} = {_loaded(dtype, f'{name}_of[place / {times}]')};")
        else:
            first = f"place / ({times} * {inner}) * {inner} + place % {inner}"
            self._runs.append(f"const {_MEMORY[dtype]} *{name}_at = {name}_of + {first};")
            self._body.append(f"const {kind} {name} = {_loaded(dtype, f'{name}_at[i - from]')};")

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        self._body.append(f"const {_COMPUTE[dtype]} {name} = {text};" + (f"  // {line}" if line else ""))

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        kind = _MEMORY[dtype]
        self._loads.append(f"{kind} *{name}_to = {_pointer(dtype, buffer)}{self._start};")
        if is_new and self._loop == "flat":
            self._new.append((name, kind))
            self._body.append(f"{name}_in[i - from] = {_stored(dtype, value)};")
        else:
            self._body.append(f"{name}_to[i] = {_stored(dtype, value)};")

    def reduce(self, name: str, how: str, value: str, dtype: torch.dtype) -> None:
        self._totals.append(_Total(name, how, value, "double" if self._halves else _COMPUTE[dtype]))
        self._ends.append(f"plan->partials[chunk->partial + {len(self._ends)} * chunk->partial_step] = {name}_all;")

    def fold(self, name: str, how: str, value: str, dtype: torch.dtype, buffer: int, to: torch.dtype) -> None:
        kind = "double" if self._halves else _COMPUTE[dtype]
        self._totals.append(_Total(name, "sum" if how == "mean" else how, value, kind))
        self._loads.append(f"{_MEMORY[to]} *to = {_pointer(to, buffer)};")
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
        clauses, adds = "", []
        for total in self._totals:
            name = f"{total.name}_part" if total.how == "sum" else f"{total.name}_all"
            clauses += f" reduction({ {'sum': '+', 'max': 'greatest', 'min': 'least'}[total.how] } : {name})"
            adds.append(total.add(name))
        head = f"for (int64_t i = {start}; i < {end}; i++) {{"
        return [f"#pragma omp simd{clauses}", head, *(f"  {line}" for line in [*self._body, *adds]), "}"]

    def _columns(self, total: _Total) -> list[str]:
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


def _pointer(dtype: torch.dtype, buffer: int) -> str:
    return f"({_MEMORY[dtype]} *)plan->buffers[plan->places[chunk->buffers + {buffer}]]"


def _extent(position: int) -> str:
    return f"plan->places[chunk->slots + {position}]"


def _loaded(dtype: torch.dtype, place: str) -> str:
    """A value of what stands in memory."""
    if dtype == torch.bfloat16:
        return f"from_bfloat16({place})"
    return f"(float){place}" if dtype == torch.float16 else place


def _stored(dtype: torch.dtype, value: str) -> str:
    """What stands in memory for a value."""
    if dtype == torch.bfloat16:
        return f"to_bfloat16({value})"
    return f"(_Float16){value}" if dtype == torch.float16 else value


def _member(dtype: torch.dtype) -> str:
    """The member of the union `Value` that holds 0-dim values of this dtype."""
    return {"float": "f", "double": "d"}.get(_COMPUTE[dtype], "i")
