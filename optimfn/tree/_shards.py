"""Leaves that lie in shards on several processes, as DTensors: what is known of all their elements together.

No operator of a DTensor is trusted to say where its result is: a sum of one may lie in parts, which differ between
processes until somebody adds them up, and a condition read from such a part sends the processes different ways. So
what is reduced here is reduced on the shards, and the parts of all leaves go through one collective for each group of
processes. The results are ordinary tensors, with the same bits on every process.

Every process calls the same verbs on the same trees, in the same order.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch import (
    collective,
    is_batched,
    is_dtensor,
    local_shard,
    placed_like,
    replicate,
    shard_like,
    wait_for,
    without_parts,
    wrapped_like,
)
from .._typing import Tree
from ._blocks import index
from ._core import each, leaves, map

_NEUTRAL = {"max": -math.inf, "min": math.inf}
COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "norm": torch.hypot,
    "max": torch.maximum,
    "min": torch.minimum,
    "any": torch.logical_or,
    "all": torch.logical_and,
}
_OPERATION = {"sum": "SUM", "norm": "SUM", "max": "MAX", "min": "MIN", "any": "MAX", "all": "MIN"}


def reduce(f: Callable[..., Tensor], how: str, tree: Tree, *rest: Tree, empty: Any = 0.0) -> Tensor:
    """One number of all elements of all leaves, on all processes: an ordinary 0-dim tensor.

    Args:
        f: What makes a 0-dim tensor of one leaf of each tree, or of a shard of it.
        how: How the results for parts of a leaf, and for leaves, make one: `"sum"`, `"norm"` (the root of the sum of
            squares), `"max"`, `"min"`, `"any"` or `"all"`.
        tree: A tree.
        *rest: Others like it.
        empty: The result for a tree without leaves.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.reduce(torch.sum, "sum", {"a": torch.ones(2), "b": torch.ones(3)})
        tensor(5.)
    """
    parts = leaves(reduce_each(f, how, tree, *rest))
    return functools.reduce(COMBINE[how], together(parts)) if parts else torch.tensor(empty)


def reduce_each(f: Callable[..., Tensor], how: str, tree: Tree, *rest: Tree) -> Tree:
    """One number of all elements of each leaf, on all processes: a tree of ordinary 0-dim tensors.

    All leaves go through one collective for each group of processes. The arguments are those of `reduce`.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.reduce_each(torch.sum, "sum", {"a": torch.ones(2), "b": torch.ones(3)})
        {'a': tensor(2.), 'b': tensor(3.)}
    """
    if not any(is_dtensor(x) for one in (tree, *rest) for x in leaves(one)):
        return map(f, tree, *rest)
    return map_rows(lambda rows: reduced(f, how, rows), tree, *rest)


def map_rows(f: Callable[[list[tuple[Any, ...]]], Sequence[Any]], tree: Tree, *rest: Tree) -> Tree:
    """Apply a function to the rows of arguments of a `map` all at once; it returns what stands for each row."""
    rows: list[tuple[Any, ...]] = []

    def note(*row: Any) -> int:
        rows.append(row)
        return len(rows) - 1

    places = map(note, tree, *rest)
    found = f(rows)
    return map(lambda place: found[place], places)


def reduced(f: Callable[..., Tensor], how: str, rows: Sequence[Sequence[Any]]) -> list[Tensor]:
    """The results of `reduce_each` for rows of leaves."""
    if not any(is_dtensor(x) for row in rows for x in row):
        return each(f, rows)
    parts: list[Tensor] = []
    groups: list[tuple[Any, ...]] = []
    for row in rows:
        shards, own = opened(row)
        if how in _NEUTRAL and not shards[0].numel():  # what is empty has no largest element
            parts.append(torch.full_like(f(*[x.new_zeros((1,) * x.ndim) for x in shards]), _NEUTRAL[how]))
        else:
            parts.append(f(*shards))
        groups.append(own)
    found = all_reduce([x * x.conj() if how == "norm" else x for x in parts], how, groups)
    return [torch.sqrt(x) if how == "norm" else x for x in found]


def together(parts: Sequence[Tensor]) -> list[Tensor]:
    """Scalars of several leaves in one dtype and on one device, ready to be combined."""
    common = functools.reduce(torch.promote_types, (x.dtype for x in parts))
    return [x.to(parts[0].device, common) for x in parts]


# Layouts


def opened(row: Sequence[Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """What leaves that go together have here, and the groups of processes that hold the rest of them."""
    first = next((x for x in row if is_dtensor(x)), None)
    if first is None:
        return [*row], ()
    first = without_parts(first)
    shards = [local(placed_like(x, first)) if isinstance(x, Tensor) else x for x in row]
    return shards, groups_of(first)


def outline(f: Callable[..., Tree], *trees: Tree) -> Tree:
    """What a function returns, for who wants to keep something like it; nothing is communicated for it.

    Of ordinary tensors that is what it returns. Where a leaf is a DTensor, it is zeros in its place.

    Args:
        f: The function.
        *trees: What it is given.
    """
    if not any(is_dtensor(x) for one in trees for x in leaves(one)):
        return f(*trees)
    with silence():
        return map(_zeros_in_place, f(*trees))


def _zeros_in_place(x: Any) -> Tensor:
    if not is_dtensor(x):
        return torch.zeros_like(x)
    if any(p.is_partial() for p in x.placements):  # what is kept in its place is whole
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return torch.zeros_like(x)


class _Talk(threading.local):
    """Whether nothing may be said in this thread, since only shapes are asked for."""

    is_silent = False


_talk = _Talk()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Say nothing in this thread: what is reduced stays what it is here."""
    before, _talk.is_silent = _talk.is_silent, True
    try:
        yield
    finally:
        _talk.is_silent = before


def is_silent() -> bool:
    """Whether nothing may be said in this thread."""
    return _talk.is_silent


def index_in(x: Any) -> Tensor:
    """The number of each element that is here, in the whole leaf."""
    if not is_dtensor(x):
        return index(x)
    total, inner = torch.zeros((), dtype=torch.int64, device=x.device), 1
    for axis in reversed(range(x.ndim)):
        # What is whole everywhere is cut without a collective.
        along = torch.arange(x.shape[axis], device=x.device)
        everywhere = [replicate()] * x.device_mesh.ndim
        cut = [shard_like(p, 0) if p.is_shard(axis) else replicate() for p in x.placements]
        own = local_shard(wrapped_like(along, x, along.shape, everywhere).redistribute(placements=cut))
        total = total + own.reshape(-1, *[1] * (x.ndim - 1 - axis)) * inner
        inner *= x.shape[axis]
    return total


def wrapped(own: Tensor, like: Any) -> Tensor:
    """What belongs to the elements of a leaf that are here, as a part of the whole."""
    made: Tensor = wrapped_like(own, like, like.shape, like.placements) if is_dtensor(like) else own
    return made


def groups_of(x: Any) -> tuple[Any, ...]:
    """The groups of processes over which a DTensor is cut."""
    return tuple(x.device_mesh.get_group(i) for i, p in enumerate(x.placements) if p.is_shard())


def local(x: Any) -> Any:
    """What a leaf has here; derivatives flow through it if they are taken."""
    if not is_dtensor(x):
        return x
    return x.to_local() if x.requires_grad and torch.is_grad_enabled() else local_shard(x)


def settled(updates: Tree, params: Tree) -> Tree:
    """Gradients as their parameters lie, which rules may take for granted.

    What lies in parts that are still to be summed, as after a backward pass through a tensor parallel layer, is summed
    here, by one collective for each group of processes, and not wherever it is used.
    """
    if not any(is_dtensor(x) for one in (updates, params) for x in leaves(one)):
        return updates
    return map_rows(_settled, updates, params)


def _settled(rows: Sequence[Sequence[Any]]) -> list[Any]:
    summed = [_in_parts(u) for u, _ in rows]
    chosen = [i for i, axes in enumerate(summed) if axes]
    parts = [local_shard(rows[i][0]) for i in chosen]
    groups = [tuple(rows[i][0].device_mesh.get_group(axis) for axis in summed[i]) for i in chosen]
    found = [u for u, _ in rows]
    for i, total in zip(chosen, all_reduce(parts, "sum", groups), strict=True):
        u = rows[i][0]
        placements = [replicate() if axis in summed[i] else p for axis, p in enumerate(u.placements)]
        for axis in summed[i]:
            if u.placements[axis].is_partial("avg"):
                total = total / u.device_mesh.size(axis)
        found[i] = wrapped_like(total, u, u.shape, placements)
    return [placed_like(u, p) if isinstance(p, Tensor) else u for u, (_, p) in zip(found, rows, strict=True)]


def _in_parts(x: Any) -> list[int]:
    """The axes of the mesh over which a leaf is still to be summed."""
    if not is_dtensor(x):
        return []
    return [axis for axis, p in enumerate(x.placements) if p.is_partial("sum") or p.is_partial("avg")]


# Communication


def all_reduce(parts: Sequence[Tensor], how: str, groups: Sequence[Sequence[Any]]) -> list[Tensor]:
    """What parts of any shapes make together with those of the other processes.

    Args:
        parts: What this process has.
        how: As for `reduce`; sums of whole numbers and of floats are taken in float64.
        groups: For each of them the groups of processes it is reduced over, one after the other.

    Returns:
        Tensors of the same shapes and dtypes.
    """
    found = [*parts]
    if _talk.is_silent:
        return found
    for group in dict.fromkeys(group for own in groups for group in own):
        if dist.get_world_size(group) == 1:
            continue
        chosen = [i for i, own in enumerate(groups) if group in own]
        wide = [_as_float64(found[i]) for i in chosen]
        total = reduce_vector(torch.cat([x.reshape(-1) for x in wide]), how, group)
        pieces = torch.split(total, [x.numel() for x in wide])
        for i, x, piece in zip(chosen, wide, pieces, strict=True):
            found[i] = _back(piece.reshape(x.shape), found[i])
    return found


def reduce_vector(vector: Tensor, how: str, group: Any) -> Tensor:
    """A vector together with those of the other processes: one collective."""
    if not torch.compiler.is_compiling() and is_batched(vector):
        raise RuntimeError(
            "vmap cannot go through a collective, which would leave the parts of a batch as they are: map over the "
            "members by a loop, or keep them whole on every process"
        )
    if vector.requires_grad and torch.is_grad_enabled():
        made: Tensor = _AllReduce.apply(vector, how, group)  # type: ignore[no-untyped-call]  # torch has no types here
        return made
    return _reduced(vector, how, group)


def _reduced(vector: Tensor, how: str, group: Any) -> Tensor:
    operation = _OPERATION[how]
    by_rank = operation != "SUM" and vector.is_floating_point()
    sent = _ranks_of(-vector if operation == "MIN" else vector) if by_rank else vector
    operation = "MAX" if by_rank else operation
    if torch.compiler.is_compiling():
        total = wait_for(collective("all_reduce", sent, operation.lower(), group.group_name))
    else:
        total = sent.clone()
        dist.all_reduce(total, getattr(dist.ReduceOp, operation), group)
    if not by_rank:
        return total
    largest = _flipped(total).view(vector.dtype)
    return -largest if _OPERATION[how] == "MIN" else largest


def _ranks_of(x: Tensor) -> Tensor:
    """Whole numbers in the order of floats, NaN above all: a collective of floats finds NaN or loses it, by chance."""
    whole = torch.int64 if x.dtype == torch.float64 else torch.int32
    return _flipped(torch.where(x == x, x, torch.nan).view(whole))


def _flipped(bits: Tensor) -> Tensor:
    """The bits of floats as whole numbers in their order, and back: those below zero count the other way."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


class _AllReduce(torch.autograd.Function):
    """A collective whose result every process has, so that each takes the derivative by its own part."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, how: str, group: Any) -> Tensor:
        total = _reduced(vector, how, group)
        ctx.save_for_backward(None if _OPERATION[how] == "SUM" else vector == total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (chosen,) = ctx.saved_tensors
        return grads[0] if chosen is None else torch.where(chosen, grads[0], 0.0), None, None


def _as_float64(x: Tensor) -> Tensor:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.view_as_real(x.to(torch.complex128)) if x.is_complex() else x.to(wide)


def _back(x: Tensor, like: Tensor) -> Tensor:
    return (torch.view_as_complex(x) if like.is_complex() else x).to(like.dtype)
