"""The codes of 8 and 4 bits, and what goes from numbers of at most 1 to codes and back."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """How blocks of numbers become codes, with a scale for each block, which is made of its largest magnitude.

    `encode(x, unit, signed)` and `decode(codes, scale, signed)` work element by element.
    """

    number: int  # by which a quantised tensor knows its format
    block_size: int
    encode: Callable[[Tensor, Tensor, bool], Tensor]
    decode: Callable[[Tensor, Tensor, bool], Tensor]
    scale_of: Callable[[Tensor, bool], Tensor]  # of the largest magnitude of each block
    unit_of: Callable[[Tensor, bool], Tensor]  # of each scale: what the codes of its block are measured with
    dtype: Callable[[bool], torch.dtype]  # that of codes
    packed: bool = False  # two codes in a byte


def dynamic_table(signed: bool, exponent_bits: int = 7, bits: int = 8) -> list[float]:
    """The dynamic map of Dettmers, 2016: decades, each cut into twice as many cells as the one below.

    In the arithmetic of bitsandbytes, so that the numbers are equal bit for bit.
    """
    found = [0.0, 1.0]
    for i in range(exponent_bits):
        cells = 2 ** (i + (bits - 1) - exponent_bits + (not signed))
        ends = torch.linspace(0.1, 1, cells + 1, dtype=torch.float32, device="cpu")
        values = (10 ** (i - exponent_bits + 1) * ((ends[:-1] + ends[1:]) / 2)).tolist()
        found += values + ([-x for x in values] if signed else [])
    return sorted(found)


class _Decade(NamedTuple):
    """The numbers of a dynamic map between two powers of ten, and the line on which the place of each is."""

    begins: float
    slope: float
    height: float


def _decades(bits: int, signed: bool) -> list[_Decade]:
    """The decades of a dynamic map, the lowest first.

    Place j = 2^e + k is that of the middle of cell k of decade e, which has 2^e cells. So on the line of a decade what
    is between two whole numbers is a cell. A number goes to the nearest middle, though, and the last one of the decade
    below is nearer than the first of this one up to 0.2 of its cell; the lines are made so that it is 0.2 for the first
    decade as well, below which there is only 0.
    """
    first, last = (0, bits - 2) if signed else (1, bits - 1)
    found = []
    for e in range(first, last + 1):
        unit = 10.0 ** (e - last)
        begins, cell = 0.1 * unit, 0.9 * unit / 2**e
        below = 0.0 if e == first else begins - 0.1 * cell
        middle, edge = (below + begins + cell / 2) / 2, begins + cell
        slope = 0.8 / (edge - middle)
        found.append(_Decade(begins, slope, 2**e + 1 - slope * edge))
    return found


_DECADES = {(bits, signed): _decades(bits, signed) for bits, signed in ((8, True), (8, False), (4, True))}


def _to_dynamic(bits: int, x: Tensor, over: Tensor, signed: bool) -> Tensor:
    """The place of the nearest number of the dynamic map; in arithmetic, since tables are slow to search."""
    s = x * over
    s = torch.where(s == s, s, 0.0 if signed else 1.0)  # every processor makes something else of a NaN
    y, (lowest, *others) = s.abs(), _DECADES[bits, signed]
    slope, height = torch.full_like(y, lowest.slope), torch.full_like(y, lowest.height)
    for one in others:
        slope = torch.where(y >= one.begins, one.slope, slope)
        height = torch.where(y >= one.begins, one.height, height)
    place = torch.clamp(y * slope + height, max=2.0 ** (bits - signed))
    is_first = (torch.floor(place).to(torch.float32).view(torch.int32) & 0x7FFFFF) == 0  # a power of two
    shift = torch.where(place >= 2.0 ** (bits - signed) - 0.25, -0.25, torch.where(is_first, 0.2, 0.0))
    place = torch.floor(place - shift)
    if not signed:
        return (place - 1.0).to(torch.uint8)
    zero = 2.0 ** (bits - 1) - 1.0
    return torch.where(s < 0.0, zero - torch.clamp(place, max=zero), zero + place).to(torch.uint8)


def _from_dynamic(bits: int, codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The numbers of the dynamic map: that of place j = 2^e + k is 5^e (18 k + 2^(e + 1) + 9) over a power of ten."""
    last = bits - 1 - signed
    # Twice the place, so that e is in the lower bits of the exponent of its magnitude.
    place = 2.0 * codes.to(torch.float32)
    place = place - (2.0**bits - 2.0) if signed else place + 2.0
    j = place.abs()
    exponent = j.view(torch.int32)
    cells = (exponent & 0x7F800000).view(torch.float32)  # the power of two below
    x = 9.0 * j - 8.0 * cells + 9.0
    for bit in range((last + 1).bit_length()):
        x = torch.where((exponent & 1 << 23 + bit) == 0, x, x * 5.0 ** (1 << bit))
    x = torch.clamp(x * (0.05 / 10.0**last), max=1.0)
    x = torch.where(j < (2.0 if signed else 4.0), 0.0, x)
    return (torch.where(place < 0.0, -x, x) if signed else x).to(scale.dtype) * scale


def _to_four_bits(x: Tensor, over: Tensor, signed: bool) -> Tensor:
    if signed:
        return _to_dynamic(4, x, over, signed)
    s = x * over
    return (torch.clamp(torch.ceil(16.0 * torch.where(s == s, s, 0.0) - 0.5), min=1.0) - 1.0).to(torch.uint8)


_FOUR_BITS = [x for x in dynamic_table(True, 3, 4) if x > 0.0]


def _from_four_bits(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """Without sign those of i / 16 from 1 on: there is no 0, since the root of what it stands for divides."""
    if not signed:
        return (codes.to(scale.dtype) + 1.0) * (1 / 16) * scale
    place = codes.to(torch.float32) - 7.0
    j, x = place.abs(), torch.zeros_like(place)
    for i, value in enumerate(_FOUR_BITS, start=1):
        x = torch.where(j >= i, value, x)
    return torch.where(place < 0.0, -x, x).to(scale.dtype) * scale


def _over(scale: Tensor) -> Tensor:
    """One over a scale: 0 where that is 0, as in a block of zeros, and NaN where it is not finite.

    So an infinite square makes its whole block infinite, and the steps there 0, as it does in full precision.
    """
    over = torch.clamp(torch.where(scale == 0, 0.0, torch.reciprocal(scale)), max=torch.finfo(scale.dtype).max)
    return torch.where(torch.isfinite(scale), over, torch.nan)


def _one_over(scale: Tensor, signed: bool) -> Tensor:
    return _over(scale)


def _compand_unit(scale: Tensor, signed: bool) -> Tensor:
    return torch.clamp(scale, min=torch.finfo(scale.dtype).tiny) if signed else 255.0 * _over(scale)


def _above_zero(x: Tensor, y: Tensor, least: float) -> Tensor:
    """What is written of positive numbers: no 0, by whose root a step would be divided, and so become huge."""
    return torch.where(x > 0.0, torch.clamp(y, min=least), y)


def _compand(x: Tensor, unit: Tensor, signed: bool) -> Tensor:
    """FlashOptim's: the soft sign 2 s / (1 + |s|) of s = x / scale in 127 steps each way, or the root in 255."""
    if signed:
        y = 254.0 * x / (x.abs() + unit)
        # Every processor makes something else of a NaN.
        return torch.floor(torch.where(y == y, y, 0.0) + 0.5).to(torch.int8)
    steps = _above_zero(x, torch.sqrt(x) * unit, 1.0)
    return torch.floor(torch.where(steps <= 255.0, steps, 255.0) + 0.5).to(torch.uint8)


def _expand(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    c = codes.to(scale.dtype)
    if signed:
        return c / (254.0 - c.abs()) * scale
    root = c * (1 / 255.0) * scale
    return root * root


_FP8_MAX, _FP8_LEAST = 448.0, 2.0**-9


def _to_fp8(x: Tensor, over: Tensor, signed: bool) -> Tensor:
    y = x * over if signed else _above_zero(x, x * over, _FP8_LEAST)
    return torch.where(y == y, y, 0.0 if signed else _FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)  # as above


def _from_fp8(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    return codes.view(torch.float8_e4m3fn).to(scale.dtype) * scale


def _as_it_is(largest: Tensor, signed: bool) -> Tensor:
    return largest


def _bytes(signed: bool) -> torch.dtype:
    return torch.uint8


FORMATS = {
    "companded8": Format(
        1,
        64,
        _compand,
        _expand,
        lambda largest, signed: largest if signed else torch.sqrt(largest),
        _compand_unit,
        lambda signed: torch.int8 if signed else torch.uint8,
    ),
    "dynamic8": Format(
        2,
        256,
        functools.partial(_to_dynamic, 8),
        functools.partial(_from_dynamic, 8),
        _as_it_is,
        _one_over,
        _bytes,
    ),
    "4bit": Format(
        3,
        128,
        _to_four_bits,
        _from_four_bits,
        _as_it_is,
        _one_over,
        _bytes,
        packed=True,
    ),
    "fp8": Format(4, 256, _to_fp8, _from_fp8, lambda largest, signed: largest / _FP8_MAX, _one_over, _bytes),
    "bfloat16": Format(
        5,
        1,
        lambda x, scale, signed: x.to(torch.bfloat16),
        lambda codes, scale, signed: codes.float(),
        _as_it_is,
        _as_it_is,
        lambda signed: torch.bfloat16,
    ),
}
