"""What kernels know of ATen's operators, all in one table.

An expression stands for what ATen's vectorized CPU kernel does, in the same order and with the same fused
multiply-adds. `{0}`, `{1}`, ... are the operands, already in the dtype that the operator computes in, and `{s}` is
the suffix of functions on it (`f` for float in C).

Expressions mean the same in C and in Triton: arithmetic is infix, and what the two write differently is a word of
the second table. What takes more than an expression to say, such as `modulo`, is in the preludes beside the writers.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

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

BEYOND_FLOAT8 = int(torch.tensor(500.0, device="cpu").to(torch.float8_e4m3fn).view(torch.uint8))
"""What numbers beyond the largest of e4m3fn become, as bits: that, or NaN, as torch has it."""

Expression = str | Callable[[Sequence[Any], torch.dtype], str | None] | None
"""Of operands; a function is given the arguments, Python numbers as they are, and the dtype to compute in."""


class Operator(NamedTuple):
    """How kernels compute an operator."""

    floating: Expression = None  # where it computes in floating-point numbers
    whole: Expression = None  # in whole numbers
    truth: Expression = None  # in truth values, if not as in whole numbers
    units: int = 0  # how far from the true value, in units in the last place; 0: nothing is rounded but the result
    wide: tuple[int, ...] = ()  # operands that ATen takes in float32 beside low precision; others it rounds first
    judges: bool = False  # it computes in the dtype of its operands, whatever that of the result


def _both(expression: Expression, wide: tuple[int, ...] = (), units: int = 0, judges: bool = False) -> Operator:
    return Operator(expression, expression, units=units, wide=wide, judges=judges)


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


_NEAR, _FAR = "FMA{s}({2}, {1} - {0}, {0})", "FMA{s}({2} - 1, {1} - {0}, {1})"


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
    if not (isinstance(args[1], int) and args[1] > 0):
        return None
    return "QUOTIENT({0} - ({0} % {1} + {1}) % {1}, {1})"


def _shift_right(args: Sequence[Any], compute: torch.dtype) -> str | None:
    """By a number of bits that there are; what C makes of others is its own affair."""
    size = 8 * compute.itemsize
    return "{0} >> {1}" if isinstance(args[1], int) and compute != torch.bool and 0 <= args[1] < size else None


def _function(name: str, operands: str = "{0}", units: int = 1) -> Operator:
    """A function of `math.h`, as near as CUDA's library promises for float32; glibc is nearer."""
    return Operator(f"{name}{{s}}({operands})", units=units)


OPERATORS = {
    "__rshift__": Operator(whole=_shift_right),
    "abs": Operator("fabs{s}({0})", "SELECT({0} < 0, -{0}, {0})"),
    "add": _both(_add, units=1),
    "addcdiv": Operator("{0} + DIVIDE({3} * {1}, {2})", units=2, wide=(3,)),
    "addcmul": Operator("FMA{s}({3} * {1}, {2}, {0})", units=2, wide=(3,)),
    "as_float32_of_int32": Operator(whole="FLOAT_OF({0})"),
    "as_int32_of_float32": Operator("INT32_OF({0})"),
    "as_bfloat16_of_int16": Operator(whole="BFLOAT16_OF({0})"),
    "as_float8_e4m3fn_of_uint8": Operator(whole="FLOAT8_OF({0})"),
    "as_int16_of_bfloat16": Operator("INT16_OF({0})"),
    "as_uint8_of_float8_e4m3fn": Operator("UINT8_OF({0})"),
    "atan2": _function("atan2", "{0}, {1}", units=3),
    "bitwise_and": Operator(whole="{0} & {1}"),
    "bitwise_not": Operator(truth="NOT({0})"),
    "bitwise_or": Operator(whole="{0} | {1}"),
    "bitwise_right_shift": Operator(whole=_shift_right),
    "bitwise_xor": Operator(whole="{0} ^ {1}"),
    "ceil": _function("ceil", units=0),
    "clamp": _both(_clamp),
    "clamp_max": _both("MINIMUM({0}, {1})"),
    "clamp_min": _both("MAXIMUM({0}, {1})"),
    "copy": _both("{0}", wide=(0,)),
    "cos": _function("cos", units=2),
    "div": Operator("DIVIDE({0}, {1})", wide=(1,)),
    "eq": _both("{0} == {1}", judges=True),
    "erf": _function("erf", units=2),
    "exp": _function("exp", units=2),
    "exp2": _function("exp2", units=2),
    "expm1": _function("expm1"),
    "fill": _both("{0}", wide=(0,)),
    "floor": _function("floor", units=0),
    "floor_divide": Operator(whole=_floor_divide),
    "fmod": _function("fmod", "{0}, {1}", units=0),
    "ge": _both("{0} >= {1}", judges=True),
    "gt": _both("{0} > {1}", judges=True),
    "isfinite": Operator("fabs{s}({0}) < INFINITY", "1", judges=True),
    "isinf": Operator("fabs{s}({0}) == INFINITY", "0", judges=True),
    "isnan": Operator("{0} != {0}", "0", judges=True),
    "le": _both("{0} <= {1}", judges=True),
    "lerp": _both(f"SELECT(fabs{{s}}({{2}}) < HALF{{s}}, {_NEAR}, {_FAR})", wide=(2,), units=2),
    "lerp_far": _both(_FAR, wide=(2,), units=2),
    "lerp_near": _both(_NEAR, wide=(2,), units=2),
    "log": _function("log"),
    "log1p": _function("log1p"),
    "log2": _function("log2"),
    "logical_and": Operator(truth="AND({0}, {1})", judges=True),
    "logical_not": _both("NOT({0})", judges=True),
    "logical_or": Operator(truth="OR({0}, {1})", judges=True),
    "lt": _both("{0} < {1}", judges=True),
    "maximum": _both("MAXIMUM({0}, {1})"),
    "minimum": _both("MINIMUM({0}, {1})"),
    "mul": _both("{0} * {1}", wide=(1,)),
    "ne": _both("{0} != {1}", judges=True),
    "neg": _both("-{0}"),
    "pow": _both(_pow, units=4),
    "reciprocal": Operator("RECIPROCAL({0})"),
    "remainder": _both(_remainder, units=1),
    "round": _function("rint", units=0),
    "rsqrt": Operator("RECIPROCAL(sqrt{s}({0}))", units=2),
    "rsub": _both(_rsub),
    "sgn": Operator("SIGN({0})", "SIGN({0})", "{0}"),
    "sigmoid": Operator("RECIPROCAL(1 + exp{s}(-{0}))", units=3),
    "sign": Operator("SIGN({0})", "SIGN({0})", "{0}"),
    "sin": _function("sin", units=2),
    "sqrt": _function("sqrt", units=0),
    "square": _both("{0} * {0}"),
    "sub": _both(_sub, units=1),
    "tanh": _function("tanh", units=2),
    "trunc": _function("trunc", units=0),
    "where": _both("SELECT({0}, {1}, {2})", judges=True),
}
"""By the name without namespace and overload."""

_BIT_CASTS = {name for name in OPERATORS if name.startswith("as_")}
POINTWISE = frozenset(OPERATORS) - {"copy", "fill", "lerp_far", "lerp_near"} - _BIT_CASTS
"""The operators of ATen that may be printed; `template` decides for given arguments."""


class Word(NamedTuple):
    """What C and Triton write differently."""

    c: str
    triton: str


WORDS = {
    "AND(a, b)": Word("((a) && (b))", "(a != 0) & (b != 0)"),
    "BFLOAT16_OF(a)": Word("from_bfloat16((uint16_t)(a))", "from_bfloat16(a.to(tl.uint16, bitcast=True))"),
    "DIVIDE(a, b)": Word("((a) / (b))", "divide(a, b)"),
    "FLOAT8_OF(a)": Word("from_float8(a)", "from_float8(a)"),
    "FLOAT_OF(a)": Word("float_of(a)", "a.to(tl.float32, bitcast=True)"),
    "INT16_OF(a)": Word("((int16_t)to_bfloat16(a))", "to_bfloat16(a).to(tl.int16, bitcast=True)"),
    "INT32_OF(a)": Word("int32_of(a)", "a.to(tl.int32, bitcast=True)"),
    # NaN wins, as in ATen.
    "MAXIMUM(a, b)": Word("((a) > (b) || (a) != (a) ? (a) : (b))", "tl.where((a > b) | (a != a), a, b)"),
    "MINIMUM(a, b)": Word("((a) < (b) || (a) != (a) ? (a) : (b))", "tl.where((a < b) | (a != a), a, b)"),
    "NOT(a)": Word("(!(a))", "a == 0"),
    "OR(a, b)": Word("((a) || (b))", "(a != 0) | (b != 0)"),
    "QUOTIENT(a, b)": Word("((a) / (b))", "a // b"),
    "RECIPROCAL(a)": Word("(1 / (a))", "divide(tl.full((), 1.0, a.dtype), a)"),
    "ROUND_BFLOAT16(a)": Word("from_bfloat16(to_bfloat16(a))", "from_bfloat16(to_bfloat16(a))"),
    "ROUND_FLOAT16(a)": Word("((float)(_Float16)(a))", "a.to(tl.float16).to(tl.float32)"),
    "SELECT(condition, a, b)": Word("((condition) ? (a) : (b))", "tl.where(condition != 0, a, b)"),
    "SIGN(a)": Word("(((a) > 0) - ((a) < 0))", "(a > 0).to(a.dtype) - (a < 0).to(a.dtype)"),
    "UINT8_OF(a)": Word("to_float8(a)", "to_float8(a.to(tl.float32))"),
}
"""By how they stand in expressions, with their operands."""

_CALLS = [re.findall(r"([a-z]\w*)\{s\}\(", x) for one in OPERATORS.values() for x in one[:3] if isinstance(x, str)]
FUNCTIONS = sorted({"pow"}.union(*_CALLS) - {"fabs", "sqrt"})
"""Functions of `math.h` that Triton takes from CUDA's library; the others are in its prelude."""


def template(op: str, args: Sequence[Any], compute: torch.dtype) -> str | None:
    """The expression for an operator, or `None` if there is none for these arguments and this dtype.

    Args:
        op: Name without namespace and overload, such as `add`.
        args: The arguments; Python numbers and `None` as they are, and anything else for a tensor.
        compute: The dtype that the operator computes in.
    """
    if compute not in DTYPES or op not in OPERATORS:
        return None
    operator = OPERATORS[op]
    expression = operator.floating if compute.is_floating_point else operator.whole
    if compute == torch.bool and operator.truth is not None:
        expression = operator.truth
    return expression(args, compute) if callable(expression) else expression


def bit_cast(dtype: torch.dtype, source: torch.dtype) -> str | None:
    """The operator that takes the bits of one dtype for another; `None` if there is none."""
    name = "_of_".join([str(dtype).removeprefix("torch."), str(source).removeprefix("torch.")])
    return f"as_{name}" if f"as_{name}" in _BIT_CASTS else None


def settled(op: str, args: Sequence[Any]) -> str:
    """The operator that is meant when Python numbers are as these."""
    if op == "lerp" and isinstance(args[2], int | float):
        return "lerp_near" if abs(args[2]) < 0.5 else "lerp_far"
    return op


def is_free(op: str, args: Sequence[Any], position: int, compute: torch.dtype, *, whole: bool = False) -> bool:
    """Whether an argument is a number that decides nothing: the expression is the same with any other.

    Args:
        op: The operator.
        args: Its arguments.
        position: Which of them.
        compute: What it computes in.
        whole: Whether whole numbers may be free too.
    """
    value = args[position]
    if isinstance(value, float):
        may_be = compute.is_floating_point
    else:
        counts = compute.is_floating_point or compute == torch.int64
        may_be = whole and type(value) is int and counts and abs(value) < 2**63
    if not may_be:
        return False
    others = [*args[:position], ..., *args[position + 1 :]]
    return template(op, args, compute) == template(op, others, compute)


def rounds_first(op: str, position: int, compute: torch.dtype) -> bool:
    """Whether ATen rounds an operand to the low precision of the others before it computes."""
    return compute in LOW_PRECISION and position not in OPERATORS[op].wide


def as_operand(value: float, op: str, position: int, compute: torch.dtype) -> float:
    """A Python number as an operator takes it."""
    return torch.tensor(value, dtype=compute).item() if rounds_first(op, position, compute) else value


def judges(op: str) -> bool:
    """Whether an operator computes in the dtype of its operands, whatever that of the result."""
    return op in OPERATORS and OPERATORS[op].judges


def rounded(dtype: torch.dtype, value: str) -> str:
    """A value as it would come back from memory: eager rounds every intermediate of low precision."""
    if dtype not in LOW_PRECISION:
        return value
    return f"ROUND_{'BFLOAT16' if dtype == torch.bfloat16 else 'FLOAT16'}({value})"
