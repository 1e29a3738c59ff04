"""Fill in the expressions of the table of operators: operands converted, numbers as constants, results rounded."""

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
        if isinstance(arg, Constant):
            taken = None if arg.value is None else _ops.as_operand(arg.value, op, position, compute)
            operands.append("" if taken is None else language.constant(taken, compute))
        elif own == compute or (op == "where" and position == 0):
            operands.append(name)
        else:
            cast = language.cast(name, compute)
            operands.append(_ops.rounded(compute, cast) if _ops.rounds_first(op, position, compute) else cast)
    form = _ops.template(op, [x.value if isinstance(x, Constant) else ... for x in args], compute)
    assert form is not None
    text = form.format(*operands, s=language.suffix(compute))
    return text if op == "fill" else _ops.rounded(dtype, text)
