"""What every generated Triton module begins with: the words of the operator table, and `combine`."""

CHUNK = 8192  # elements of one program
BLOCK = 1024  # elements that it works on at a time
LANES = 128  # 0-dim values that are computed at a time
COLUMNS = 64  # results of one program that reduces over rows

HEADER = f'''
import triton
import triton.language as tl
from triton.language.extra.libdevice import (
    atan2, ceil, cos, erf, exp, exp2, expm1, floor, fmod, log, log1p, log2, pow, rint, sin, tanh, trunc
)

CHUNK = tl.constexpr({CHUNK})
BLOCK = tl.constexpr({BLOCK})
LANES = tl.constexpr({LANES})
COLUMNS = tl.constexpr({COLUMNS})
TILE = tl.constexpr({BLOCK // COLUMNS})
HALF = tl.constexpr(0.5)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def FMA(a, b, c):
    return tl.fma(a, b, c)


@triton.jit
def DIVIDE(a, b):  # tl's own division of float32 is not exactly rounded
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def RECIPROCAL(a):
    return DIVIDE(tl.full((), 1.0, a.dtype), a)


@triton.jit
def QUOTIENT(a, b):
    return a // b


@triton.jit
def sqrt(a):
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def fabs(a):
    return tl.abs(a)


@triton.jit
def modulo(a, b):
    rest = fmod(a, b)
    return tl.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)


@triton.jit
def MAXIMUM(a, b):  # NaN wins, as in ATen
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def MINIMUM(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def SIGN(a):
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


@triton.jit
def SELECT(condition, a, b):
    return tl.where(condition != 0, a, b)


@triton.jit
def NOT(a):
    return a == 0


@triton.jit
def AND(a, b):
    return (a != 0) & (b != 0)


@triton.jit
def OR(a, b):
    return (a != 0) | (b != 0)


@triton.jit
def TO_BFLOAT16(a):
    bits = a.to(tl.uint32, bitcast=True)
    bits = tl.where(a != a, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
    return (bits >> 16).to(tl.uint16)


@triton.jit
def FROM_BFLOAT16(bits):
    return (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def ROUND_BFLOAT16(a):
    return FROM_BFLOAT16(TO_BFLOAT16(a))


@triton.jit
def ROUND_FLOAT16(a):
    return a.to(tl.float16).to(tl.float32)


@triton.jit
def ALL_MAXIMUM(lanes):
    greatest = tl.max(tl.where(lanes != lanes, -INFINITY, lanes), 0)
    return tl.where(tl.sum((lanes != lanes).to(tl.int32), 0) > 0, INFINITY - INFINITY, greatest)


@triton.jit
def ALL_MINIMUM(lanes):
    return -ALL_MAXIMUM(-lanes)


@triton.jit(do_not_specialize=["first"])
def combine(buffers, values, whole, partials, combines, first):
    """A 0-dim value made of the partial results of a leaf."""
    row = combines + 5 * (first + tl.program_id(0))
    parts = partials + tl.load(row + 1)
    count = tl.load(row + 2)
    how = tl.load(row + 3)
    kind = tl.load(row + 4)
    total = tl.zeros((BLOCK,), tl.float64)
    greatest = tl.full((BLOCK,), -INFINITY, tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        part = tl.load(parts + i, mask=i < count, other=0.0)
        total += part
        greatest = MAXIMUM(tl.where(i < count, tl.where(how == 2, -part, part), -INFINITY), greatest)
    extreme = ALL_MAXIMUM(greatest)
    result = tl.where(how == 0, tl.sum(total, 0), tl.where(how == 2, -extreme, extreme))
    slot = tl.load(row)
    if kind == 2:  # of nothing, any is false and all is true
        tl.store(whole + slot, tl.where(count == 0, how == 2, result != 0).to(tl.int64))
    else:
        tl.store(values + slot, tl.where(kind == 1, result.to(tl.float32).to(tl.float64), result))
'''.lstrip()
