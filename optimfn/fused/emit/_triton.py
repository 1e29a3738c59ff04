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
from ._triton_leaf import BLOCK, CHUNK, COLUMNS, FOLDS, Blocks, Leaf, kept, loaded, slots_of, stored
from ._types import TRITON_MEMORY as MEMORY
from ._types import TRITON_TYPES as COMPUTE

LANES = 128  # 0-dim values that are computed at a time


class Triton:
    """The language. Constants are tensors, so that every operand has a dtype."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        value = in_registers(value, dtype)
        if math.isfinite(value):
            return f"tl.full((), {value!r}, {COMPUTE[dtype]})"
        text = "INFINITY - INFINITY" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
        return f"tl.full((), {text}, {COMPUTE[dtype]})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"tl.cast({text}, {COMPUTE[dtype]})"

    def suffix(self, dtype: torch.dtype) -> str:
        """Functions are for all dtypes."""
        return ""

    def leaf(self, kernel: Kernel) -> "Leaf":
        """For a kernel."""
        return Leaf(kernel)

    def blocks(self, kernel: Kernel) -> "Blocks":
        """For a kernel that goes over blocks."""
        return Blocks(kernel)

    def scalars(self, form: Form | Chain) -> "_Scalars":
        """For a form that is no reduction."""
        return _Scalars(single=isinstance(form, Chain))

    def reduction(self, form: Form) -> str:
        """The function that reduces 0-dim values to one."""
        empty, step, total = FOLDS[form.op]
        result = _ops.rounded(form.dtype, self.cast(total.format("all"), form.dtype))
        place = f"{slots_of(form.dtype)} + tl.load(first + lane, mask=mask, other=0)"
        lines = [
            f"all = tl.full((LANES,), {empty}, tl.float64)",
            *_LANES.format(1).splitlines(),
            f"    next = tl.where(mask, tl.load({place}, mask=mask, other=0).to(tl.float64), {empty})",
            f"    all = {step.format('all', 'next')}",
            f"tl.store({slots_of(form.dtype)} + tl.load(first), {kept(form.dtype, result)})",
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
        place = f"{slots_of(dtype)} + {self._field(position)}"
        self._loads.append(f"{name} = tl.load({place}{self._other}).to({COMPUTE[dtype]})")

    def load(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_at = {self._pointer(dtype, buffer)}")
        self._loads.append(f"{name} = {loaded(dtype, f'tl.load({name}_at{self._other})')}")

    def value(self, name: str, dtype: torch.dtype, text: str) -> None:
        self._body.append(f"{name} = tl.cast({text}, {COMPUTE[dtype]})")

    def keep(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._loads.append(f"{name}_slot = {self._field(slot)}")
        self._ends.append(f"tl.store({slots_of(dtype)} + {name}_slot, {kept(dtype, name)}{self._mask})")

    def store(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._loads.append(f"{name}_to{buffer} = {self._pointer(dtype, buffer)}")
        self._ends.append(f"tl.store({name}_to{buffer}, {stored(dtype, name)}{self._mask})")

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
        return f"tl.load(buffers + {self._field(buffer)}{self._other}).to(tl.pointer_type({MEMORY[dtype]}))"
