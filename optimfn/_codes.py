"""The code tables of 8 and 4 bits, and what goes from numbers of at most 1 to codes and back."""

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


_TABLES = {
    ("dynamic8", True): dynamic_table(True),
    ("dynamic8", False): dynamic_table(False),
    ("4bit", True): dynamic_table(True, 3, 4),
    ("4bit", False): [i / 16 for i in range(1, 17)],  # without 0, since the root of what it stands for divides
}


@functools.cache
def _kept(name: str, signed: bool, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # In float32 first, as they are published.
    table = torch.tensor(_TABLES[name, signed], dtype=torch.float32, device="cpu")
    middles = (table[1:] + table[:-1]) / 2
    return table.to(device, dtype), middles.to(device, dtype)


def _prepare() -> None:
    for name, signed in _TABLES:
        for dtype in (torch.float32, torch.float64):
            _ready[name, signed, dtype] = _kept(name, signed, torch.device("cpu"), dtype)


_ready: dict[tuple[str, bool, torch.dtype], tuple[Tensor, Tensor]] = {}
_prepare()


def _table(name: str, signed: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """The table and the middles between its numbers, where a tensor is; made once for each device."""
    if like.device.type == "cpu":
        return _ready[name, signed, like.dtype]
    if like.device.type == "cuda" and not torch.compiler.is_compiling():
        return _kept(name, signed, like.device, like.dtype)
    table, middles = _ready[name, signed, like.dtype]
    return table.to(like.device), middles.to(like.device)


def _over(scale: Tensor) -> Tensor:
    """One over a scale: 0 where that is 0, as in a block of zeros, and NaN where it is not finite.

    So an infinite square makes its whole block infinite, and the steps there 0, as it does in full precision.
    """
    over = torch.where(scale == 0, 0.0, torch.reciprocal(scale))
    return torch.where(torch.isfinite(scale), over, torch.nan)


def _one_over(scale: Tensor, signed: bool) -> Tensor:
    return _over(scale)


def _nearest(name: str, x: Tensor, over: Tensor, signed: bool) -> Tensor:
    # A number in the middle of two goes to the lower, as in bitsandbytes.
    return torch.bucketize(x * over, _table(name, signed, x)[1], out_int32=True).to(torch.uint8)


def _look_up(name: str, codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    return _table(name, signed, scale)[0][codes.int()] * scale


def _compand_unit(scale: Tensor, signed: bool) -> Tensor:
    return torch.clamp(scale, min=torch.finfo(scale.dtype).tiny) if signed else 255.0 * _over(scale)


def _compand(x: Tensor, unit: Tensor, signed: bool) -> Tensor:
    """FlashOptim's: the soft sign 2 s / (1 + |s|) of s = x / scale in 127 steps each way, or the root in 255."""
    if signed:
        y = 254.0 * x / (x.abs() + unit)
        # Every processor makes something else of a NaN.
        return torch.floor(torch.where(y == y, y, 0.0) + 0.5).to(torch.int8)
    steps = torch.sqrt(x) * unit
    return torch.floor(torch.where(steps <= 255.0, steps, 255.0) + 0.5).to(torch.uint8)


def _expand(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    c = codes.to(scale.dtype)
    if signed:
        return c / (254.0 - c.abs()) * scale
    root = c * (1 / 255.0) * scale
    return root * root


_FP8_MAX = 448.0


def _fp8_unit(scale: Tensor, signed: bool) -> Tensor:
    return torch.where(scale == 0, 1.0, torch.where(torch.isfinite(scale), scale, torch.nan))


def _to_fp8(x: Tensor, unit: Tensor, signed: bool) -> Tensor:
    y = x / unit
    return (y if signed else torch.where(y <= _FP8_MAX, y, _FP8_MAX)).to(torch.float8_e4m3fn).view(torch.uint8)


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
        functools.partial(_nearest, "dynamic8"),
        functools.partial(_look_up, "dynamic8"),
        _as_it_is,
        _one_over,
        _bytes,
    ),
    "4bit": Format(
        3,
        128,
        functools.partial(_nearest, "4bit"),
        functools.partial(_look_up, "4bit"),
        _as_it_is,
        _one_over,
        _bytes,
        packed=True,
    ),
    "fp8": Format(4, 256, _to_fp8, _from_fp8, lambda largest, signed: largest / _FP8_MAX, _fp8_unit, _bytes),
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
