"""Run a plan on a CUDA device: its kernels as Triton, its tables on the device, and their launches.

Nothing is read back, and outside of `__init__` nothing waits for the device, so that a step can be captured into a
CUDA graph. The addresses of the leaves reach the kernels through a table on the device. It is sent again when an
address has changed, such as that of a gradient made anew. A graph keeps a table of its own, which is sent again by
every replay.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..emit._print import Function
from ..emit._print_triton import print_chain, print_form, print_kernel, print_stage, print_unit
from ..emit._vocabulary import CHUNK, COLUMNS
from ..ir._graph import StepAside
from ..ir._kernels import Call, Chain, Form, Link, Row, Stage
from ..plan._plan import Plan
from ..plan._tables import Tables, cut, cut_columns
from . import _modules

_ALIGNMENT = 16  # bytes that one thread loads at a time
_SHORT = 4  # values; a call with more of them computes them side by side
_GRAPHS = 8  # how many steps can be captured in a row, without one that runs


class _Launch(NamedTuple):
    function: Any
    programs: int
    arguments: tuple[Any, ...]
    is_kernel: bool


class Cuda:
    """The kernels of a plan, compiled from Triton when they are first launched.

    Args:
        plan: The plan.
        device: The device of all leaves. On the CPU the kernels run in Triton's interpreter.

    Raises:
        CannotBuild: if Triton is missing, or there is no directory for the source.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        kernels = {kernel: print_kernel(kernel, plan.lines[kernel]) for kernel in plan.kernels}
        stages = _chained(plan)
        calls = [call.form for stage in stages for call in stage.calls]
        forms = {form: print_chain(form) if isinstance(form, Chain) else print_form(form) for form in calls}
        scalars = [print_stage([forms[call.form] for call in stage.calls]) if stage.calls else None for stage in stages]
        self.functions = [*kernels.values(), *forms.values(), *filter(None, scalars)]
        self._module = _modules.load(print_unit(self.functions))
        tables = Tables(plan.slot, stages, _chunks, dict.fromkeys(kernels, 0), dict.fromkeys(forms, 0))
        self.stages = len(plan.stages)
        self.buffers = array("q", bytes(8 * plan.buffers))
        self._device, self._is_gpu = device, device.type == "cuda"
        self._addresses, self._is_aligned = self._new_table(), False
        self._sent: array[int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._harmless: tuple[array[int], array[int]] | None = None  # spans, and what does not overlap them
        self._sends = 1 + sum(bool(stage.opaque) for stage in plan.stages)  # the most that a step may need
        self._spares: list[tuple[Tensor, Tensor]] = []  # tables for graphs, and pinned memory to send them from
        self._in_graphs: list[tuple[Tensor, Tensor]] = []

        self._launches = self._laid_out(plan, tables, [kernels[kernel].name for kernel in plan.kernels], scalars)

    def _laid_out(
        self, plan: Plan, tables: Tables, names: Sequence[str], scalars: Sequence[Function | None]
    ) -> list[list[_Launch]]:
        """The launches of each stage, with the tables that they read."""

        def sent(table: "array[int]") -> Tensor:
            return torch.tensor(table.tolist() or [0], dtype=torch.int64, device=self._device)

        whole = sent(array("q", bytes(8 * (len(plan.slot) + 1))))
        values, partials = whole.view(torch.float64), sent(array("q", bytes(8 * (tables.partials + 1))))
        partials = partials.view(torch.float64)
        combines, rows, calls = sent(tables.combines), sent(tables.rows), sent(tables.calls)
        places, chunks = sent(tables.places), sent(tables.chunks)
        functions = {kernel: self._module[name] for kernel, name in zip(plan.kernels, names, strict=True)}
        stages = []
        for section, scalar in zip(tables.sections, scalars, strict=False):
            launches = []
            first, size = section.combines
            if size:
                launches.append(
                    _Launch(self._module["combine"], size, (values, whole, partials, combines, first), False)
                )
            if scalar is not None:
                arguments = (rows, calls, values, whole, section.calls.first)
                launches.append(_Launch(self._module[scalar.name], 1, arguments, False))
            for kernel, (first, size) in section.kernels:
                if size:
                    read = (places, values, whole, partials, chunks, first)
                    launches.append(_Launch(functions[kernel], size, read, True))
            stages.append(launches)
        return stages

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return [Path(self._module["__file__"])]

    def run(self, first: int, last: int) -> None:
        """Launch the kernels of stages."""
        with self._on_device():
            addresses, is_aligned = self._send(begins=first == 0)
            for launches in self._launches[first:last]:
                for function, programs, arguments, is_kernel in launches:
                    if is_kernel:
                        function[programs,](
                            addresses, *arguments, ALIGNMENT=_ALIGNMENT if is_aligned else 1, enable_fp_fusion=False
                        )
                    else:
                        function[programs,](addresses, *arguments, enable_fp_fusion=False)

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""
        read = self.buffers[skipped : len(sizes)]
        if self._harmless is not None and self._harmless[0] is spans and self._harmless[1] == read:
            return False
        starts, ends = spans[::2], spans[1::2]
        for start, size in zip(read, sizes[skipped:], strict=True):
            after = bisect_right(ends, start)
            if size and after < len(starts) and starts[after] < start + size:
                return True
        self._harmless = spans, read
        return False

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._is_gpu else nullcontext()

    def _new_table(self) -> Tensor:
        return torch.zeros(len(self.buffers), dtype=torch.int64, device=self._device)

    def _send(self, begins: bool) -> tuple[Tensor, bool]:
        """The table of addresses, sent to the device if one has changed, and whether all are aligned."""
        capturing = self._is_gpu and torch.cuda.is_current_stream_capturing()
        if self._is_gpu and not capturing:
            self._follow_stream()
            if len(self._spares) < self._sends:
                self._spares += [(self._new_table(), _pinned(len(self.buffers))) for _ in range(_GRAPHS * self._sends)]
        if self.buffers != self._sent:
            host = torch.frombuffer(self.buffers, dtype=torch.int64)
            is_aligned = not any(address % _ALIGNMENT for address in self.buffers)
            if capturing:
                return self._send_in_graph(host, begins), is_aligned
            # From memory that is not pinned, what is sent is what stands there now.
            self._addresses.copy_(host, non_blocking=True)
            self._sent, self._is_aligned = self.buffers[:], is_aligned
        return self._addresses, self._is_aligned

    def _send_in_graph(self, host: Tensor, begins: bool) -> Tensor:
        """Send addresses now and in every replay, from memory that stays as it is."""
        if begins and len(self._spares) < self._sends:  # nothing can be allocated here
            raise StepAside
        table, pinned = self._spares.pop()
        pinned.copy_(host)
        table.copy_(pinned, non_blocking=True)
        self._in_graphs.append((table, pinned))
        return table

    def _follow_stream(self) -> None:
        """Let a step on another stream than the last wait for it: both use the same tables."""
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream


def _chunks(row: Row) -> Iterator[tuple[int, int]]:
    if row.kernel.loop == "columns":
        return cut_columns(row, COLUMNS)
    if row.kernel.loop == "rows":
        return cut(row.numel // row.extents[0], 1)
    return cut(row.numel, CHUNK)


def _chained(plan: Plan) -> list[Stage]:
    """The stages of a plan with 0-dim arithmetic in chains.

    What is stored at the end is not needed by the last stage, and joins its arithmetic.
    """
    stages = []
    for k, stage in enumerate(plan.stages):
        calls = stage.calls + plan.final.calls if k == len(plan.stages) - 1 else stage.calls
        stages.append(Stage(stage.opaque, list(_with_chains(calls)), stage.rows))
    return stages


def _with_chains(calls: Sequence[Call]) -> Iterator[Call]:
    """Put calls at work on few values together, so that these do not go through memory."""
    for is_short, members in groupby(calls, key=_is_short):
        if not is_short:
            yield from members
            continue
        links: list[Link] = []
        number: dict[int, int] = {}  # slot -> link
        rows: list[int] = []
        for call in members:
            assert isinstance(call.form, Form)
            for row in call.rows:
                given = {"load": [], "store": row[:1], "compute": row[1:]}[call.form.kind]
                links.append(Link(call.form, tuple([number.get(slot) for slot in given])))
                if call.form.kind != "store":
                    number[row[0]] = len(links) - 1
                rows += row
        yield Call(Chain(tuple(links)), [rows])


def _is_short(call: Call) -> bool:
    return isinstance(call.form, Form) and call.form.kind != "reduce" and len(call.rows) <= _SHORT


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64, pin_memory=True)
