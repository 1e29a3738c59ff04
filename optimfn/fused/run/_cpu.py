"""Run a plan on the CPU: its kernels as C, its tables, and the driver that reads them."""

import ctypes
from array import array
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from ..emit._c import C
from ..emit._c_leaf import BLOCK, CHUNK
from ..ir._kernels import Owner
from ..plan._plan import Plan
from ..plan._tables import Grain, Tables
from . import _build
from ._machine import Machine, MachineCode
from ._process import Process

_GRAIN = Grain(
    CHUNK, rows=lambda times: max(1, CHUNK // times), columns=lambda times: min(BLOCK, max(64, CHUNK // times))
)
_FORMATS = {torch.float64: "d", torch.int64: "q"}


class CpuCode(MachineCode):
    """The kernels of a plan, compiled from C, and its tables.

    Args:
        plan: The plan.
        device: The CPU.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        super().__init__(plan, [*plan.stages, plan.final], C(), lambda dtype: _FORMATS.get(dtype, "f4x"))
        self.values.append(0)  # so that there is something to point at
        self.addresses = _build.load([*self.functions.values()])
        own = {thing: self.addresses[function.name] for thing, function in self.functions.items()}
        self.tables = Tables(plan.slot, self.stages, _GRAIN, own)
        self.whole = self.select(None)

    @property
    def sources(self) -> list[Path]:
        return _build.sources([function.name for function in self.functions.values()])

    def select(self, present: Set[Owner] | None) -> "list[array[int]]":
        """The last five tables of the driver, for a step that has these gradients."""
        chosen, stages = self.tables.select(present), array("q")
        for section in chosen.sections:
            stages.extend((*section.combines, *section.calls, *section.chunks, section.elements))
        return [chosen.rows, chosen.combines, chosen.calls, chosen.chunks, stages]


class Cpu(Machine):
    """Runs kernels on the CPU."""

    code = CpuCode

    def __init__(self, code: CpuCode) -> None:
        super().__init__(code)
        self._code, tables = code, code.tables
        pointer, number, at = ctypes.c_void_p, ctypes.c_int64, code.addresses
        self._run = ctypes.CFUNCTYPE(None, pointer, number, number, number)(at["run"])
        self._clash = ctypes.CFUNCTYPE(number, pointer, number, pointer, pointer, number)(at["clash"])
        # In the order of the structure `Plan` of the driver, which writes to the first three.
        values, partials = code.values[:], array("d", bytes(8 * (tables.partials + 1)))
        self._own: list[array[Any]] = [self.buffers, values, partials, tables.places]
        self._chosen: list[array[int]] = []
        self.choose(None)

    def run(self, first: int, last: int) -> None:
        self._run(self._address, first, last, 1 if Process.forked else torch.get_num_threads())

    def choose(self, chosen: "list[array[int]] | None", past_caches: bool = False) -> None:
        chosen = chosen or self._code.whole
        if self._chosen is not chosen:
            self._chosen = chosen
            self._plan = array("q", [table.buffer_info()[0] for table in (*self._own, *chosen)] + [0])
            self._address = self._plan.buffer_info()[0]
        self._plan[-1] = past_caches

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        read, size = (table.buffer_info()[0] + 8 * skipped for table in (self.buffers, sizes))
        return bool(self._clash(spans.buffer_info()[0], len(spans) // 2, read, size, len(sizes) - skipped))
