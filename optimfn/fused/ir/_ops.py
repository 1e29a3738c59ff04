"""The operators that kernels compute: ATen's names on the left, an expression on the right.

An expression stands for what ATen's vectorized CPU kernel does, in the same order and with the same fused
multiply-adds, so that the results agree bit for bit. `{0}`, `{1}`, ... are the operands, already in the dtype
that the operator computes in, and `{s}` is the suffix of functions on it (`f` for float in C).

Expressions mean the same in C and in Triton: arithmetic is infix, and what the two write differently goes by a
name that the header of each printer defines.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch

from ._kernels import Constant, Entry, Form

LOW_PRECISION = (torch.bfloat16, torch.float16)
DTYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)
"""The dtypes that kernels know."""

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})

TAKES_FLOAT32 = {("mul", 1), ("div", 1), ("addcmul", 3), ("addcdiv", 3), ("lerp", 2), ("copy", 0), ("fill", 0)}
"""Where ATen takes a number or 0-dim tensor in float32 beside leaves of low precision; elsewhere it rounds it first."""

_ANY_TYPE = {
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "square": "{0} * {0}",
    "sign": "SIGN({0})",
    "sgn": "SIGN({0})",
    "where": "SELECT({0}, {1}, {2})",
    "maximum": "MAXIMUM({0}, {1})",
    "minimum": "MINIMUM({0}, {1})",
    "clamp_min": "MAXIMUM({0}, {1})",
    "clamp_max": "MINIMUM({0}, {1})",
    "logical_not": "NOT({0})",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "copy": "{0}",
    "fill": "{0}",
}
_FLOATING = {
    "abs": "fabs{s}({0})",
    "div": "DIVIDE({0}, {1})",
    "sqrt": "sqrt{s}({0})",
    "rsqrt": "RECIPROCAL(sqrt{s}({0}))",
    "reciprocal": "RECIPROCAL({0})",
    "exp": "exp{s}({0})",
    "exp2": "exp2{s}({0})",
    "expm1": "expm1{s}({0})",
    "log": "log{s}({0})",
    "log2": "log2{s}({0})",
    "log1p": "log1p{s}({0})",
    "sin": "sin{s}({0})",
    "cos": "cos{s}({0})",
    "tanh": "tanh{s}({0})",
    "erf": "erf{s}({0})",
    "sigmoid": "RECIPROCAL(1 + exp{s}(-{0}))",
    "atan2": "atan2{s}({0}, {1})",
    "addcmul": "FMA{s}({3} * {1}, {2}, {0})",
    "addcdiv": "{0} + DIVIDE({3} * {1}, {2})",
    "floor": "floor{s}({0})",
    "ceil": "ceil{s}({0})",
    "round": "rint{s}({0})",
    "trunc": "trunc{s}({0})",
    "fmod": "fmod{s}({0}, {1})",
    "isnan": "{0} != {0}",
    "isfinite": "fabs{s}({0}) < INFINITY",
    "isinf": "fabs{s}({0}) == INFINITY",
}
_WHOLE = {
    "abs": "SELECT({0} < 0, -{0}, {0})",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "isnan": "0",
    "isfinite": "1",
    "isinf": "0",
}
_TRUTH = {"logical_and": "AND({0}, {1})", "logical_or": "OR({0}, {1})", "bitwise_not": "NOT({0})"}


def _add(args: Sequence[Any], compute: torch.dtype) -> str:
    if len(args) < 3:
        return "{0} + {1}"
    return "FMA{s}({1}, {2}, {0})" if compute.is_floating_point else "{0} + {1} * {2}"


def _sub(args: Sequence[Any], compute: torch.dtype) -> str:
    if len(args) < 3:
        return "{0} - {1}"
    return "FMA{s}({1}, -{2}, {0})" if compute.is_floating_point else "{0} - {1} * {2}"


def _rsub(args: Sequence[Any], compute: torch.dtype) -> str | None:
    return "{1} - {0}" if len(args) < 3 else None


def _lerp(args: Sequence[Any], compute: torch.dtype) -> str:
    near, far = "FMA{s}({2}, {1} - {0}, {0})", "FMA{s}({2} - 1, {1} - {0}, {1})"
    if isinstance(args[2], int | float):
        return near if abs(args[2]) < 0.5 else far
    return f"SELECT(fabs{{s}}({{2}}) < HALF{{s}}, {near}, {far})"


def _clamp(args: Sequence[Any], compute: torch.dtype) -> str:
    low, high = (*args, None, None)[1:3]
    bounded = "{0}" if low is None else "MAXIMUM({0}, {1})"
    return bounded if high is None else f"MINIMUM({bounded}, {{2}})"


def _pow(args: Sequence[Any], compute: torch.dtype) -> str | None:
    exponents = {2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}"}
    if compute == torch.bfloat16:  # ATen rounds in between, for this dtype only
        square = rounded(compute, "{0} * {0}")
        exponents |= {3.0: square + " * {0}", -2.0: f"RECIPROCAL({square})"}
    if compute.is_floating_point:
        exponents = {
            0.5: "sqrt{s}({0})",
            -0.5: "RECIPROCAL(sqrt{s}({0}))",
            -1.0: "RECIPROCAL({0})",
            -2.0: "RECIPROCAL({0} * {0})",
            **exponents,
        }
        return exponents.get(args[1], "pow{s}({0}, {1})") if isinstance(args[1], int | float) else "pow{s}({0}, {1})"
    return exponents.get(args[1]) if isinstance(args[1], int) else None


def _remainder(args: Sequence[Any], compute: torch.dtype) -> str | None:
    if compute.is_floating_point:
        return "modulo{s}({0}, {1})"
    # A divisor known to be positive cannot trap.
    return "({0} % {1} + {1}) % {1}" if isinstance(args[1], int) and args[1] > 0 else None


def _floor_divide(args: Sequence[Any], compute: torch.dtype) -> str | None:
    if compute.is_floating_point or not (isinstance(args[1], int) and args[1] > 0):
        return None
    return "QUOTIENT({0} - ({0} % {1} + {1}) % {1}, {1})"


_FORMS: dict[str, Callable[[Sequence[Any], torch.dtype], str | None]] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "lerp": _lerp,
    "clamp": _clamp,
    "pow": _pow,
    "remainder": _remainder,
    "floor_divide": _floor_divide,
}

POINTWISE = frozenset({*_ANY_TYPE, *_FLOATING, *_WHOLE, *_TRUTH, *_FORMS} - {"copy", "fill"})
"""The operators that may be printed; `template` decides for given arguments."""


def template(op: str, args: Sequence[Any], compute: torch.dtype) -> str | None:
    """The expression for an operator, or `None` if there is none for these arguments and this dtype.

    Args:
        op: Name without namespace and overload, such as `add`.
        args: The arguments; Python numbers as they are, and anything else for a tensor.
        compute: The dtype that the operator computes in.
    """
    if compute not in DTYPES:
        return None
    if op in _FORMS:
        return _FORMS[op](args, compute)
    if compute == torch.bool and op in _TRUTH:
        return _TRUTH[op]
    special = _FLOATING if compute.is_floating_point else _WHOLE
    return special.get(op) or _ANY_TYPE.get(op)


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
        rounds = compute in LOW_PRECISION and (op, position) not in TAKES_FLOAT32
        if isinstance(arg, Constant):
            value = arg.value
            if rounds and value is not None:
                value = torch.tensor(value, dtype=compute).item()
            operands.append("" if value is None else language.constant(value, compute))
        elif own == compute or (op == "where" and position == 0):
            operands.append(name)
        else:
            cast = language.cast(name, compute)
            operands.append(rounded(compute, cast) if rounds else cast)
    form = template(op, [x.value if isinstance(x, Constant) else None for x in args], compute)
    assert form is not None
    text = form.format(*operands, s=language.suffix(compute))
    return text if op == "fill" else rounded(dtype, text)


def rounded(dtype: torch.dtype, value: str) -> str:
    """A value as it would come back from memory: eager rounds every intermediate of low precision."""
    if dtype not in LOW_PRECISION:
        return value
    return f"ROUND_{'BFLOAT16' if dtype == torch.bfloat16 else 'FLOAT16'}({value})"


def nearest_float32(value: float) -> float:
    """A number as float32 holds it."""
    if not math.isfinite(value):
        return value
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    return value
