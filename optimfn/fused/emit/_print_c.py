"""Print the kernels of a plan as C.

Every kernel is a function of its own, under a name made of what it computes and a digest of its text, so that
plans share what they have in common. The driver below runs any plan; all it knows of one are tables.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..ir import _ops
from ..ir._kernels import Form, Kernel
from ._driver import DRIVER, HEADER
from ._print import Function, comment

BLOCK = 512  # elements summed in the precision of the data before they join a double

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


def print_kernel(kernel: Kernel, lines_of_rule: Sequence[str]) -> Function:
    """A leaf program as a function of one chunk."""
    # A name of an entry ends in its number, so no other name may.
    loads, runs, body, ends = list[str](), list[str](), list[str](), list[str]()
    names: list[str] = []
    start = "" if kernel.loop in ("rows", "columns") else " + start"
    slots = sum(entry.kind == "scalar" for entry in kernel.entries)
    extents = (f"plan->table[chunk->slots + {slots + k}]" for k in itertools.count())
    buffers, scalars = itertools.count(), itertools.count()
    if kernel.loop != "flat":
        loads.append(f"const int64_t {'run' if kernel.loop == 'runs' else 'times'} = {next(extents)};")
    if kernel.loop == "columns":
        loads.append(f"const int64_t inner = {next(extents)};")
    for number, entry in enumerate(kernel.entries):
        name = f"{entry.name}{number}"
        names.append(name)
        kind, memory = _COMPUTE[entry.dtype], _MEMORY[entry.dtype]
        if entry.kind == "scalar":
            value = f"plan->values[plan->table[chunk->slots + {next(scalars)}]].{_field(entry.dtype)}"
            loads.append(f"const {kind} {name} = {value};")
        elif entry.kind == "buffer":
            loads.append(f"const {memory} *{name}_at = {_pointer(memory, next(buffers))}{start};")
            body.append(f"const {kind} {name} = {_load(entry.dtype, f'{name}_at[i]')};")
        elif entry.kind == "spread":
            loads.append(f"const {memory} *{name}_of = {_pointer(memory, next(buffers))};")
            loads.append(f"const int64_t {name}_times = {next(extents)}, {name}_inner = {next(extents)};")
            if entry.op == "row":
                runs.append(f"const {kind} {name} = {_load(entry.dtype, f'{name}_of[place / {name}_times]')};")
            else:
                first = f"place / ({name}_times * {name}_inner) * {name}_inner + place % {name}_inner"
                runs.append(f"const {memory} *{name}_at = {name}_of + {first};")
                body.append(f"const {kind} {name} = {_load(entry.dtype, f'{name}_at[i - from]')};")
        else:
            text = _ops.entry_expression(_C, entry, kernel.entries, names)
            body.append(f"const {kind} {name} = {text};{comment('//', lines_of_rule[number])}")
    halves = any(e.kind == "buffer" and e.dtype in (torch.float16, torch.bfloat16) for e in kernel.entries)
    totals: list[_Total] = []
    for number, result in enumerate(kernel.results):
        value = names[result.entry]
        if result.kind == "store":
            place = f"new_{result.name}{number}_to"
            loads.append(f"{_MEMORY[result.dtype]} *{place} = {_pointer(_MEMORY[result.dtype], next(buffers))}{start};")
            body.append(f"{place}[i] = {_store(result.dtype, value)};")
            continue
        # Compilers do not spread sums of halves over lanes, and one long sum in float loses three bits.
        kind = "double" if halves else _COMPUTE[kernel.entries[result.entry].dtype]
        totals.append(_Total(f"{result.kind}{number}", "sum" if result.kind == "mean" else result.kind, value, kind))
        if kernel.loop in ("rows", "columns"):
            loads.append(f"{_MEMORY[result.dtype]} *to = {_pointer(_MEMORY[result.dtype], next(buffers))};")
            loads.append(f"const double among = {'times' if result.kind == 'mean' else '1'};")
        else:
            ends.append(f"plan->partials[chunk->partial + {len(ends)} * chunk->partial_step] = {totals[-1].name}_all;")
    stem = "_".join(dict.fromkeys(result.name for result in kernel.results))
    lines = [*loads, *_loop(kernel.loop, runs, body, totals), *ends]
    head = "void $(const Plan *plan, const Chunk *chunk) {\n  const int64_t start = chunk->start, n = chunk->count;\n"
    return Function.named(stem, head + "".join(f"  {line}\n" for line in lines) + "}\n")


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


def _loop(loop: str, runs: Sequence[str], body: Sequence[str], totals: Sequence[_Total]) -> list[str]:
    """The loops over the elements."""
    if loop == "columns":
        return _loop_over_columns(body, *totals)
    starts = [f"double {total.name}_all = {total.empty};" for total in totals]
    if loop == "rows":
        inner = _loop_over_blocks("out * times", "(out + 1) * times", "", [], body, totals)
        inner = [*starts, *inner, f"to[out] = {totals[0].name}_all / among;"]
        return ["for (int64_t out = start; out < start + n; out++) {", *(f"  {line}" for line in inner), "}"]
    if loop == "runs":
        runs = ["const int64_t place = start + from;", *runs]
        return [*starts, *_loop_over_blocks("0", "n", "run - (start + from) % run", runs, body, totals)]
    if not any(total.how == "sum" for total in totals):
        return [*starts, *_simd("0", "n", body, totals)]
    return [*starts, *_loop_over_blocks("0", "n", "", [], body, totals)]


def _loop_over_blocks(
    start: str, end: str, most: str, first: Sequence[str], body: Sequence[str], totals: Sequence[_Total]
) -> list[str]:
    """A loop over parts that are summed by themselves, and no longer than `most`."""
    sums = [total for total in totals if total.how == "sum"]
    size = f"{end} - from"
    if sums:
        size = f"LEAST({size}, {BLOCK})"
    if most:
        size = f"LEAST({size}, {most})"
    lines = [
        *first,
        *(f"{total.kind} {total.name}_part = 0;" for total in sums),
        *_simd("from", "to_", body, totals),
        *(f"{total.name}_all += {total.name}_part;" for total in sums),
    ]
    return [
        f"for (int64_t from = {start}, to_; from < {end}; from = to_) {{",
        f"  to_ = from + {size};",
        *(f"  {line}" for line in lines),
        "}",
    ]


def _simd(start: str, end: str, body: Sequence[str], totals: Sequence[_Total]) -> list[str]:
    """The innermost loop."""
    clauses, adds = "", []
    for total in totals:
        name = f"{total.name}_part" if total.how == "sum" else f"{total.name}_all"
        clauses += f" reduction({ {'sum': '+', 'max': 'greatest', 'min': 'least'}[total.how] } : {name})"
        adds.append(total.add(name))
    head = f"for (int64_t i = {start}; i < {end}; i++) {{"
    return [f"#pragma omp simd{clauses}", head, *(f"  {line}" for line in [*body, *adds]), "}"]


def _loop_over_columns(body: Sequence[str], total: _Total) -> list[str]:
    """Row after row into the results of all columns."""
    return [
        f"double all[{BLOCK}];",
        f"for (int64_t c = 0; c < n; c++) all[c] = {total.empty};",
        "const int64_t first = start / inner * inner * times + start % inner;",
        "for (int64_t from = first; from < first + times * inner; from += inner) {",
        "  #pragma omp simd",
        "  for (int64_t i = from; i < from + n; i++) {",
        *(f"    {line}" for line in body),
        f"    {total.add('all[i - from]')}",
        "  }",
        "}",
        "for (int64_t c = 0; c < n; c++) to[start + c] = all[c] / among;",
    ]


def print_form(form: Form) -> Function:
    """The program of 0-dim values as a function of many such values."""
    dtype, member = form.dtype, _field(form.dtype)
    memory = _MEMORY[dtype]
    width, stem = 2, f"{form.kind}_{form.op or str(dtype).removeprefix('torch.')}"
    if form.kind == "load":
        line = f"v[row[0]].{member} = {_load(dtype, f'*(const {memory} *)plan->buffers[row[1]]')};"
    elif form.kind == "store":
        line = f"*({memory} *)plan->buffers[row[1]] = {_store(dtype, f'v[row[0]].{member}')};"
    elif form.kind == "reduce":
        return _print_reduce(form, stem)
    else:
        names = [f"v[row[{k}]].{_field(own)}" for k, own in enumerate(form.operands, 1)]
        width, text = 1 + len(names), _ops.form_expression(_C, form, names)
        line = f"v[row[0]].{member} = {text};"
    text = f"""RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {{
  Value *v = plan->values;
  for (const int64_t *end = row + {width} * n; row < end; row += {width})
    {line}
}}
"""
    return Function.named(stem, text)


def _print_reduce(form: Form, stem: str) -> Function:
    kind, member = _COMPUTE[form.dtype], _field(form.dtype)
    step = {"sum": "all + next", "max": "MAXIMUM(next, all)", "min": "MINIMUM(next, all)"}[form.op]
    text = f"""RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {{
  Value *v = plan->values;
  {"double" if form.op == "sum" and form.dtype.is_floating_point else kind} all = v[row[1]].{member};
  for (int64_t i = 2; i < n; i++) {{
    const {kind} next = v[row[i]].{member};
    all = {step};
  }}
  v[row[0]].{member} = {_ops.rounded(form.dtype, f"({kind})all")};
}}
"""
    return Function.named(stem, text)


def print_unit(functions: Iterable[Function]) -> str:
    """A whole source file: the functions in alphabetical order, and the driver."""
    return "\n".join([HEADER, *(function.text for function in sorted(functions)), DRIVER])


def _pointer(memory: str, position: int) -> str:
    return f"({memory} *)plan->buffers[plan->table[chunk->buffers + {position}]]"


class _Language:
    """How C writes constants and conversions."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        kind = _COMPUTE[dtype]
        if not dtype.is_floating_point:
            return f"(({kind}){int(value)}LL)"
        value = float(value)
        if kind == "float":
            value = _ops.nearest_float32(value)
        if not math.isfinite(value):
            return f"(({kind}){'NAN' if math.isnan(value) else '-INFINITY' if value < 0 else 'INFINITY'})"
        return f"({value.hex()}{self.suffix(dtype)})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"({_COMPUTE[dtype]}){text}"

    def suffix(self, dtype: torch.dtype) -> str:
        """What C appends to the names of functions on this dtype."""
        return "f" if _COMPUTE[dtype] == "float" else ""


_C = _Language()


def _load(dtype: torch.dtype, place: str) -> str:
    """Read a value from memory."""
    if dtype == torch.bfloat16:
        return f"from_bfloat16({place})"
    return f"(float){place}" if dtype == torch.float16 else place


def _store(dtype: torch.dtype, value: str) -> str:
    """What to write into memory for a value."""
    if dtype == torch.bfloat16:
        return f"to_bfloat16({value})"
    return f"(_Float16){value}" if dtype == torch.float16 else value


def _field(dtype: torch.dtype) -> str:
    """The member of the union `Value` that holds scalars of this dtype."""
    return {"float": "f", "double": "d"}.get(_COMPUTE[dtype], "i")
