"""Run a plan on a CUDA device: its kernels as Triton, its tables on the device, and their launches.

Nothing is read back, and outside of `__init__` nothing waits for the device, so that a step can be captured into a
CUDA graph. The addresses of the leaves reach the kernels through a table on the device. It is sent again when an
address has changed, such as that of a gradient made anew, or of a product that ATen computes between two stages.

The device comes to a copy long after the host has asked for it, so what is sent must not change any more: every table
is sent from memory of its own. A graph has tables of its own too, which every replay sends again.
"""

from array import array
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import groupby
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._in_place._spans import Taken
from ..emit._triton import Triton, print_stage, print_unit
from ..emit._triton_leaf import CHUNK, COLUMNS
from ..ir._graph import StepAside
from ..ir._kernels import Call, Chain, Form, Link, Owner, Stage
from ..plan._plan import Plan
from ..plan._tables import Grain, Section, Tables
from . import _modules
from ._machine import Machine, MachineCode

_GRAIN = Grain(CHUNK, rows=lambda times: 1, columns=lambda times: COLUMNS)
_ALIGNMENT = 16  # bytes that one thread loads at a time
_SHORT = 4  # values; a call with more of them computes them side by side
_GRAPHS = 8  # how many steps can be captured in a row, without one that runs
_read_by_graphs: list[tuple[Tensor, ...]] = []  # for ever: nobody can tell which replay was the last


class _Launch(NamedTuple):
    function: Any
    programs: int
    arguments: tuple[Any, ...]
    is_kernel: bool


class _Sent(NamedTuple):
    """Tables on the device, and what each stage has in them."""

    rows: Tensor
    combines: Tensor
    calls: Tensor
    chunks: Tensor
    sections: list[Section]


class CudaCode(MachineCode):
    """The kernels of a plan, compiled from Triton when they are first launched, and its tables.

    Args:
        plan: The plan.
        device: The device of all leaves. On the CPU the kernels run in Triton's interpreter.

    Raises:
        CannotBuild: if Triton is missing, or there is no directory for the source.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        super().__init__(plan, _chained(plan), Triton(), lambda dtype: "d" if dtype.is_floating_point else "q")
        calls = [[self.functions[call.form] for call in stage.calls] for stage in self.stages]
        scalars = [print_stage(functions) if functions else None for functions in calls]
        self.module = _modules.load(print_unit([*self.functions.values(), *filter(None, scalars)]))
        self.device = device
        self.kernels = {kernel: self.module[self.functions[kernel].name] for kernel in plan.kernels}
        self.scalars = [None if scalar is None else self.module[scalar.name] for scalar in scalars]
        self.sends = 1 + sum(bool(stage.opaque) for stage in plan.stages)  # the most that a step may need
        self.tables = Tables(plan.slot, self.stages, _GRAIN, dict.fromkeys(self.functions, 0))
        self.places = self.sent(self.tables.places)
        self.whole = self._select(None)

    @property
    def sources(self) -> list[Path]:
        return [Path(self.module["__file__"])]

    def sent(self, table: "array[int]") -> Tensor:
        """A table on the device."""
        return torch.tensor(table.tolist() or [0], dtype=torch.int64, device=self.device)

    def select(self, present: Set[Owner]) -> _Sent:
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise StepAside  # nothing that is not pinned can be sent now
        return self._select(present)

    def _select(self, present: Set[Owner] | None) -> _Sent:
        chosen = self.tables.select(present)
        rows, combines, calls = self.sent(chosen.rows), self.sent(chosen.combines), self.sent(chosen.calls)
        return _Sent(rows, combines, calls, self.sent(chosen.chunks), chosen.sections)


class Cuda(Machine):
    """Launches kernels on a CUDA device."""

    code = CudaCode

    def __init__(self, code: CudaCode) -> None:
        super().__init__(code)
        self._code, self._module = code, code.module
        self._width = -(-len(self.buffers) // 16) * 16  # of a table, so that all are aligned alike
        self._device, self._is_gpu = code.device, code.device.type == "cuda"
        self._addresses, self._is_aligned = self._new_tables(1)[0], False
        self._sent: array[int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._harmless: tuple[array[int], array[int]] | None = None  # spans, and what does not overlap them
        self._sends = code.sends
        self._spares: list[tuple[Tensor, Tensor]] = []  # tables for graphs, and pinned memory to send them from
        self._whole = code.sent(code.values)
        self._partials = code.sent(array("q", bytes(8 * (code.tables.partials + 1)))).view(torch.float64)
        # What kernels use, on whichever stream.
        self._held: list[Tensor] = [self._addresses, self._whole, self._partials, code.places, *code.whole[:4]]
        self._chosen = code.whole
        self._launches = self._laid_out(code.whole)

    def choose(self, chosen: _Sent | None, past_caches: bool = False) -> None:
        chosen = chosen or self._code.whole
        if self._chosen is not chosen:
            self._chosen, self._launches = chosen, self._laid_out(chosen)

    def _laid_out(self, chosen: _Sent) -> list[list[_Launch]]:
        """The launches of each stage, with the tables that they read."""
        rows, combines, calls, chunks, sections = chosen
        values, whole, partials = self._whole.view(torch.float64), self._whole, self._partials
        stages = []
        for section, scalar in zip(sections, self._code.scalars, strict=True):
            launches = []
            first, size = section.combines
            if size:
                launches.append(
                    _Launch(self._module["combine"], size, (values, whole, partials, combines, first), False)
                )
            if scalar is not None:
                launches.append(_Launch(scalar, 1, (rows, calls, values, whole, section.calls.first), False))
            for kernel, (first, size) in section.kernels:
                if size:
                    read = (self._code.places, values, whole, partials, chunks, first)
                    launches.append(_Launch(self._code.kernels[kernel], size, read, True))
            stages.append(launches)
        return stages

    def run(self, first: int, last: int) -> None:
        if not any(self._launches[first:last]):
            return
        with self._on_device():
            addresses, is_aligned = self._send()
            for launches in self._launches[first:last]:
                for function, programs, arguments, is_kernel in launches:
                    if is_kernel:
                        function[programs,](
                            addresses, *arguments, ALIGNMENT=_ALIGNMENT if is_aligned else 1, enable_fp_fusion=False
                        )
                    else:
                        function[programs,](addresses, *arguments, enable_fp_fusion=False)

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        read = self.buffers[skipped : len(sizes)]
        if self._harmless is not None and self._harmless[0] is spans and self._harmless[1] == read:
            return False
        taken = Taken(spans[::2], spans[1::2])
        if any(taken.meet(start, start + size) for start, size in zip(read, sizes[skipped:], strict=True)):
            return True
        self._harmless = spans, read
        return False

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._is_gpu else nullcontext()

    def hold(self, tensors: Sequence[Tensor]) -> None:
        self._held += tensors

    def _new_tables(self, count: int) -> Tensor:
        """Room for tables of addresses. Triton would compile anew for one that is aligned otherwise."""
        return torch.empty((count, self._width), dtype=torch.int64, device=self._device)

    def _send(self) -> tuple[Tensor, bool]:
        """The table of addresses, sent to the device if one has changed, and whether all are aligned."""
        if self._is_gpu and torch.cuda.is_current_stream_capturing():
            # Never the table of the other steps: these would send what a replay then reads.
            return self._send_in_graph(), _are_aligned(self.buffers)
        if self._is_gpu:
            self._follow_stream()
            if len(self._spares) < self._sends:
                count = _GRAPHS * self._sends
                self._spares += zip(self._new_tables(count), _pinned(count, self._width), strict=True)
        if self.buffers != self._sent:
            # The allocator of pinned memory gives it to nobody else before the device has read it.
            source = _pinned(1, self._width)[0] if self._is_gpu else torch.empty_like(self._addresses)
            self._addresses.copy_(_filled(source, self.buffers), non_blocking=True)
            self._sent, self._is_aligned = self.buffers[:], _are_aligned(self.buffers)
        return self._addresses, self._is_aligned

    def _send_in_graph(self) -> Tensor:
        """Send addresses now and in every replay, from memory that stays as it is."""
        if not self._spares:  # nothing can be allocated here; and what is given is only written after the last table
            raise StepAside
        table, pinned = self._spares.pop()
        _read_by_graphs.append((table, pinned, *self._chosen[:4]))
        table.copy_(_filled(pinned, self.buffers), non_blocking=True)
        return table

    def _follow_stream(self) -> None:
        """Let a step on another stream than the last wait for it: both use the same tables.

        Whoever gets their memory next waits for both.
        """
        stream = torch.cuda.current_stream(self._device)
        if self._stream == stream:
            return
        if self._stream is not None:
            stream.wait_stream(self._stream)
        for x in (*self._held, *self._chosen[:4]):  # code is shared, and may come from another stream
            x.record_stream(stream)
        self._stream = stream


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
        yield Call(Chain(tuple(links)), [rows], [None])


def _is_short(call: Call) -> bool:
    # What may be left out stays by itself.
    return not (call.reduces or any(owner is not None for owner in call.owners)) and len(call.rows) <= _SHORT


def _pinned(count: int, size: int) -> Tensor:
    """Room for tables that the device reads when it comes to them."""
    return torch.empty((count, size), dtype=torch.int64, pin_memory=True)


def _filled(source: Tensor, buffers: "array[int]") -> Tensor:
    source[: len(buffers)] = torch.frombuffer(buffers, dtype=torch.int64)
    return source


def _are_aligned(addresses: Sequence[int]) -> bool:
    return reduce(or_, addresses, 0) % _ALIGNMENT == 0
