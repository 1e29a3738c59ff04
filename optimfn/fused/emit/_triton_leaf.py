"""Write the program of a leaf as Triton, of which every program of a grid takes one chunk."""

from collections.abc import Sequence

import torch

from ..ir._kernels import Kernel
from ._function import indented
from ._types import TRITON_MEMORY as MEMORY
from ._types import TRITON_TYPES as COMPUTE

CHUNK = 8192  # elements of one program
BLOCK = 1024  # elements that it works on at a time
COLUMNS = 64  # results of one program that reduces over rows

FOLDS = {  # the value of nothing, a step, and the end
    "sum": ("0.0", "{0} + {1}", "tl.sum({0}, 0)"),
    "mean": ("0.0", "{0} + {1}", "tl.sum({0}, 0) / times"),
    "max": ("-INFINITY", "MAXIMUM({1}, {0})", "ALL_MAXIMUM({0})"),
    "min": ("INFINITY", "MINIMUM({1}, {0})", "ALL_MINIMUM({0})"),
}
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


class Leaf:
    """Writes the program of a leaf, of which every program of the grid takes one chunk."""

    def __init__(self, kernel: Kernel) -> None:
        self._loop, self._folds = kernel.loop, kernel.loop in _TO
        self._start = "" if self._folds else " + start"
        self._loads, self._body, self._adds, self._ends = list[str](), list[str](), list[str](), list[str]()

    def extents(self, positions: Sequence[int]) -> None:
        if self._folds:
            self._loads += [f"{name} = {_extent(at)}" for name, at in zip(("times", "inner"), positions, strict=True)]

    def scalar(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._loads.append(f"{name} = tl.load({slots_of(dtype)} + tl.load(slots + {slot})).to({COMPUTE[dtype]})")

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_at = {_pointer(dtype, buffer)}{self._start}")
        self._body.append(f"{name} = {loaded(dtype, f'tl.load({name}_at + i, mask=mask)')}")

    def spread(self, name: str, dtype: torch.dtype, buffer: int, extents: tuple[int, int], axis: str) -> None:
        times, inner = f"{name}_times", f"{name}_inner"
        self._loads.append(f"{name}_of = {_pointer(dtype, buffer)}")
        self._loads += [f"{times} = {_extent(extents[0])}", f"{inner} = {_extent(extents[1])}"]
        place = f"place // ({times} * {inner}) * {inner} + place % {inner}"
        place = f"place // {times}" if axis == "row" else place
        self._body.append(f"{name} = {loaded(dtype, f'tl.load({name}_of + {place}, mask=mask)')}")

    def index(self, name: str) -> None:
        self._body.append(f"{name} = (i{self._start}).to(tl.int64)")

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        self._body.append(f"{name} = tl.cast({text}, {COMPUTE[dtype]})" + (f"  # {line}" if line else ""))

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        self._loads.append(f"{name}_to = {_pointer(dtype, buffer)}{self._start}")
        self._body.append(f"tl.store({name}_to + i, {stored(dtype, value)}, mask=mask)")

    def reduce(self, name: str, how: str, value: str, dtype: torch.dtype) -> None:
        total = self._total(name, how, value, dtype)
        self._ends.append(f"tl.store(partials + partial + {len(self._ends)} * step, {total})")

    def fold(self, name: str, how: str, value: str, dtype: torch.dtype, buffer: int, to: torch.dtype) -> None:
        total = self._total(name, how, value, dtype)
        self._ends.append(f"to = {_pointer(to, buffer)}")
        self._ends.append(f"tl.store(to + {_TO[self._loop]}, {total}.to({MEMORY[to]}){_AND[self._loop]})")

    def text(self) -> str:
        head = _KERNEL + _READ_CHUNK if self._folds else _FLAT
        inner = [f"    {line}" for line in [*self._body, *self._adds]]
        return head + indented([*self._loads, *_LOOPS[self._loop], *inner, *self._ends], 4)

    def _total(self, name: str, how: str, value: str, dtype: torch.dtype) -> str:
        """What is left of a value when the loop is over."""
        part, kind = f"{name}_part", COMPUTE[dtype] if how in ("sum", "mean") else "tl.float64"
        empty, step, total = FOLDS[how]
        self._loads.append(f"{part} = tl.full({self._shape()}, {empty}, {kind})")
        self._adds.append(f"{part} = {step.format(part, f'tl.where(keep, {value}.to({kind}), {empty})')}")
        return total.format(self._in_line(f"{part}.to(tl.float64)"))

    def _shape(self) -> str:
        return "(TILE, COLUMNS)" if self._loop == "columns" else "(BLOCK,)"

    def _in_line(self, lanes: str) -> str:
        """Lanes whose first axis is to be reduced."""
        return lanes


class Blocks(Leaf):
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
        self._body.append(f"{name} = {loaded(dtype, f'tl.load({name}_of + block, mask=begun)')}")

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        if not self._of_block:
            # What is there once for each block has one column.
            super().store(name, dtype, f"tl.broadcast_to({value}, {self._tile})", buffer, is_new)
            return
        self._loads.append(f"{name}_to = {_pointer(dtype, buffer)}")
        self._body.append(f"tl.store({name}_to + block, {stored(dtype, value)}, mask=begun)")

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
    address = f"tl.load(buffers + tl.load(own + {buffer})).to(tl.pointer_type({MEMORY[dtype]}))"
    return f"tl.multiple_of({address}, ALIGNMENT)"


def _extent(position: int) -> str:
    return f"tl.load(slots + {position}).to(tl.int32)"


def slots_of(dtype: torch.dtype) -> str:
    """The table in which 0-dim values of this dtype are kept."""
    return "values" if dtype.is_floating_point else "whole"


def kept(dtype: torch.dtype, value: str) -> str:
    return f"tl.cast({value}, {'tl.float64' if dtype.is_floating_point else 'tl.int64'})"


def loaded(dtype: torch.dtype, value: str) -> str:
    """A value of what stands in memory."""
    return f"from_bfloat16({value})" if dtype == torch.bfloat16 else f"{value}.to({COMPUTE[dtype]})"


def stored(dtype: torch.dtype, value: str) -> str:
    """What stands in memory for a value."""
    return f"to_bfloat16({value})" if dtype == torch.bfloat16 else f"{value}.to({MEMORY[dtype]})"
