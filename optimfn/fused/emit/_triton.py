"""Write kernels as Triton.

A function knows neither how many leaves there are nor how large they are: addresses, chunks and slots are tables on
the device. 0-dim arithmetic is done there as well, by one program per stage, so that nothing is ever read back and a
step can be captured.

A slot of `values` holds every floating-point dtype as float64, which is exact; `whole` is the same memory as int64.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from ..ir import _ops
from ..ir._kernels import Chain, Form, Kernel
from ..ir._numbers import in_registers
from ._function import Function, indented, prelude

CHUNK = 8192  # elements of one program
BLOCK = 1024  # elements that it works on at a time
LANES = 128  # 0-dim values that are computed at a time
COLUMNS = 64  # results of one program that reduces over rows

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


class Triton:
    """The language. Constants are tensors, so that every operand has a dtype."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        value = in_registers(value, dtype)
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

    def leaf(self, kernel: Kernel) -> "_Leaf":
        """For a kernel."""
        return _Leaf(kernel)

    def blocks(self, kernel: Kernel) -> "_Blocks":
        """For a kernel that goes over blocks."""
        return _Blocks(kernel)

    def scalars(self, form: Form | Chain) -> "_Scalars":
        """For a form that is no reduction."""
        return _Scalars(single=isinstance(form, Chain))

    def reduction(self, form: Form) -> str:
        """The function that reduces 0-dim values to one."""
        empty, step, total = _FOLDS[form.op]
        result = _ops.rounded(form.dtype, self.cast(total.format("all"), form.dtype))
        place = f"{_slots(form.dtype)} + tl.load(first + lane, mask=mask, other=0)"
        lines = [
            f"all = tl.full((LANES,), {empty}, tl.float64)",
            *_LANES.format(1).splitlines(),
            f"    next = tl.where(mask, tl.load({place}, mask=mask, other=0).to(tl.float64), {empty})",
            f"    all = {step.format('all', 'next')}",
            f"tl.store({_slots(form.dtype)} + tl.load(first), {_kept(form.dtype, result)})",
        ]
        return _CALL + indented(lines, 4)


def print_stage(forms: Sequence[Function]) -> Function:
    """The 0-dim arithmetic of a stage: one program, in which every call sees what those before it have stored."""
    lines = [f"{form.name}(buffers, rows, call + {3 * i}, values, whole)" for i, form in enumerate(forms)]
    text = "\n    tl.debug_barrier()\n    ".join(lines)
    head = '\n@triton.jit(do_not_specialize=["begin"])\ndef $(buffers, rows, calls, values, whole, begin):\n'
    return Function.named("scalars", f"{head}    call = calls + 3 * begin\n    {text}\n")


def print_unit(functions: Iterable[Function]) -> str:
    """A whole module; what a function calls stands before it."""
    words = "".join(f"@triton.jit\ndef {word}:\n    return {means.triton}\n\n\n" for word, means in _ops.WORDS.items())
    sizes = {"chunk": CHUNK, "block": BLOCK, "lanes": LANES, "columns": COLUMNS}
    head = prelude(
        "prelude.py.txt", words=words, functions=", ".join(_ops.FUNCTIONS), beyond_float8=_ops.BEYOND_FLOAT8, **sizes
    )
    return "\n".join([head, *(function.text for function in dict.fromkeys(functions))])


_FOLDS = {  # the value of nothing, a step, and the end
    "sum": ("0.0", "{0} + {1}", "tl.sum({0}, 0)"),
    "mean": ("0.0", "{0} + {1}", "tl.sum({0}, 0) / times"),
    "max": ("-INFINITY", "MAXIMUM({1}, {0})", "ALL_MAXIMUM({0})"),
    "min": ("INFINITY", "MINIMUM({1}, {0})", "ALL_MINIMUM({0})"),
}
_CALL = """
@triton.jit
def $(buffers, rows, call, values, whole):
    first = rows + tl.load(call + 1)
"""
_LANES = """
count = tl.load(call + 2)
for start in range({}, count, LANES):
    lane = start + tl.arange(0, LANES)
    mask = lane < count
""".lstrip()


class _Scalars:
    """Writes the program of 0-dim values, for one row, or for many side by side.

    All that it reads is loaded first, and what it writes comes last.
    """

    def __init__(self, single: bool) -> None:
        self._single = single
        self._mask, self._other = ("", "") if single else (", mask=mask", ", mask=mask, other=0")
        self._loads, self._body, self._ends = list[str](), list[str](), list[str]()

    def slot(self, name: str, dtype: torch.dtype, position: int) -> None:
        place = f"{_slots(dtype)} + {self._field(position)}"
        self._loads.append(f"{name} = tl.load({place}{self._other}).to({_COMPUTE[dtype]})")

    def load(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_at = {self._pointer(dtype, buffer)}")
        self._loads.append(f"{name} = {_loaded(dtype, f'tl.load({name}_at{self._other})')}")

    def value(self, name: str, dtype: torch.dtype, text: str) -> None:
        self._body.append(f"{name} = tl.cast({text}, {_COMPUTE[dtype]})")

    def keep(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._loads.append(f"{name}_slot = {self._field(slot)}")
        self._ends.append(f"tl.store({_slots(dtype)} + {name}_slot, {_kept(dtype, name)}{self._mask})")

    def store(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_to{buffer} = {self._pointer(dtype, buffer)}")
        self._ends.append(f"tl.store({name}_to{buffer}, {_stored(dtype, name)}{self._mask})")

    def text(self, fields: int) -> str:
        lines = [*self._loads, *self._body, *self._ends]
        if self._single:
            return _CALL + indented(["row = first", *lines], 4)
        return (
            _CALL + indented(_LANES.format(0).splitlines(), 4) + indented([f"row = first + {fields} * lane", *lines], 8)
        )

    def _field(self, position: int) -> str:
        return f"tl.load(row + {position}{self._other})"

    def _pointer(self, dtype: torch.dtype, buffer: int) -> str:
        return f"tl.load(buffers + {self._field(buffer)}{self._other}).to(tl.pointer_type({_MEMORY[dtype]}))"


_KERNEL = """
@triton.jit(do_not_specialize=["begin"])
def $(buffers, places, values, whole, partials, chunks, begin, ALIGNMENT: tl.constexpr):
    chunk = chunks + 7 * (begin + tl.program_id(0))
"""
_READ_CHUNK = """    own = places + tl.load(chunk + 1)
    slots = places + tl.load(chunk + 2)
    start = tl.load(chunk + 5)
    count = tl.load(chunk + 6)
"""
_FLAT = f"""{_KERNEL}    if tl.load(chunk + 6) == CHUNK:  # most are whole, and need no mask
        part_of_$(buffers, places, values, whole, partials, chunk, ALIGNMENT, False)
    else:
        part_of_$(buffers, places, values, whole, partials, chunk, ALIGNMENT, True)


@triton.jit
def part_of_$(buffers, places, values, whole, partials, chunk, ALIGNMENT: tl.constexpr, MASKED: tl.constexpr):
{_READ_CHUNK}    start = tl.multiple_of(start, CHUNK)
    partial = tl.load(chunk + 3)
    step = tl.load(chunk + 4)
"""
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
_LOOPS["runs"] = [*_LOOPS["flat"], "    place = (start + i).to(tl.int32)"]
_TO = {"rows": "start", "columns": "start + tl.arange(0, COLUMNS)"}  # where results go
_AND = {"rows": "", "columns": ", mask=tl.arange(0, COLUMNS) < count"}


class _Leaf:
    """Writes the program of a leaf, of which every program of the grid takes one chunk."""

    def __init__(self, kernel: Kernel) -> None:
        self._loop, self._folds = kernel.loop, kernel.loop in _TO
        self._start = "" if self._folds else " + start"
        self._loads, self._body, self._adds, self._ends = list[str](), list[str](), list[str](), list[str]()

    def extents(self, positions: Sequence[int]) -> None:
        if self._folds:
            self._loads += [f"{name} = {_extent(at)}" for name, at in zip(("times", "inner"), positions, strict=True)]

    def scalar(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._loads.append(f"{name} = tl.load({_slots(dtype)} + tl.load(slots + {slot})).to({_COMPUTE[dtype]})")

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_at = {_pointer(dtype, buffer)}{self._start}")
        self._body.append(f"{name} = {_loaded(dtype, f'tl.load({name}_at + i, mask=mask)')}")

    def spread(self, name: str, dtype: torch.dtype, buffer: int, extents: tuple[int, int], axis: str) -> None:
        times, inner = f"{name}_times", f"{name}_inner"
        self._loads.append(f"{name}_of = {_pointer(dtype, buffer)}")
        self._loads += [f"{times} = {_extent(extents[0])}", f"{inner} = {_extent(extents[1])}"]
        place = f"place // ({times} * {inner}) * {inner} + place % {inner}"
        place = f"place // {times}" if axis == "row" else place
        self._body.append(f"{name} = {_loaded(dtype, f'tl.load({name}_of + {place}, mask=mask)')}")

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        self._body.append(f"{name} = tl.cast({text}, {_COMPUTE[dtype]})" + (f"  # {line}" if line else ""))

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        self._loads.append(f"{name}_to = {_pointer(dtype, buffer)}{self._start}")
        self._body.append(f"tl.store({name}_to + i, {_stored(dtype, value)}, mask=mask)")

    def reduce(self, name: str, how: str, value: str, dtype: torch.dtype) -> None:
        total = self._total(name, how, value, dtype)
        self._ends.append(f"tl.store(partials + partial + {len(self._ends)} * step, {total})")

    def fold(self, name: str, how: str, value: str, dtype: torch.dtype, buffer: int, to: torch.dtype) -> None:
        total = self._total(name, how, value, dtype)
        self._ends.append(f"to = {_pointer(to, buffer)}")
        self._ends.append(f"tl.store(to + {_TO[self._loop]}, {total}.to({_MEMORY[to]}){_AND[self._loop]})")

    def text(self) -> str:
        head = _KERNEL + _READ_CHUNK if self._folds else _FLAT
        inner = [f"    {line}" for line in [*self._body, *self._adds]]
        return head + indented([*self._loads, *_LOOPS[self._loop], *inner, *self._ends], 4)

    def _total(self, name: str, how: str, value: str, dtype: torch.dtype) -> str:
        """What is left of a value when the loop is over."""
        part, kind = f"{name}_part", _COMPUTE[dtype] if how in ("sum", "mean") else "tl.float64"
        empty, step, total = _FOLDS[how]
        self._loads.append(f"{part} = tl.full({self._shape()}, {empty}, {kind})")
        self._adds.append(f"{part} = {step.format(part, f'tl.where(keep, {value}.to({kind}), {empty})')}")
        return total.format(self._in_line(f"{part}.to(tl.float64)"))

    def _shape(self) -> str:
        return "(TILE, COLUMNS)" if self._loop == "columns" else "(BLOCK,)"

    def _in_line(self, lanes: str) -> str:
        """Lanes whose first axis is to be reduced."""
        return lanes


class _Blocks(_Leaf):
    """Writes the program of a leaf in blocks. A tile of several lies in registers, so that it takes one pass."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self._size, self._of_block = kernel.block, False
        width = 1 << (kernel.block - 1).bit_length()
        self._tile = f"({max(BLOCK // width, 1)}, {width})"

    def enter(self, number: int, of_block: bool) -> None:
        self._of_block = of_block

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        if not self._of_block:
            super().element(name, dtype, buffer)
            return
        self._loads.append(f"{name}_of = {_pointer(dtype, buffer)}")
        self._body.append(f"{name} = {_loaded(dtype, f'tl.load({name}_of + block, mask=begun)')}")

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        if not self._of_block:
            # What is there once for each block has one column.
            super().store(name, dtype, f"tl.broadcast_to({value}, {self._tile})", buffer, is_new)
            return
        self._loads.append(f"{name}_to = {_pointer(dtype, buffer)}")
        self._body.append(f"tl.store({name}_to + block, {_stored(dtype, value)}, mask=begun)")

    def packed(self, name: str, buffer: int) -> None:
        self._loads.append(f"{name}_of = {_pointer(torch.uint8, buffer)}")
        byte = f"tl.load({name}_of + ((start + i) >> 1), mask=mask, other=0)"
        self._body.append(f"{name} = (({byte} >> (4 - 4 * (i & 1)).to(tl.uint8)) & 15).to(tl.uint8)")

    def pack(self, name: str, value: str, buffer: int) -> None:
        rows, width = self._tile[1:-1].split(", ")
        self._loads.append(f"{name}_to = {_pointer(torch.uint8, buffer)}")
        pairs = f"tl.reshape(tl.where(keep, {value}, 0), ({rows}, {width} // 2, 2))"
        self._body += [
            f"{name}_above, {name}_below = tl.split({pairs})",
            f"{name}_i = begin + 2 * tl.arange(0, {width} // 2)[None, :]",
            f"{name}_keep = (2 * tl.arange(0, {width} // 2)[None, :] < {self._size}) & ({name}_i < count)",
            f"{name}_both = ({name}_above * 16 + {name}_below).to(tl.uint8)",
            f"tl.store({name}_to + ((start + {name}_i) >> 1), {name}_both, mask={name}_keep)",
        ]

    def largest(self, name: str, dtype: torch.dtype, value: str) -> None:
        self._body.append(f"{name} = LARGEST(tl.where(keep, {value}, 0.0))")

    def keep(self, name: str, dtype: torch.dtype, passes: Sequence[int]) -> None:
        pass

    def text(self) -> str:
        rows, width = self._tile[1:-1].split(", ")
        lines = [
            "partial = tl.load(chunk + 3)",
            "step = tl.load(chunk + 4)",
            *self._loads,
            f"for first in range(0, count, {rows} * {self._size}):",
            f"    begin = first + {self._size} * tl.arange(0, {rows})[:, None]",
            "    begun = begin < count",
            f"    block = (start + begin) // {self._size}",
            f"    lane = tl.arange(0, {width})[None, :]",
            "    i = begin + lane",
            f"    keep = (lane < {self._size}) & (i < count)",
            "    mask = keep",
            "    place = (start + i).to(tl.int32)",
            *(f"    {line}" for line in [*self._body, *self._adds]),
            *self._ends,
        ]
        return _KERNEL + _READ_CHUNK + indented(lines, 4)

    def _shape(self) -> str:
        return self._tile

    def _in_line(self, lanes: str) -> str:
        rows, width = self._tile[1:-1].split(", ")
        return f"tl.reshape({lanes}, ({rows} * {width},))"


def _pointer(dtype: torch.dtype, buffer: int) -> str:
    address = f"tl.load(buffers + tl.load(own + {buffer})).to(tl.pointer_type({_MEMORY[dtype]}))"
    return f"tl.multiple_of({address}, ALIGNMENT)"


def _extent(position: int) -> str:
    return f"tl.load(slots + {position}).to(tl.int32)"


def _slots(dtype: torch.dtype) -> str:
    """The table in which 0-dim values of this dtype are kept."""
    return "values" if dtype.is_floating_point else "whole"


def _kept(dtype: torch.dtype, value: str) -> str:
    return f"tl.cast({value}, {'tl.float64' if dtype.is_floating_point else 'tl.int64'})"


def _loaded(dtype: torch.dtype, value: str) -> str:
    """A value of what stands in memory."""
    return f"from_bfloat16({value})" if dtype == torch.bfloat16 else f"{value}.to({_COMPUTE[dtype]})"


def _stored(dtype: torch.dtype, value: str) -> str:
    """What stands in memory for a value."""
    return f"to_bfloat16({value})" if dtype == torch.bfloat16 else f"{value}.to({_MEMORY[dtype]})"
