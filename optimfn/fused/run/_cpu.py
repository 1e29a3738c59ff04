"""Run a plan on the CPU: its kernels as C, its tables, and the driver that reads them."""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..emit._print_c import BLOCK, print_form, print_kernel
from ..ir._kernels import Row
from ..plan._plan import Plan
from ..plan._tables import Tables, cut, cut_columns
from . import _build
from ._process import Process

CHUNK = 16384  # elements a thread takes at a time: three to six arrays of them fit into a core's own cache


def _chunks(row: Row) -> Iterator[tuple[int, int]]:
    if row.kernel.loop == "columns":
        return cut_columns(row, min(BLOCK, max(64, CHUNK // row.extents[0])))
    if row.kernel.loop == "rows":
        return cut(row.numel // row.extents[0], max(1, CHUNK // row.extents[0]))
    return cut(row.numel, CHUNK)


class Cpu:
    """The kernels of a plan, compiled from C.

    Args:
        plan: The plan.
        device: The CPU.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        kernels = {kernel: print_kernel(kernel, plan.lines[kernel]) for kernel in plan.kernels}
        forms = {form: print_form(form) for form in plan.forms}
        self.functions = [*kernels.values(), *forms.values()]
        addresses = _build.load(self.functions)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._run = ctypes.CFUNCTYPE(None, pointer, number, number, number)(addresses["run"])
        self._clash = ctypes.CFUNCTYPE(number, pointer, number, pointer, pointer, number)(addresses["clash"])
        tables = Tables(
            plan.slot,
            plan.all_stages,
            _chunks,
            {kernel: addresses[function.name] for kernel, function in kernels.items()},
            {form: addresses[function.name] for form, function in forms.items()},
        )
        self.stages = len(tables.sections)
        self.buffers = array("q", bytes(8 * plan.buffers))
        self._kept: list[array[Any]]
        values, partials = array("q", bytes(8 * (len(plan.slot) + 1))), array("d", bytes(8 * (tables.partials + 1)))
        stages = array("q")
        for section in tables.sections:
            stages.extend((*section.combines, *section.calls, *section.chunks, section.elements))
        # In the order of the structure `Plan` of the driver, which writes to the first three.
        self._kept = [self.buffers, values, partials, tables.places, tables.rows]
        self._kept += [tables.combines, tables.calls, tables.chunks, stages]
        self._plan = array("q", [table.buffer_info()[0] for table in self._kept])
        self._address = self._plan.buffer_info()[0]

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return _build.sources([function.name for function in self.functions])

    def run(self, first: int, last: int) -> None:
        """Run stages."""
        self._run(self._address, first, last, 1 if Process.forked else torch.get_num_threads())

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Memory is not used any more when a stage has run."""

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""
        read, size = (table.buffer_info()[0] + 8 * skipped for table in (self.buffers, sizes))
        return bool(self._clash(spans.buffer_info()[0], len(spans) // 2, read, size, len(sizes) - skipped))
