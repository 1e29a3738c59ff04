"""A plan as the tables that its driver in C reads."""

import ctypes
from array import array
from collections.abc import Sequence

import torch

from . import _build
from ._kernels import Call, Row
from ._plan import Plan
from ._print_c import print_form, print_kernel

CHUNK = 16384  # elements a thread takes at a time: three to six arrays of them fit into a core's own cache
_HOW = {"sum": 0, "max": 1, "min": 2}
_KIND = {torch.float64: 0, torch.float32: 1}  # others are whole numbers


class Tables:
    """The tables of a plan, its compiled functions, and the driver.

    The fields of the tables are those of the structures in `_print_c`, all int64.

    Args:
        plan: The plan.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    def __init__(self, plan: Plan) -> None:
        kernels = {kernel: print_kernel(kernel, plan.lines[kernel]) for kernel in plan.kernels}
        forms = {form: print_form(form) for form in plan.forms}
        self.functions = [*kernels.values(), *forms.values()]
        addresses = _build.load(self.functions)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.run = ctypes.CFUNCTYPE(None, pointer, number, number, number)(addresses["run"])
        self.clash = ctypes.CFUNCTYPE(number, pointer, number, pointer, pointer, number)(addresses["clash"])
        self._kernels = {kernel: addresses[function.name] for kernel, function in kernels.items()}
        self._forms = {form: addresses[function.name] for form, function in forms.items()}
        self._plan = plan
        self._table, self._rows, self._combines = array("q"), array("q"), array("q")
        self._calls, self._chunks, self._stages = array("q"), array("q"), array("q")
        self._partials = 0
        self._fill()
        self.stages = len(plan.all_stages)
        self.buffers = array("q", bytes(8 * plan.buffers))
        values, partials = array("q", bytes(8 * (len(plan.slot) + 1))), array("d", bytes(8 * (self._partials + 1)))
        given = [self._table, self._rows, self._combines, self._calls, self._chunks, self._stages]
        self._kept = (values, partials)  # the driver writes to their memory
        addresses_of = [table.buffer_info()[0] for table in (self.buffers, values, *given)]
        self._pointers = array("q", [*addresses_of[:2], partials.buffer_info()[0], *addresses_of[2:]])
        self.address = self._pointers.buffer_info()[0]

    def _fill(self) -> None:
        pending: list[tuple[int, ...]] = []  # reductions of a stage are combined when the next begins
        for stage in self._plan.all_stages:
            first = len(self._combines) // 5, len(self._calls) // 3, len(self._chunks) // 7
            for combine in pending:
                self._combines.extend(combine)
            pending = []
            for call in stage.calls:
                self._add_call(call)
            for row in stage.rows:
                pending += self._add_row(row)
            last = len(self._combines) // 5, len(self._calls) // 3, len(self._chunks) // 7
            for start, end in zip(first, last, strict=True):
                self._stages.extend((start, end - start))
            self._stages.append(sum(row.numel for row in stage.rows))

    def _add_call(self, call: Call) -> None:
        count = len(call.rows[0]) if call.form.kind == "reduce" else len(call.rows)
        self._calls.extend((self._forms[call.form], len(self._rows), count))
        for row in call.rows:
            self._rows.extend(row)

    def _add_row(self, row: Row) -> Sequence[tuple[int, ...]]:
        """Cut a leaf into chunks; returns how to combine what they reduce."""
        places = len(self._table), len(self._table) + len(row.buffers)
        self._table.extend(row.buffers)
        self._table.extend(row.slots)
        parts = -(-row.numel // CHUNK)
        for part in range(parts):
            start = part * CHUNK
            self._chunks.extend((self._kernels[row.kernel], *places, self._partials + part, parts))
            self._chunks.extend((start, min(CHUNK, row.numel - start)))
        combines = []
        for node in row.reductions:
            slot = self._plan.slot[node]
            combines.append((slot, self._partials, parts, _HOW[node.op], _KIND.get(node.dtype, 2)))
            self._partials += parts
        return combines
