"""Tensors in few bits: codes, and a scale for each block."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import tree
from ._checks import check_choice, check_steps
from ._codes import FORMATS, Format
from ._codes_in_shards import Kind, read, write
from ._torch import is_dtensor
from ._typing import State, Tree
from .tree._blocks import in_blocks, largest_of_blocks, packed, unpacked


class Quantized(NamedTuple):
    """A tensor in few bits. It says itself how it is to be read, so that `dequantize` needs nothing else."""

    codes: Tensor  # one for each element, in the shape of the tensor; of 4 bits two in a byte, along the last axis
    scale: Tensor  # (blocks,) float32, float64 for that: the largest magnitude of each block; (0,) for bfloat16
    like: Tensor  # (0, format, sign, block_size, *shape), in the dtype of the tensor: without elements


def quantize(x: Tensor, format: str = "companded8", *, block_size: int | None = None, signed: bool = True) -> Quantized:
    """Write a tensor in few bits.

    Blocks are runs of `block_size` elements in the order of rows, across their ends; the last may be short. A block of
    zeros stays zeros; one that holds a NaN or an infinity reads back as NaN or infinite, so that it shows.

    Maths:
        scale = max |x| of each block
        companded8: s = x / scale;  signed round(127 * 2 s / (1 + |s|)), else round(255 sqrt(s))
        dynamic8, 4bit: the nearest number of a table to x / scale, the lower of two as near
        fp8: x / (scale / 448) in float8_e4m3fn;  bfloat16: x in bfloat16, without blocks

    Args:
        x: A tensor of floats.
        format: `"companded8"`, `"dynamic8"` (the tables of bitsandbytes), `"4bit"` (those of torchao: dynamic if
            signed, else linear without 0), `"fp8"` or `"bfloat16"`.
        block_size: Elements with one scale, >= 1; even for 4 bits. `None` means 64 (companded8), 256 (dynamic8, fp8)
            or 128 (4bit).
        signed: Whether there are negative numbers; without, all codes are for positive ones, and in all formats but
            `"dynamic8"` none of these becomes 0: a second moment that did would divide the next step by nothing.

    Shapes:
        result: see `Quantized`. companded8 takes 1.063 bytes an element, dynamic8 and fp8 1.016, 4bit 0.531.

    Raises:
        TypeError: if `x` is no tensor of floats, or `block_size` no whole number.
        ValueError: if there is no such format, or `block_size` is out of range.

    Differs from: FlashOptim, whose blocks are of 32 and whose scales are float16, which loses blocks below 3e-8;
        torchao, which keeps what is no multiple of a block as it is, and has no scale below 1e-12; both, by whose
        8 bits small second moments become 0, where their root is some five-hundredth of the largest in its block.

    Source: Dettmers et al., 2022, arXiv:2110.02861; Li et al., 2023, arXiv:2309.01507 (4 bits); FlashOptim, 2026,
        arXiv:2602.23349 (companding).

    Example:
        >>> import torch, optimfn as of
        >>> of.dequantize(of.quantize(torch.tensor([1.0, -0.5, 0.01])))
        tensor([ 1.0000, -0.5030,  0.0120])
    """
    own = check_format(format, block_size)
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        raise TypeError(f"quantize wants a tensor of floats, got {getattr(x, 'dtype', x)!r}")
    return written([(x, Kind(own, block_size or own.block_size, signed))])[0]


def written(rows: Sequence[tuple[Tensor, Kind]]) -> list[Quantized]:
    """`quantize` for many tensors, each with how it is written; those in shards share their collectives."""
    cut = [i for i, (x, kind) in enumerate(rows) if is_dtensor(x) and kind.format.block_size > 1]
    if not cut:
        return [_written(*row) for row in rows]
    in_shards = write([rows[i] for i in cut], [scale_dtype(rows[i][0].dtype) for i in cut])
    found = dict(zip(cut, in_shards, strict=True))
    return [Quantized(*found[i]) if i in found else _written(*row) for i, row in enumerate(rows)]


def _written(x: Tensor, kind: Kind) -> Quantized:
    own, size, signed = kind
    like = torch.empty((0, own.number, 2 - signed, size, *x.shape), dtype=x.dtype, device=x.device)
    if own.block_size == 1:
        return Quantized(x.to(torch.bfloat16), x.new_empty(0, dtype=scale_dtype(x.dtype)), like)
    wide = x.to(scale_dtype(x.dtype))
    scale = own.scale_of(largest_of_blocks(wide, size), signed)
    codes = in_blocks(lambda x, unit: own.encode(x, unit, signed), wide, own.unit_of(scale, signed), size)
    return Quantized(packed(codes, size) if own.packed else codes, scale, like)


def dequantize(q: Quantized) -> Tensor:
    """Read a tensor that `quantize` wrote, in the dtype that it had.

    Args:
        q: What `quantize` returned.

    Raises:
        TypeError: if it is something else.

    Example:
        >>> import torch, optimfn as of
        >>> of.dequantize(of.quantize(torch.tensor([1.0, 0.25]), "4bit", signed=False))
        tensor([1.0000, 0.2500])
    """
    if not isinstance(q, Quantized):
        raise TypeError(f"dequantize wants what quantize returned, got {type(q).__name__}")
    own, size, signed, shape = form(q)
    if q.codes.dtype == torch.bfloat16:
        return q.codes.to(q.like.dtype)
    if is_dtensor(q.codes):
        made: Tensor = read(*q, Kind(own, size, signed))
        return made
    codes = unpacked(q.codes, shape, size) if own.packed else q.codes
    return in_blocks(lambda codes, scale: own.decode(codes, scale, signed), codes, q.scale, size).to(q.like.dtype)


def check_format(format: str, block_size: int | None) -> Format:
    """The format of a name."""
    check_choice("format", format, tuple(FORMATS))
    own = FORMATS[format]
    if block_size is not None:
        check_steps(block_size=block_size, at_least=1)
        if own.packed and block_size % 2:
            raise ValueError(f"block_size must be even for two codes in a byte, got {block_size}")
    return own


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """What codes are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def form(q: Quantized) -> tuple[Format, int, bool, tuple[int, ...]]:
    """The format, the size of blocks, whether it is signed, and the shape."""
    return *kind_of(q.like.shape), tuple(q.like.shape[4:])


def kind_of(shape: Sequence[int]) -> Kind:
    """What `Quantized.like` says by its shape of how a tensor is written."""
    _, number, sign, size, *_ = shape
    return Kind(next(one for one in FORMATS.values() if one.number == number), size, sign == 1)


def requantized(rows: Sequence[tuple[Tensor, Quantized]]) -> list[Quantized]:
    """Tensors, each in the format of another."""
    return written([(x.to(q.like.dtype), Kind(*form(q)[:3])) for x, q in rows])


def dequantize_state(state: State) -> State:
    """A state in full precision: every `Quantized` in it as the tensor that it stands for.

    What comes out is a state of the rule without `quantize_state`.

    Args:
        state: Any tree.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.quantize_state(of.adam(1e-3), min_size=1)
        >>> of.dequantize_state(tx.init(torch.ones(2)))[0].mu
        tensor([0., 0.])
    """

    def change(_: object, node: object) -> tuple[bool, object]:
        return (True, dequantize(node)) if isinstance(node, Quantized) else (False, None)

    return tree.map_nodes(change, state)


def fitted(flat: dict[str, Tensor], wanted: Tree) -> dict[str, Tensor]:
    """The entries of a flat dict in the formats of another: quantised where that is, and in full precision where not.

    Args:
        flat: A flat dict of a state.
        wanted: Its keys and, at each, the tensor that is to be filled.
    """
    found = dict(flat)
    for path in {key[: -len(".like")] for key in flat if key.endswith(".like")}:
        names = [f"{path}.{field}" for field in Quantized._fields]
        same = all(name in wanted and wanted[name].shape == flat[name].shape for name in names if name in flat)
        if not same and all(name in flat for name in names) and (path in wanted or names[-1] in wanted):
            found[path] = dequantize(Quantized(*[found.pop(name) for name in names]))
    for path in {key[: -len(".like")] for key in wanted if key.endswith(".like")}:
        if path in found and path not in wanted:
            like = wanted[f"{path}.like"]
            (own,) = requantized(
                [(found.pop(path), Quantized(*[wanted[f"{path}.{name}"] for name in Quantized._fields]))]
            )
            if own.like.shape != like.shape:
                raise ValueError(
                    f"{path} has shape {tuple(own.like.shape[4:])}, the state wants {tuple(like.shape[4:])}"
                )
            found |= {f"{path}.{name}": x for name, x in zip(Quantized._fields, own, strict=True)}
    return found
