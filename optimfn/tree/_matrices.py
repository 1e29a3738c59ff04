"""Functions of whole matrices, where matrices lie in shards on several processes."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch import is_dtensor, local_shard, placed_like, replicate, without_parts
from .._typing import Tree
from ._shards import map_rows, wrapped

Slices = tuple[slice, ...]
Axes = tuple[int, ...]


def on_full_matrix(f: Callable[..., Any], tree: Tree, *others: Tree, together: bool = False) -> Tree:
    """Apply a function to each leaf as a whole; where leaves lie in shards, each process does its share of them.

    Every leaf has an owner among the processes of its mesh, chosen so that all have about as much to do. It is given
    the shards of the others, computes, and gives each its part of the result: two collectives, however many leaves
    there are. The result is bit for bit that of one process. Derivatives do not flow through leaves in shards. Under
    `torch.compile` every process computes every leaf, from one collective each.

    Args:
        f: A function of a leaf that returns one of the same shape and dtype. It must not raise: the owner alone would,
            and the others would wait for it. Check shapes and dtypes of all leaves before.
        tree: The tree.
        others: What else `f` is given with each leaf, in the structure of the tree: not tensors in shards, but how the
            leaf is to be taken, say.
        together: Whether `f` is given a list of leaves, all that this process does, and of what else there is, and
            returns a list of results; with `batched`, those of one shape then take their products together.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.on_full_matrix(torch.linalg.inv, {"w": torch.diag(torch.tensor([2.0, 4.0]))})
        {'w': tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])}
    """
    return map_rows(lambda rows: _on_rows(f, rows, together), tree, *others)


def _on_rows(f: Callable[..., Any], rows: Sequence[Sequence[Any]], together: bool) -> list[Any]:
    def on_all(chosen: Sequence[int], xs: Sequence[Tensor]) -> list[Tensor]:
        if not chosen:
            return []
        along = [list(column) for column in zip(*[rows[i][1:] for i in chosen], strict=True)]
        return f([*xs], *along) if together else [f(*row) for row in zip(xs, *along, strict=True)]

    own = [row[0] for row in rows]
    if not any(is_dtensor(x) for x in own):
        return on_all(range(len(own)), own)
    here = [i for i, x in enumerate(own) if not is_dtensor(x)]
    plain = iter(on_all(here, [own[i] for i in here]))
    found = [x if is_dtensor(x) else next(plain) for x in own]
    settled = [without_parts(x) if is_dtensor(x) else x for x in own]
    given = [*settled]
    by_group: dict[tuple[Any, Axes], list[int]] = {}
    for i, x in enumerate(given):
        if not is_dtensor(x):
            continue
        if not any(p.is_shard() and x.device_mesh.size(axis) > 1 for axis, p in enumerate(x.placements)):
            found[i] = wrapped(on_all([i], [local_shard(x)])[0], x)
        elif torch.compiler.is_compiling() or any(p.is_shard() and type(p).__name__ != "Shard" for p in x.placements):
            # Where a graph is the same for all, or a shard is not one piece of the whole: by all on their own.
            found[i] = placed_like(on_all([i], [x.full_tensor()])[0], x)
        else:
            x, axes = within_one_group(x)
            given[i] = x
            by_group.setdefault((x.device_mesh, axes), []).append(i)
    for (mesh, axes), chosen in by_group.items():
        results = Exchange(mesh, axes, chosen, [given[i] for i in chosen]).run(on_all)
        for i, result in zip(chosen, results, strict=True):
            found[i] = placed_like(wrapped(result, given[i]), settled[i])
    return found


def within_one_group(x: Any) -> tuple[Any, Axes]:
    """The leaf, and axes of its mesh whose processes have all of it and a group to talk in.

    A group of any others would have to be made by all processes of the world, which are not all here.
    """
    mesh = x.device_mesh
    if mesh.ndim == 1 or mesh.size() == dist.get_world_size():
        return x, tuple(range(mesh.ndim))
    cut = [axis for axis, p in enumerate(x.placements) if p.is_shard()]
    longest = max(cut, key=lambda axis: mesh.size(axis))
    if len(cut) > 1:
        x = x.redistribute(placements=[p if axis == longest else replicate() for axis, p in enumerate(x.placements)])
    return x, (longest,)


def _group_of(mesh: Any, axes: Axes) -> Any:
    return mesh.get_group(axes[0]) if len(axes) == 1 else dist.group.WORLD


class _Leaf(NamedTuple):
    """A leaf that lies in shards."""

    number: int  # among all leaves
    x: Any
    owner: int  # its place in the mesh
    here: dict[int, Slices]  # what of it each process has, by its place in the mesh
    givers: frozenset[int]  # who gives the owner what it lacks: each shard once


class Exchange:
    """Leaves of one mesh, on their way to their owners and back."""

    def __init__(self, mesh: Any, axes: Axes, numbers: Sequence[int], given: Sequence[Any]) -> None:
        self.group = _group_of(mesh, axes)
        self.sizes = tuple(mesh.mesh.shape)
        here = mesh.get_coordinate()
        spans = [range(size) if axis in axes else (here[axis],) for axis, size in enumerate(self.sizes)]
        self.coordinates = list(itertools.product(*spans))
        # Places in the mesh, in the order of the ranks of the group.
        ranks_at = dict(
            zip(itertools.product(*[range(size) for size in self.sizes]), mesh.mesh.flatten().tolist(), strict=True)
        )
        ranks = [ranks_at[at] for at in self.coordinates]
        order = sorted(range(len(ranks)), key=lambda i: dist.get_group_rank(self.group, ranks[i]))
        self.places, self.me = order, order[dist.get_rank(self.group)]
        owners = owners_of([tuple(x.shape) for x in given], len(ranks))
        self.leaves = [self._leaf(*row) for row in zip(numbers, given, owners, strict=True)]

    def _leaf(self, number: int, x: Any, owner: int) -> _Leaf:
        here = {i: _region(x, at, self.sizes) for i, at in enumerate(self.coordinates)}
        return _Leaf(number, x, owner, here, self._givers(x, owner))

    def _givers(self, x: Any, to: int) -> frozenset[int]:
        """Who gives a process what it lacks of a leaf."""
        whole = [axis for axis, p in enumerate(x.placements) if not p.is_shard()]
        at = self.coordinates[to]
        return frozenset(
            i for i, other in enumerate(self.coordinates) if all(other[axis] == at[axis] for axis in whole)
        )

    def gather(self) -> list[Tensor]:
        """Each leaf as a whole, on every process."""
        shards = [local_shard(leaf.x) for leaf in self.leaves]
        outgoing = [
            [x for leaf, x in zip(self.leaves, shards, strict=True) if self.me in self._givers(leaf.x, to)]
            for to in self.places
        ]
        own = [self._givers(leaf.x, self.me) for leaf in self.leaves]
        incoming = [
            [(leaf, leaf.here[i]) for leaf, givers in zip(self.leaves, own, strict=True) if i in givers]
            for i in self.places
        ]
        wholes = {
            id(leaf): torch.empty(leaf.x.shape, dtype=leaf.x.dtype, device=x.device)
            for leaf, x in zip(self.leaves, shards, strict=True)
        }
        for pieces, wanted in zip(self._swap(outgoing, incoming), incoming, strict=True):
            for piece, (leaf, region) in zip(pieces, wanted, strict=True):
                wholes[id(leaf)][region] = piece
        return [wholes[id(leaf)] for leaf in self.leaves]

    def run(self, f: Callable[[list[int], list[Tensor]], list[Tensor]]) -> list[Tensor]:
        """What of each result belongs here; `f` is given the numbers of leaves, and these."""
        shards = [local_shard(leaf.x) for leaf in self.leaves]
        outgoing = [
            [x for leaf, x in zip(self.leaves, shards, strict=True) if leaf.owner == to and self.me in leaf.givers]
            for to in self.places
        ]
        mine = [leaf for leaf in self.leaves if leaf.owner == self.me]
        incoming = [[(leaf, leaf.here[i]) for leaf in mine if i in leaf.givers] for i in self.places]
        wholes = {id(leaf): torch.empty(leaf.x.shape, dtype=leaf.x.dtype, device=shards[0].device) for leaf in mine}
        for pieces, wanted in zip(self._swap(outgoing, incoming), incoming, strict=True):
            for piece, (leaf, region) in zip(pieces, wanted, strict=True):
                wholes[id(leaf)][region] = piece
        made = f([leaf.number for leaf in mine], [wholes.pop(id(leaf)) for leaf in mine])
        done = [*zip(mine, made, strict=True)]
        back = [[result[leaf.here[i]] for leaf, result in done] for i in self.places]
        own = [[(leaf, leaf.here[self.me]) for leaf in self.leaves if leaf.owner == i] for i in self.places]
        found: dict[int, Tensor] = {}
        for pieces, wanted in zip(self._swap(back, own), own, strict=True):
            found.update({id(leaf): piece for piece, (leaf, _) in zip(pieces, wanted, strict=True)})
        return [found[id(leaf)] for leaf in self.leaves]

    def _swap(self, outgoing: list[list[Tensor]], incoming: list[list[tuple[_Leaf, Slices]]]) -> list[list[Tensor]]:
        """One collective: tensors for each process, as bytes, so that dtypes may differ."""
        device = local_shard(self.leaves[0].x).device
        # Strided anew, since one element may have any stride, and bytes of it are seen with that of one alone.
        flat = [[x.contiguous().as_strided((x.numel(),), (1,)) for x in own] for own in outgoing]
        parts = [[x.view(torch.uint8) for x in own] for own in flat]
        kinds = [[(_extent(region), leaf.x.dtype) for leaf, region in own] for own in incoming]
        counts = [[_numel(shape) * dtype.itemsize for shape, dtype in own] for own in kinds]
        sent = torch.cat([torch.empty(0, dtype=torch.uint8, device=device), *[x for own in parts for x in own]])
        received = torch.empty(sum(_sums(counts)), dtype=torch.uint8, device=device)
        dist.all_to_all_single(
            received, sent, _sums(counts), [sum(x.numel() for x in own) for own in parts], group=self.group
        )
        found, start = list[list[Tensor]](), 0
        for own, sizes in zip(kinds, counts, strict=True):
            found.append([])
            for (shape, dtype), size in zip(own, sizes, strict=True):
                # A copy, since bytes in the middle may lie where numbers of the dtype must not begin.
                found[-1].append(received[start : start + size].clone().view(dtype).reshape(shape))
                start += size
        return found


def _sums(counts: Sequence[Sequence[int]]) -> list[int]:
    """The sum of each row."""
    return [sum(own) for own in counts]


def owners_of(shapes: Sequence[tuple[int, ...]], size: int) -> list[int]:
    """Who computes what: the largest first, each by who has least to do, found alike by all processes."""
    work, owners = [0] * size, [0] * len(shapes)
    costs = [_numel(shape) * min(shape, default=1) for shape in shapes]
    for i in sorted(range(len(shapes)), key=lambda i: (-costs[i], i)):
        owners[i] = work.index(min(work))
        work[owners[i]] += max(costs[i], 1)
    return owners


def _region(x: Any, at: Sequence[int], sizes: Sequence[int]) -> Slices:
    """What of a leaf the process at some place of the mesh has: the mesh cuts as `torch.chunk`, axis by axis."""
    spans = [(0, size) for size in x.shape]
    for axis, p in enumerate(x.placements):
        if p.is_shard():
            start, length = spans[p.dim]
            step = -(-length // sizes[axis])
            first = min(step * at[axis], length)
            spans[p.dim] = start + first, min(step, length - first)
    return tuple(slice(start, start + length) for start, length in spans)


def _extent(region: Slices) -> tuple[int, ...]:
    return tuple(one.stop - one.start for one in region)


def _numel(shape: Sequence[int]) -> int:
    return math.prod(shape)
