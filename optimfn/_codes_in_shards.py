"""Codes and scales of leaves that lie in shards: those that one process has of the whole.

Codes lie where their numbers lie. Where shards end between blocks, everything is computed on shards alone, and the
scales lie with their blocks. Where a block runs from one shard into another, the largest magnitude of it is found by
one collective for all leaves, and every process keeps all scales of the leaf. Two codes that share a byte across shards
make their leaf's codes whole on every process; that takes 4 bits and an odd row or column.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._codes import Format
from ._torch import local_shard, replicate, shard_like, wrapped_like
from .tree._blocks import in_blocks, largest_of_blocks, packed, packed_shape, unpacked
from .tree._shards import all_reduce, groups_of, index_in, is_silent


class Kind(NamedTuple):
    """How a leaf is written."""

    format: Format
    size: int  # of blocks
    signed: bool


class Cut(NamedTuple):
    """How runs of elements of a leaf, such as blocks, lie in its shards."""

    number: int  # of runs in the whole leaf
    placements: tuple[Any, ...] | None  # where a vector of all runs lies if no shard ends in one
    start: int | None  # the first element that is here, if those here are one stretch of the leaf


def cut_of(x: Any, size: int) -> Cut:
    """How runs of some size lie; the same on all processes but for the start.

    Args:
        x: A leaf in shards.
        size: Elements of a run.
    """
    sizes, total = x.device_mesh.mesh.shape, math.prod(x.shape)
    count, axes = -(-total // size), _cut_axes(x)
    if not axes:
        return Cut(count, (replicate(),) * len(sizes), 0)
    if any(x.placements[i].dim != 0 or type(x.placements[i]).__name__ != "Shard" for i in axes) or not total:
        return Cut(count, None, None)
    ways, row = math.prod(sizes[i] for i in axes), total // x.shape[0]
    rows = -(-x.shape[0] // ways)
    even = x.shape[0] % ways == 0
    if len(axes) > 1 and not even:
        return Cut(count, None, None)
    at = 0
    for i in axes:
        at = at * sizes[i] + x.device_mesh.get_local_rank(i)
    # The last shard of all may end in a short run; a vector of runs is cut where `torch.chunk` cuts it.
    apart = rows * row % size == 0 and -(-count // ways) == rows * row // size and (even or len(axes) == 1)
    placed = tuple([x.placements[i] if i in axes else replicate() for i in range(len(sizes))])
    return Cut(count, placed if apart else None, min(at * rows * row, total))


def write(rows: Sequence[tuple[Any, Kind]], dtypes: Sequence[torch.dtype]) -> list[tuple[Any, Any, Any]]:
    """The codes, the scales, and what says how they are to be read, of leaves in shards.

    Args:
        rows: Each leaf, and how it is written.
        dtypes: What each is computed in.
    """
    own = [local_shard(x).to(dtype) for (x, _), dtype in zip(rows, dtypes, strict=True)]
    cuts = [cut_of(x, kind.size) for x, kind in rows]
    found = [
        largest_of_blocks(part, kind.size) if cut.placements else _largest(x, part, kind.size, cut)
        for (x, kind), part, cut in zip(rows, own, cuts, strict=True)
    ]
    across = [i for i, cut in enumerate(cuts) if not cut.placements]
    whole = all_reduce([found[i] for i in across], "max", [groups_of(rows[i][0]) for i in across])
    for i, largest in zip(across, whole, strict=True):
        found[i] = largest
    written = []
    for (x, kind), part, cut, largest in zip(rows, own, cuts, found, strict=True):
        scale = kind.format.scale_of(largest, kind.signed)
        unit = kind.format.unit_of(scale, kind.signed)
        codes = _on_blocks(partial(_encode, kind), x, part, unit, kind.size)
        placed = cut.placements or (replicate(),) * x.device_mesh.ndim
        written.append((codes, wrapped_like(scale, x, (cut.number,), placed)))
    packs = [i for i, (_, kind) in enumerate(rows) if kind.format.packed]
    in_bytes = dict(zip(packs, _in_bytes([(*rows[i], written[i][0]) for i in packs]), strict=True))
    return [
        (in_bytes[i] if i in in_bytes else wrapped_like(codes, x, x.shape, x.placements), scale, _like(x, kind))
        for i, ((x, kind), (codes, scale)) in enumerate(zip(rows, written, strict=True))
    ]


def _encode(kind: Kind, x: Tensor, unit: Tensor) -> Tensor:
    return kind.format.encode(x, unit, kind.signed)


def read(codes: Any, scale: Any, like: Any, kind: Kind) -> Any:
    """The numbers that codes stand for, as a leaf in shards."""
    x, own = _leaf(like), local_shard(codes)
    if kind.format.packed:
        inside = _pairs(x) is not None
        own = unpacked(own, tuple(local_shard(x).shape if inside else x.shape), kind.size)
        own = own if inside else own.reshape(-1)[index_in(x)]
    numbers = _on_blocks(
        lambda codes, scale: kind.format.decode(codes, scale, kind.signed), x, own, local_shard(scale), kind.size
    )
    return wrapped_like(numbers.to(like.dtype), like, x.shape, x.placements)


def _like(x: Any, kind: Kind) -> Any:
    """Nothing, in the shape and the place that say how codes are read."""
    shape = (0, kind.format.number, 2 - kind.signed, kind.size)
    here = torch.empty((*shape, *local_shard(x).shape), dtype=x.dtype, device=x.device)
    placed = [shard_like(p, p.dim + 4) if p.is_shard() else p for p in x.placements]
    return wrapped_like(here, x, (*shape, *x.shape), placed)


def _leaf(like: Any) -> Any:
    """A leaf in the place that `_like` says, without values or memory."""
    here = local_shard(like).new_zeros(()).expand(local_shard(like).shape[4:])
    placed = [shard_like(p, p.dim - 4) if p.is_shard() else p for p in like.placements]
    return wrapped_like(here, like, like.shape[4:], placed)


def _cut_axes(x: Any) -> list[int]:
    """The axes of the mesh over which a leaf is cut in fact."""
    return [i for i, p in enumerate(x.placements) if p.is_shard() and x.device_mesh.size(i) > 1]


# Blocks


def _on_blocks(f: Callable[[Tensor, Tensor], Tensor], x: Any, part: Tensor, values: Tensor, size: int) -> Tensor:
    """Apply a function to the elements that are here, each with the value of its block."""
    cut = cut_of(x, size)
    if cut.placements:
        return in_blocks(f, part, values, size)
    if cut.start is None:
        return f(part, values[index_in(x) // size])
    flat, first, blocks = _stretch(part, cut.start, size)
    made = in_blocks(f, flat, values[first : first + blocks], size)
    return made[flat.numel() - part.numel() :].reshape(part.shape)


def _largest(x: Any, part: Tensor, size: int, cut: Cut) -> Tensor:
    """The largest magnitudes of all blocks of a leaf, as far as this process knows it: of others 0.

    Where nothing may be said, as for a fresh state, others are taken to be like the elements here.
    """
    rest = part.reshape(-1)[0].abs() if is_silent() and part.numel() else part.new_zeros(())
    found = rest.expand(cut.number).clone()
    if cut.start is not None:
        flat, first, blocks = _stretch(part, cut.start, size)
        found[first : first + blocks] = largest_of_blocks(flat, size)
        return found
    block = (index_in(x) // size).reshape(-1)
    return found.scatter_reduce(0, block, part.reshape(-1).abs(), "amax", include_self=False)


def _stretch(part: Tensor, start: int, size: int) -> tuple[Tensor, int, int]:
    """A stretch of a leaf from the beginning of its first block, the number of that, and how many blocks there are."""
    before = start % size if part.numel() else 0
    flat = part.reshape(-1)
    flat = torch.cat([flat.new_zeros(before), flat]) if before else flat
    return flat, start // size, -(-flat.numel() // size)


# Two codes in a byte


def _pairs(x: Any) -> tuple[Any, ...] | None:
    """Where bytes of two codes lie if no two codes of one lie in different shards."""
    if not x.ndim or x.shape[-1] % 2:
        return cut_of(x, 2).placements
    last = [i for i in _cut_axes(x) if x.placements[i].dim == x.ndim - 1]
    ways = math.prod(x.device_mesh.size(i) for i in last)
    if len(last) == 1:
        inside = type(x.placements[last[0]]).__name__ == "Shard" and -(-x.shape[-1] // ways) % 2 == 0
    else:
        inside = not last or x.shape[-1] % (2 * ways) == 0
    return tuple(x.placements) if inside else None


def _in_bytes(rows: Sequence[tuple[Any, Kind, Tensor]]) -> list[Any]:
    """Codes of leaves as bytes of two."""
    shapes = [packed_shape(x.shape) for x, _, _ in rows]
    placed = [_pairs(x) for x, _, _ in rows]
    across = [i for i, where in enumerate(placed) if where is None]
    parts = [_own_bytes(*rows[i]) for i in across]
    wholes = dict(zip(across, all_reduce(parts, "sum", [groups_of(rows[i][0]) for i in across]), strict=True))
    found = []
    for i, ((x, kind, codes), shape, where) in enumerate(zip(rows, shapes, placed, strict=True)):
        if where is None:
            everywhere = [replicate()] * x.device_mesh.ndim
            found.append(wrapped_like(wholes[i].to(torch.uint8).reshape(shape), x, shape, everywhere))
        else:
            own = packed(codes, kind.size)
            found.append(wrapped_like(own.reshape(-1) if len(shape) == 1 else own, x, shape, where))
    return found


def _own_bytes(x: Any, kind: Kind, codes: Tensor) -> Tensor:
    """What the codes that are here are worth in the bytes of the whole leaf."""
    index, flat = index_in(x).reshape(-1), codes.reshape(-1).long()
    worth = torch.where(index % 2 == 0, 16, 1)
    found = flat.new_zeros(-(-math.prod(x.shape) // 2))
    if is_silent():  # what is elsewhere is taken to be like what is here
        of_zero = kind.format.unit_of(kind.format.scale_of(torch.zeros(1), kind.signed), kind.signed)
        like = flat[:1] if flat.numel() else kind.format.encode(torch.zeros(1), of_zero, kind.signed).long()
        everywhere = torch.arange(math.prod(x.shape), device=x.device)
        rest = everywhere[~torch.isin(everywhere, index)]
        found.index_add_(0, rest // 2, torch.where(rest % 2 == 0, 16, 1) * like.to(x.device))
    return found.index_add_(0, index // 2, flat * worth)
