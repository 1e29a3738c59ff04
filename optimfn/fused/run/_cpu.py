"""Run a plan on the CPU: its kernels as C, its tables, and the driver that reads them."""

import ctypes
import struct
from array import array
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..emit._c import C
from ..emit._c_leaf import BLOCK, CHUNK
from ..emit._print import print_form, print_kernel
from ..ir._kernels import Owner, Row
from ..plan._plan import Plan
from ..plan._tables import Tables, blocks_within, cut, cut_columns
from . import _build
from ._process import Process

_FORMATS = {torch.float64: "d", torch.int64: "q"}


def _chunks(row: Row) -> Iterator[tuple[int, int]]:
    if row.kernel.loop == "columns":
        return cut_columns(row, min(BLOCK, max(64, CHUNK // row.extents[0])))
    if row.kernel.loop == "rows":
        return cut(row.numel // row.extents[0], max(1, CHUNK // row.extents[0]))
    return cut(row.numel, blocks_within(row, CHUNK))


class CpuCode:
    """The kernels of a plan, compiled from C, and its tables: what programs of equal traces have in common.

    Args:
        plan: The plan.
        device: The CPU.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        kernels = {kernel: print_kernel(C(), kernel, plan.lines[kernel]) for kernel in plan.kernels}
        forms = {form: print_form(C(), form) for form in plan.forms}
        self.functions = [*kernels.values(), *forms.values()]
        self.addresses = _build.load(self.functions)
        self.tables = Tables(
            plan.slot,
            plan.all_stages,
            _chunks,
            {kernel: self.addresses[function.name] for kernel, function in kernels.items()},
            {form: self.addresses[function.name] for form, function in forms.items()},
        )
        self.buffers = plan.buffers
        # What the slots hold before the first step: numbers, which stay.
        self.values = array("q", bytes(8 * len(plan.slot)))
        for number in plan.numbers:
            self.values.frombytes(struct.pack(_FORMATS.get(number.dtype, "f4x"), number.value))
        self.values.append(0)  # so that there is something to point at
        self.whole = self.select(None)

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return _build.sources([function.name for function in self.functions])

    def select(self, present: Set[Owner] | None) -> "list[array[int]]":
        """The last five tables of the driver, for a step that has these gradients."""
        chosen, stages = self.tables.select(present), array("q")
        for section in chosen.sections:
            stages.extend((*section.combines, *section.calls, *section.chunks, section.elements))
        return [chosen.rows, chosen.combines, chosen.calls, chosen.chunks, stages]


class Cpu:
    """Code, and the memory that one program needs for it.

    Args:
        code: The code.
    """

    code = CpuCode

    def __init__(self, code: CpuCode) -> None:
        self._code, self.functions, tables = code, code.functions, code.tables
        pointer, number, at = ctypes.c_void_p, ctypes.c_int64, code.addresses
        self._run = ctypes.CFUNCTYPE(None, pointer, number, number, number)(at["run"])
        self._clash = ctypes.CFUNCTYPE(number, pointer, number, pointer, pointer, number)(at["clash"])
        self.stages = len(tables.whole.sections)
        self.buffers = array("q", bytes(8 * code.buffers))
        # In the order of the structure `Plan` of the driver, which writes to the first three.
        values, partials = code.values[:], array("d", bytes(8 * (tables.partials + 1)))
        self._own: list[array[Any]] = [self.buffers, values, partials, tables.places]
        self._chosen: list[array[int]] = []
        self.choose(None)

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return self._code.sources

    def run(self, first: int, last: int) -> None:
        """Run stages."""
        self._run(self._address, first, last, 1 if Process.forked else torch.get_num_threads())

    def choose(self, chosen: "list[array[int]] | None", past_caches: bool = False) -> None:
        """Run with these tables from now on, or those of the whole plan; large new results may go past the caches."""
        chosen = chosen or self._code.whole
        if self._chosen is not chosen:
            self._chosen = chosen
            self._plan = array("q", [table.buffer_info()[0] for table in (*self._own, *chosen)] + [0])
            self._address = self._plan.buffer_info()[0]
        self._plan[-1] = past_caches

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Memory is not used any more when a stage has run."""

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""
        read, size = (table.buffer_info()[0] + 8 * skipped for table in (self.buffers, sizes))
        return bool(self._clash(spans.buffer_info()[0], len(spans) // 2, read, size, len(sizes) - skipped))
