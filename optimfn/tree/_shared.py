"""Leaves in shards as a whole on every process, and work on them that the processes share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch import are_cut, is_dtensor, placed_like
from .._typing import Tree
from ._core import leaves, map, unflatten
from ._matrices import Axes, Exchange, owners_of, within_one_group

Results = list[tuple[Tensor, ...]]


def whole(tree: Tree) -> Tree:
    """Every leaf as an ordinary tensor, which every process has as a whole: one collective for all leaves of a mesh."""
    own = leaves(tree)
    if not are_cut(own) or torch.compiler.is_compiling():
        return map(lambda x: placed_like(x, None), tree)
    found: list[Any] = [*own]
    by_group: dict[tuple[Any, Axes], list[int]] = {}
    for i, x in enumerate(own):
        if _may_travel(x):
            found[i], axes = within_one_group(x)
            by_group.setdefault((x.device_mesh, axes), []).append(i)
        else:
            found[i] = placed_like(x, None)
    for (mesh, axes), chosen in by_group.items():
        gathered = Exchange(mesh, axes, chosen, [found[i] for i in chosen]).gather()
        for i, x in zip(chosen, gathered, strict=True):
            found[i] = x
    return unflatten(tree, found)


def _may_travel(x: Any) -> bool:
    """Whether a leaf is in shards each of which is a piece of the whole, and no derivative flows through it."""
    if not is_dtensor(x) or (x.requires_grad and torch.is_grad_enabled()):
        return False
    cut = [axis for axis, p in enumerate(x.placements) if type(p).__name__ == "Shard" and x.device_mesh.size(axis) > 1]
    return bool(cut) and all(type(p).__name__ in ("Shard", "Replicate") for p in x.placements)


def shared(f: Callable[[list[int]], Results], own: Sequence[Any], like: Sequence[Sequence[Tensor]]) -> Results:
    """What a function makes of whole tensors that every process has; each process computes its share, and gives it out.

    One collective for the leaves of a mesh. Under `torch.compile`, and where derivatives are to flow, all compute all.

    Args:
        f: Given the numbers of some leaves, it returns a tuple of tensors for each. As in `on_full_matrix` it must not
            raise.
        own: The leaves, of which those in shards say who shares the work.
        like: For each leaf, tensors in the shapes and dtypes of its results.

    Example:
        >>> import torch, optimfn as of
        >>> own = [torch.eye(2), 2 * torch.eye(3)]
        >>> of.tree.shared(lambda chosen: [(own[i].trace(),) for i in chosen], own, [[x.trace()] for x in own])
        [(tensor(2.),), (tensor(6.),)]
    """
    groups: dict[Any, list[int]] = {}
    alone = torch.compiler.is_compiling() or not are_cut(own)
    for i, x in enumerate(own):
        groups.setdefault(None if alone else _workers(x), []).append(i)
    found: list[Any] = [None] * len(own)
    for group, chosen in groups.items():
        results = f(chosen) if group is None else _given_out(group, f, chosen, [like[i] for i in chosen])
        for i, result in zip(chosen, results, strict=True):
            found[i] = result
    return found


def _workers(x: Any) -> Any:
    """The group of processes that share the work on a leaf; `None` if each does all of it."""
    if not is_dtensor(x) or (x.requires_grad and torch.is_grad_enabled()):
        return None
    mesh = x.device_mesh
    if mesh.size() == 1:
        return None
    if mesh.ndim == 1:
        return mesh.get_group(0)
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    longest = max(range(mesh.ndim), key=mesh.size)
    return mesh.get_group(longest)


def _given_out(
    group: Any, f: Callable[[list[int]], Results], chosen: Sequence[int], like: Sequence[Sequence[Tensor]]
) -> Results:
    size, me = dist.get_world_size(group), dist.get_rank(group)
    owners = owners_of([max([tuple(x.shape) for x in one], key=math.prod, default=()) for one in like], size)
    mine = [i for i, owner in zip(chosen, owners, strict=True) if owner == me]
    done = dict(zip(mine, f(mine), strict=True)) if mine else {}
    device = next((x.device for one in like for x in one), torch.device("cpu"))
    sent = [torch.empty(0, dtype=torch.uint8, device=device)]
    counts = [0] * size
    for i, owner, one in zip(chosen, owners, like, strict=True):
        counts[owner] += sum([x.numel() * x.dtype.itemsize for x in one])
        if owner == me:
            done[i] = tuple([x.detach().to(t.dtype) for x, t in zip(done[i], one, strict=True)])
            sent += [_in_bytes(x) for x in done[i]]
    parcel = torch.cat(sent)
    received = torch.empty(sum(counts), dtype=torch.uint8, device=device)
    dist.all_to_all_single(received, parcel.repeat(size), counts, [parcel.numel()] * size, group=group)
    starts = [sum(counts[:owner]) for owner in range(size)]
    found: Results = []
    for i, owner, one in zip(chosen, owners, like, strict=True):
        opened = []
        for x in one:
            end = starts[owner] + x.numel() * x.dtype.itemsize
            # A copy, since bytes in the middle may lie where numbers of the dtype must not begin.
            opened.append(received[starts[owner] : end].clone().view(x.dtype).reshape(x.shape))
            starts[owner] = end
        found.append(done.get(i, tuple(opened)))
    return found


def _in_bytes(x: Tensor) -> Tensor:
    return x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8)
