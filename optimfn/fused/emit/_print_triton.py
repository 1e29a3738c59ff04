"""Print the kernels of a plan as Triton.

The kernels are those of `_print_c`: a function knows neither how many leaves there are nor how large they are, and
addresses, chunks and slots are tables on the device. 0-dim arithmetic is done there as well, by one program per stage,
so that nothing is ever read back and a step can be captured.

A slot of `values` holds every floating-point dtype as float64, which is exact; `whole` is the same memory as int64.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch

from ..ir import _ops
from ..ir._kernels import Chain, Form, Kernel
from ._print import Function, comment
from ._vocabulary import HEADER

_COMPUTE = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.float32",
    torch.float16: "tl.float32",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}  # the type that values have in registers
_MEMORY = {
    **_COMPUTE,
    torch.bfloat16: "tl.uint16",
    torch.float16: "tl.float16",
    torch.bool: "tl.uint8",
}  # and in memory


def print_kernel(kernel: Kernel, lines_of_rule: Sequence[str]) -> Function:
    """A leaf program as a function of one chunk for each program of the grid."""
    # A name of an entry ends in its number, so no other name may.
    loads, body, adds, ends = list[str](), list[str](), list[str](), list[str]()
    names: list[str] = []
    folds = kernel.loop in ("rows", "columns")
    start = "" if folds else " + start"
    slots = sum(entry.kind == "scalar" for entry in kernel.entries)
    extents = (f"tl.load(slots + {slots + k}).to(tl.int32)" for k in itertools.count(0 if folds else 1))
    buffers, scalars = itertools.count(), itertools.count()
    if folds:
        loads += [f"times = {next(extents)}", f"inner = {next(extents)}"]
    for number, entry in enumerate(kernel.entries):
        name = f"{entry.name}{number}"
        names.append(name)
        if entry.kind == "scalar":
            value = f"tl.load({_slots(entry.dtype)} + tl.load(slots + {next(scalars)}))"
            loads.append(f"{name} = {value}.to({_COMPUTE[entry.dtype]})")
        elif entry.kind == "buffer":
            loads.append(f"{name}_at = {_pointer(entry.dtype, next(buffers))}{start}")
            body.append(f"{name} = {_load(entry.dtype, f'tl.load({name}_at + i, mask=mask)')}")
        elif entry.kind == "spread":
            loads.append(f"{name}_of = {_pointer(entry.dtype, next(buffers))}")
            loads += [f"{name}_times = {next(extents)}", f"{name}_inner = {next(extents)}"]
            place = f"place // ({name}_times * {name}_inner) * {name}_inner + place % {name}_inner"
            place = f"place // {name}_times" if entry.op == "row" else place
            body.append(f"{name} = {_load(entry.dtype, f'tl.load({name}_of + {place}, mask=mask)')}")
        else:
            text = _TRITON.cast(_ops.entry_expression(_TRITON, entry, kernel.entries, names), entry.dtype)
            body.append(f"{name} = {text}{comment('#', lines_of_rule[number])}")
    for number, result in enumerate(kernel.results):
        value = names[result.entry]
        if result.kind == "store":
            place = f"new_{result.name}{number}_to"
            loads.append(f"{place} = {_pointer(result.dtype, next(buffers))}{start}")
            body.append(f"tl.store({place} + i, {_store(result.dtype, value)}, mask=mask)")
            continue
        part = f"{result.kind}{number}_part"
        kind = _COMPUTE[kernel.entries[result.entry].dtype] if result.kind in ("sum", "mean") else "tl.float64"
        empty, step, total = _FOLDS[result.kind]
        shape = "(TILE, COLUMNS)" if kernel.loop == "columns" else "(BLOCK,)"
        loads.append(f"{part} = tl.full({shape}, {empty}, {kind})")
        adds.append(f"{part} = {step.format(part, f'tl.where(keep, {value}.to({kind}), {empty})')}")
        total = total.format(f"{part}.to(tl.float64)")
        if folds:
            ends.append(f"to = {_pointer(result.dtype, next(buffers))}")
            ends.append(f"tl.store(to + {_TO[kernel.loop]}, {total}.to({_MEMORY[result.dtype]}){_AND[kernel.loop]})")
        else:
            ends.append(f"tl.store(partials + partial + {len(ends)} * step, {total})")
    stem = "_".join(dict.fromkeys(result.name for result in kernel.results))
    if kernel.loop == "runs":
        body = ["place = (start + i).to(tl.int32)", *body]
    head, loop = (_HEADS[kernel.loop], _LOOPS[kernel.loop]) if folds else (_HEADS["flat"], _LOOPS["flat"])
    inner = [*loads, *loop, *(f"    {line}" for line in [*body, *adds]), *ends]
    return Function.named(stem, head + "".join(f"    {line}\n" for line in inner))


_FOLDS = {  # the value of nothing, a step, and the end
    "sum": ("0.0", "{0} + {1}", "tl.sum({0}, 0)"),
    "mean": ("0.0", "{0} + {1}", "tl.sum({0}, 0) / times"),
    "max": ("-INFINITY", "MAXIMUM({1}, {0})", "ALL_MAXIMUM({0})"),
    "min": ("INFINITY", "MINIMUM({1}, {0})", "ALL_MINIMUM({0})"),
}
_SIGNATURE = """
@triton.jit(do_not_specialize=["begin"])
def $(buffers, table, values, whole, partials, chunks, begin, ALIGNMENT: tl.constexpr):
    chunk = chunks + 7 * (begin + tl.program_id(0))
"""
_READ_CHUNK = """    places = table + tl.load(chunk + 1)
    slots = table + tl.load(chunk + 2)
    start = tl.load(chunk + 5)
    count = tl.load(chunk + 6)
"""
_HEADS = {
    "flat": f"""{_SIGNATURE}    if tl.load(chunk + 6) == CHUNK:  # most are whole, and need no mask
        part_of_$(buffers, table, values, whole, partials, chunk, ALIGNMENT, False)
    else:
        part_of_$(buffers, table, values, whole, partials, chunk, ALIGNMENT, True)


@triton.jit
def part_of_$(buffers, table, values, whole, partials, chunk, ALIGNMENT: tl.constexpr, MASKED: tl.constexpr):
{_READ_CHUNK}    start = tl.multiple_of(start, CHUNK)
    partial = tl.load(chunk + 3)
    step = tl.load(chunk + 4)
""",
    "rows": _SIGNATURE + _READ_CHUNK,
    "columns": _SIGNATURE + _READ_CHUNK,
}
_LOOPS = {
    "flat": [
        "for first in range(0, count if MASKED else CHUNK, BLOCK):",
        "    i = first + tl.arange(0, BLOCK)",
        "    keep = i < count",
        "    mask = keep if MASKED else None",
    ],
    "rows": [
        "for first in range(0, times, BLOCK):",
        "    keep = first + tl.arange(0, BLOCK) < times",
        "    mask = keep",
        "    i = start * times + first + tl.arange(0, BLOCK)",
    ],
    "columns": [
        "column = tl.arange(0, COLUMNS)[None, :]",
        "for first in range(0, times, TILE):",
        "    row = first + tl.arange(0, TILE)[:, None]",
        "    keep = (row < times) & (column < count)",
        "    mask = keep",
        "    i = start // inner * inner * times + start % inner + row * inner + column",
    ],
}
_TO = {"rows": "start", "columns": "start + tl.arange(0, COLUMNS)"}  # where results go
_AND = {"rows": "", "columns": ", mask=tl.arange(0, COLUMNS) < count"}


def print_form(form: Form) -> Function:
    """The program of 0-dim values as a function of many such values."""
    memory, slots = _MEMORY[form.dtype], _slots(form.dtype)
    stem = f"{form.kind}_{form.op or str(form.dtype).removeprefix('torch.')}"
    if form.kind == "reduce":
        return _print_reduce(form, stem)
    width, lines = 2, []
    address = f"at = tl.load(buffers + tl.load(row + 1, mask=mask), mask=mask).to(tl.pointer_type({memory}))"
    if form.kind == "load":
        value = _load(form.dtype, "tl.load(at, mask=mask)")
        lines = [address, f"tl.store({slots} + tl.load(row, mask=mask), {_kept(form.dtype, value)}, mask=mask)"]
    elif form.kind == "store":
        lines = [f"value = {_from_slot(form.dtype, 0)}", address]
        lines.append(f"tl.store(at, {_store(form.dtype, 'value')}, mask=mask)")
    else:
        width = 1 + len(form.operands)
        lines = [f"a{k} = {_from_slot(dtype, k)}" for k, dtype in enumerate(form.operands, 1)]
        text = _ops.form_expression(_TRITON, form, [f"a{k}" for k in range(1, width)])
        lines.append(f"value = {_TRITON.cast(text, form.dtype)}")
        lines.append(f"tl.store({slots} + tl.load(row, mask=mask), {_kept(form.dtype, 'value')}, mask=mask)")
    head = [f"row = first + {width} * lane"]
    return Function.named(stem, _FORM + _LOOP.format(0) + "".join(f"        {line}\n" for line in head + lines))


_FORM = """
@triton.jit
def $(buffers, rows, call, values, whole):
    first = rows + tl.load(call + 1)
    count = tl.load(call + 2)
"""
_LOOP = """    for start in range({}, count, LANES):
        lane = start + tl.arange(0, LANES)
        mask = lane < count
"""


def _print_reduce(form: Form, stem: str) -> Function:
    kind = "tl.float64"
    if form.op == "sum":
        other, step, end = "0.0", "all + next", "tl.sum(all, 0)"
    else:
        fold, other = ("MAXIMUM", "-INFINITY") if form.op == "max" else ("MINIMUM", "INFINITY")
        step, end = f"{fold}(next, all)", f"ALL_{fold}(all)"
    result = _ops.rounded(form.dtype, _TRITON.cast(end, form.dtype))
    place = f"{_slots(form.dtype)} + tl.load(first + lane, mask=mask, other=0)"
    lines = [
        f"    all = tl.full((LANES,), {other}, {kind})\n",
        _LOOP.format(1),
        f"        next = tl.where(mask, tl.load({place}, mask=mask, other=0).to({kind}), {other})\n",
        f"        all = {step}\n",
        f"    tl.store({_slots(form.dtype)} + tl.load(first), {_kept(form.dtype, result)})\n",
    ]
    return Function.named(stem, _FORM + "".join(lines))


def print_chain(chain: Chain) -> Function:
    """The program of single 0-dim values: all that it reads is loaded first, and all stores come last."""
    loads, body, ends, names = [], [], [], []
    field = 0
    for number, (form, operands) in enumerate(chain.links):
        name, own = f"{form.op or form.kind}{number}", field
        names.append(name)
        field += 1 + (len(operands) if form.kind == "compute" else 1)
        dtypes = [form.dtype] if form.kind == "store" else form.operands
        given = []
        for k, (operand, dtype) in enumerate(zip(operands, dtypes, strict=True)):
            if operand is None:
                place = own if form.kind == "store" else own + 1 + k
                loads.append(f"{name}_{k}x = tl.load({_slots(dtype)} + tl.load(row + {place})).to({_COMPUTE[dtype]})")
            given.append(f"{name}_{k}x" if operand is None else names[operand])
        if form.kind != "compute":
            address = f"tl.load(buffers + tl.load(row + {own + 1}))"
            loads.append(f"{name}_at = {address}.to(tl.pointer_type({_MEMORY[form.dtype]}))")
        if form.kind == "store":
            ends.append(f"tl.store({name}_at, {_store(form.dtype, given[0])})")
            continue
        if form.kind == "load":
            loads.append(f"{name} = {_load(form.dtype, f'tl.load({name}_at)')}")
        else:
            text = _ops.form_expression(_TRITON, form, given)
            body.append(f"{name} = {_TRITON.cast(text, form.dtype)}")
        loads.append(f"{name}_slot = tl.load(row + {own})")
        ends.append(f"tl.store({_slots(form.dtype)} + {name}_slot, {_kept(form.dtype, name)})")
    head = "\n@triton.jit\ndef $(buffers, rows, call, values, whole):\n    row = rows + tl.load(call + 1)\n"
    return Function.named("chain", head + "".join(f"    {line}\n" for line in [*loads, *body, *ends]))


def print_stage(forms: Sequence[Function]) -> Function:
    """The 0-dim arithmetic of a stage: one program, in which every call sees what those before it have stored."""
    lines = [f"{form.name}(buffers, rows, call + {3 * i}, values, whole)" for i, form in enumerate(forms)]
    text = "\n    tl.debug_barrier()\n    ".join(lines)
    head = '\n@triton.jit(do_not_specialize=["begin"])\ndef $(buffers, rows, calls, values, whole, begin):\n'
    return Function.named("scalars", f"{head}    call = calls + 3 * begin\n    {text}\n")


def print_unit(functions: Iterable[Function]) -> str:
    """A whole module; what a function calls stands before it."""
    return "\n".join([HEADER, *(function.text for function in dict.fromkeys(functions))])


class _Language:
    """How Triton writes constants and conversions. Constants are tensors, so that every operand has a dtype."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        if not dtype.is_floating_point:
            return f"tl.full((), {int(value)}, {_COMPUTE[dtype]})"
        value = float(value)
        if dtype != torch.float64:
            value = _ops.nearest_float32(value)
        if math.isfinite(value):
            return f"tl.full((), {value!r}, {_COMPUTE[dtype]})"
        text = "INFINITY - INFINITY" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
        return f"tl.full((), {text}, {_COMPUTE[dtype]})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"tl.cast({text}, {_COMPUTE[dtype]})"

    def suffix(self, dtype: torch.dtype) -> str:
        """Functions are for all dtypes."""
        return ""


_TRITON = _Language()


def _pointer(dtype: torch.dtype, position: int) -> str:
    address = f"tl.load(buffers + tl.load(places + {position})).to(tl.pointer_type({_MEMORY[dtype]}))"
    return f"tl.multiple_of({address}, ALIGNMENT)"


def _slots(dtype: torch.dtype) -> str:
    """The table in which 0-dim values of this dtype are kept."""
    return "values" if dtype.is_floating_point else "whole"


def _kept(dtype: torch.dtype, value: str) -> str:
    return f"tl.cast({value}, {'tl.float64' if dtype.is_floating_point else 'tl.int64'})"


def _from_slot(dtype: torch.dtype, field: int) -> str:
    place = f"{_slots(dtype)} + tl.load(row + {field}, mask=mask, other=0)"
    return f"tl.load({place}, mask=mask, other=0).to({_COMPUTE[dtype]})"


def _load(dtype: torch.dtype, value: str) -> str:
    """What is read from memory as a value."""
    return f"FROM_BFLOAT16({value})" if dtype == torch.bfloat16 else f"{value}.to({_COMPUTE[dtype]})"


def _store(dtype: torch.dtype, value: str) -> str:
    """What to write into memory for a value."""
    return f"TO_BFLOAT16({value})" if dtype == torch.bfloat16 else f"{value}.to({_MEMORY[dtype]})"
