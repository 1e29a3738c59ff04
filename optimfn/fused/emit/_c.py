"""Write kernels as C.

Every kernel is a function of its own, under a name made of what it computes and a digest of its text, so that
plans share what they have in common. The driver runs any plan; all it knows of one are tables.
"""

import math
from collections.abc import Iterable

import torch

from ..ir import _ops
from ..ir._kernels import Chain, Form, Kernel
from ..ir._numbers import in_registers
from ._c_blocks import Blocks
from ._c_leaf import CHUNK, Leaf, loaded, member, stored
from ._function import Function, indented, prelude
from ._types import C_MEMORY as MEMORY
from ._types import C_TYPES as COMPUTE


class C:
    """The language."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""
        kind, value = COMPUTE[dtype], in_registers(value, dtype)
        if isinstance(value, int):
            return f"(({kind}){value}LL)"
        if not math.isfinite(value):
            return f"(({kind}){'NAN' if math.isnan(value) else '-INFINITY' if value < 0 else 'INFINITY'})"
        return f"({value.hex()}{self.suffix(dtype)})"

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""
        return f"({COMPUTE[dtype]}){text}"

    def suffix(self, dtype: torch.dtype) -> str:
        """What C appends to the names of functions on this dtype."""
        return "f" if COMPUTE[dtype] == "float" else ""

    def leaf(self, kernel: Kernel) -> "Leaf":
        """For a kernel."""
        return Leaf(kernel)

    def blocks(self, kernel: Kernel) -> "Blocks":
        """For a kernel that goes over blocks."""
        return Blocks(kernel)

    def scalars(self, form: Form | Chain) -> "_Scalars":
        """For a form that is no reduction."""
        return _Scalars()

    def reduction(self, form: Form) -> str:
        """The function that reduces 0-dim values to one."""
        kind, own = COMPUTE[form.dtype], member(form.dtype)
        step = {"sum": "all + next", "max": "MAXIMUM(next, all)", "min": "MINIMUM(next, all)"}[form.op]
        lines = [
            f"{'double' if form.op == 'sum' and form.dtype.is_floating_point else kind} all = v[row[1]].{own};",
            "for (int64_t i = 2; i < n; i++) {",
            f"  const {kind} next = v[row[i]].{own};",
            f"  all = {step};",
            "}",
            f"v[row[0]].{own} = {_ops.rounded(form.dtype, f'({kind})all')};",
        ]
        return f"{_SCALARS}{indented(lines, 2)}}}\n"


def print_unit(functions: Iterable[Function], *, driver: bool) -> str:
    """A whole source file: the functions in alphabetical order, and the driver if it is not loaded yet."""
    words = "\n".join(f"#define {word} {means.c}" for word, means in _ops.WORDS.items())
    texts = [function.text for function in sorted(functions)]
    if driver:
        texts.append(prelude("driver.c", chunk=CHUNK))
    return "\n".join([prelude("prelude.c", words=words, beyond_float8=_ops.BEYOND_FLOAT8), *texts])


class _Scalars:
    """Writes the program of 0-dim values, which goes over rows."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def slot(self, name: str, dtype: torch.dtype, position: int) -> None:
        self._lines.append(f"const {COMPUTE[dtype]} {name} = v[row[{position}]].{member(dtype)};")

    def load(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        value = loaded(dtype, f"*(const {MEMORY[dtype]} *)plan->buffers[row[{buffer}]]")
        self._lines.append(f"const {COMPUTE[dtype]} {name} = {value};")

    def value(self, name: str, dtype: torch.dtype, text: str) -> None:
        self._lines.append(f"const {COMPUTE[dtype]} {name} = {text};")

    def keep(self, name: str, dtype: torch.dtype, slot: int) -> None:
        self._lines.append(f"v[row[{slot}]].{member(dtype)} = {name};")

    def store(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        self._lines.append(f"*({MEMORY[dtype]} *)plan->buffers[row[{buffer}]] = {stored(dtype, name)};")

    def text(self, fields: int) -> str:
        head = f"  for (const int64_t *end = row + {fields} * n; row < end; row += {fields}) {{\n"
        return f"{_SCALARS}{head}{indented(self._lines, 4)}  }}\n}}\n"


_SCALARS = "RARELY void $(const Plan *plan, const int64_t *row, int64_t n) {\n  Value *v = plan->values;\n"
