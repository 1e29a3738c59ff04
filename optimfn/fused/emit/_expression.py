"""Fill in the expressions of the table of operators: operands converted, numbers as constants, results rounded."""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from ..ir import _ops
from ..ir._kernels import Constant, Entry, Form


class Language(Protocol):
    """What C and Triton write differently beside what their headers define."""

    def constant(self, value: float, dtype: torch.dtype) -> str:
        """A Python number as ATen would turn it into a value of `dtype`."""

    def cast(self, text: str, dtype: torch.dtype) -> str:
        """A value converted to what `dtype` has in registers."""

    def suffix(self, dtype: torch.dtype) -> str:
        """What is appended to the names of functions on this dtype."""


def entry_expression(language: Language, entry: Entry, entries: Sequence[Entry], names: Sequence[str]) -> str:
    """What a leaf program computes for an entry, of the earlier ones by their names."""
    operands = ["" if isinstance(x, Constant) else names[x] for x in entry.args]
    dtypes = [None if isinstance(x, Constant) else entries[x].dtype for x in entry.args]
    return _expression(language, entry.op, entry.args, operands, dtypes, entry.dtype, entry.compute)


def form_expression(language: Language, form: Form, names: Iterable[str]) -> str:
    """What a form computes of 0-dim values with these names."""
    given = iter(names)
    operands = ["" if isinstance(x, Constant) else next(given) for x in form.args]
    dtypes = [None if isinstance(x, Constant) else x for x in form.args]
    return _expression(language, form.op, form.args, operands, dtypes, form.dtype, form.compute)


def _expression(
    language: Language,
    op: str,
    args: Sequence[Any],
    names: Sequence[str],
    dtypes: Sequence[torch.dtype | None],
    dtype: torch.dtype,
    compute: torch.dtype,
) -> str:
    """One operator on operands, of which a `Constant` has no name and no dtype."""
    operands = []
    for position, (arg, name, own) in enumerate(zip(args, names, dtypes, strict=True)):
        rounds = compute in _ops.LOW_PRECISION and position not in _ops.OPERATORS[op].wide
        if isinstance(arg, Constant):
            value = arg.value
            if rounds and value is not None:
                value = torch.tensor(value, dtype=compute).item()
            operands.append("" if value is None else language.constant(value, compute))
        elif own == compute or (op == "where" and position == 0):
            operands.append(name)
        else:
            cast = language.cast(name, compute)
            operands.append(_ops.rounded(compute, cast) if rounds else cast)
    form = _ops.template(op, [x.value if isinstance(x, Constant) else None for x in args], compute)
    assert form is not None
    text = form.format(*operands, s=language.suffix(compute))
    return text if op == "fill" else _ops.rounded(dtype, text)


def nearest_float32(value: float) -> float:
    """A number as float32 holds it."""
    if not math.isfinite(value):
        return value
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    return value
