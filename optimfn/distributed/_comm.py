"""What processes say to each other: the one door to torch.distributed for rules that communicate.

- `Peers` is a group of processes in whatever form a user has it; made at construction, looked up when first used.
- `start_mean` begins the mean of a tree over the peers and returns a `Departure`; `mean` waits for it.
- `all_reduce`, `all_gather`, `all_to_all`, `reduce_scatter` and `broadcast` take one tensor.
- `check_whole` refuses what cannot communicate: the members of a `vmap`, and symbols of a trace for kernels.

Nothing is said at import or when a group is named. A group of one says nothing at all. All processes of a group make
the same calls in the same order. Everything is an operator that `torch.compile` follows.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import tree
from .._torch import collective, is_batched, wait_for
from .._typing import Tree
from ..fused.ir._graph import SeveralProcesses
from ..fused.trace._symbol import Symbol
from ..tree._shards import local, reduce_vector, wrapped

BUCKET_BYTES = 25 << 20


class Peers:
    """The processes of a group.

    Args:
        group: A process group; a `DeviceMesh` of one axis; a pair of a mesh and one of its axes, by name or number; or
            `None` for all processes, which is this one alone where torch.distributed has not been started.

    Raises:
        TypeError: if it is none of these.
        ValueError: for a mesh of several axes, saying how to choose one.
    """

    def __init__(self, group: Any) -> None:
        mesh = group[0] if isinstance(group, tuple) and len(group) == 2 else group
        if hasattr(mesh, "get_group"):
            if mesh is group and mesh.ndim != 1:
                raise ValueError(f"group is a mesh of {mesh.ndim} axes: choose one of them, (mesh, axis) or mesh[axis]")
        elif group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group must be a process group, a DeviceMesh, (mesh, axis) or None, got {group!r}")
        self._given = group
        self._known: tuple[Any, str, int, int] | None = None

    @property
    def process_group(self) -> Any:
        """The process group; `None` for a process that is alone."""
        return self._look_up()[0]

    @property
    def name(self) -> str:
        """What operators call the group."""
        return self._look_up()[1]

    @property
    def size(self) -> int:
        """How many there are."""
        return self._look_up()[2]

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return self._look_up()[3]

    def _look_up(self) -> tuple[Any, str, int, int]:
        if self._known is not None and torch.compiler.is_compiling():
            return self._known
        given = self._given
        if given is None:
            own: Any = dist.group.WORLD if dist.is_initialized() else None
        elif isinstance(given, tuple):
            own = given[0].get_group(given[1])
        else:
            own = given.get_group() if hasattr(given, "get_group") else given
        if own is None:
            self._known = (None, "", 1, 0)
        else:  # asked anew each time: a manager of processes that come and go keeps the group and changes its size
            self._known = (own, own.group_name, dist.get_world_size(own), dist.get_rank(own))
            if self._known[3] < 0:
                raise ValueError("this process does not belong to the group: make the rule only where it does")
        return self._known


def check_whole(who: str, updates: Tree) -> None:
    """Refuse leaves that are not there as a whole.

    Raises:
        RuntimeError: under `vmap`, saying what to do.
        SeveralProcesses: while a step is traced for kernels, which then runs by the rule itself, without a word.
    """
    check_unbatched(who, updates)
    if any(isinstance(x, Symbol) for x in tree.leaves(updates)):
        raise SeveralProcesses(f"{who} communicates")


def check_unbatched(who: str, updates: Tree) -> None:
    """Refuse the members of a `vmap`, also where a process is alone, so that nobody finds out among several.

    Raises:
        RuntimeError: saying what to do.
    """
    for x in tree.leaves(updates):
        if not torch.compiler.is_compiling() and is_batched(x):
            raise RuntimeError(
                f"{who} communicates, which vmap cannot do for the members of a batch: map over the members by a "
                "loop, or put vmap inside and the collective around it"
            )


class Departure(NamedTuple):
    """A mean or sum on its way: flat buckets, and which leaves they hold."""

    leaves: list[Any]  # what was sent
    form: Any
    buckets: list[tuple[list[int], Tensor]]

    def wait(self) -> Tree:
        """The result in the form and the dtypes of what was sent."""
        found = [*self.leaves]
        for places, flat in self.buckets:
            self._put(places, wait_for(flat), found)
        return self.form.unflatten(found)

    def _put(self, places: Sequence[int], flat: Tensor, found: list[Any]) -> None:
        pieces = torch.split(flat, [_numel(self.leaves[i]) for i in places])
        for i, piece in zip(places, pieces, strict=True):
            like = self.leaves[i]
            x = local(like)
            if x.is_complex():
                own = torch.view_as_complex(piece.to(tree.real_dtype(x.dtype)).reshape(*x.shape, 2))
            else:
                own = piece.to(x.dtype).reshape(x.shape)
            found[i] = wrapped(own, like)


def start_mean(
    sent: Tree,
    peers: Peers,
    dtype: torch.dtype | None = None,
    bucket_bytes: int = BUCKET_BYTES,
    *,
    how: str = "mean",
) -> Departure:
    """Begin the mean of every leaf over the peers, in flat buckets.

    Args:
        sent: The tree; of a DTensor that which is here goes to the peers that have the same of theirs.
        peers: The processes.
        dtype: What travels, and in which the sum is taken; `None` means that of the leaf.
        bucket_bytes: The most that goes in one collective, but for a leaf that is larger.
        how: `"mean"` or `"sum"`.
    """
    leaves, form = tree.flatten(sent)
    if peers.size == 1:
        return Departure(leaves, form, [])
    buckets = []
    for places in _buckets(leaves, dtype, bucket_bytes):
        flat = torch.cat([_flat(local(leaves[i]), dtype) for i in places])
        if how == "mean":  # each its part, as DDP does it, so that low precision does not overflow
            flat = flat.div_(peers.size) if not flat.requires_grad else flat / peers.size
        buckets.append((places, begin_all_reduce(flat, peers)))
    return Departure(leaves, form, buckets)


def mean(
    sent: Tree,
    peers: Peers,
    dtype: torch.dtype | None = None,
    bucket_bytes: int = BUCKET_BYTES,
    *,
    how: str = "mean",
) -> Tree:
    """The same, when it has arrived."""
    return start_mean(sent, peers, dtype, bucket_bytes, how=how).wait()


def broadcast_tree(sent: Tree, source: int, peers: Peers, bucket_bytes: int = BUCKET_BYTES) -> Tree:
    """Every leaf as one of the peers has it, given by its rank among them."""
    leaves, form = tree.flatten(sent)
    buckets = []
    for places in [] if peers.size == 1 else _buckets(leaves, None, bucket_bytes):
        flat = torch.cat([_flat(local(leaves[i]), None) for i in places])
        buckets.append((places, broadcast(flat, source, peers)))
    return Departure(leaves, form, buckets).wait()


def _buckets(leaves: Sequence[Any], dtype: torch.dtype | None, most: int) -> list[list[int]]:
    """The numbers of the leaves that go together: one dtype, one device, and not too many."""
    found: dict[Any, list[list[int]]] = {}
    room: dict[Any, int] = {}
    present = [i for i, x in enumerate(leaves) if x is not None]
    # Complex ones first: behind an odd number of reals, what has arrived could not be viewed as complex.
    for i in sorted(present, key=lambda i: not leaves[i].is_complex()):
        x = leaves[i]
        real = tree.real_dtype(x.dtype)
        key = real if dtype is None else dtype, x.device
        size = _numel(x) * key[0].itemsize
        if key not in found or size > room[key]:
            found.setdefault(key, []).append([])
            room[key] = most
        found[key][-1].append(i)
        room[key] -= size
    return [places for own in found.values() for places in own]


def complex_again(x: Tensor, like: Tensor) -> Tensor:
    """The other way round of `tree.as_real`, wherever in a vector `x` lies."""
    return torch.complex(*x.unbind(-1)) if like.is_complex() else x


def _flat(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    own = tree.as_real(x)
    return own.reshape(-1) if dtype is None else own.reshape(-1).to(dtype)


def _numel(x: Any) -> int:
    own: Tensor = local(x)
    return own.numel() * (2 if own.is_complex() else 1)


# One tensor


def begin_all_reduce(x: Tensor, peers: Peers, how: str = "sum") -> Tensor:
    """Begin a sum over the peers, in memory of its own; `wait_for` it before it is read."""
    if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return reduce_vector(x, how, peers.process_group)
    return collective("all_reduce", x, how, peers.name)


def all_reduce(x: Tensor, peers: Peers, how: str = "sum") -> Tensor:
    """The sum, maximum (`"max"`) or minimum (`"min"`) over the peers."""
    return x if peers.size == 1 else wait_for(begin_all_reduce(x, peers, how))


def all_gather(x: Tensor, peers: Peers) -> Tensor:
    """The tensors of all peers, along a new first axis."""
    if peers.size == 1:
        return x[None]
    flat = collective("all_gather_into_tensor", x.contiguous().reshape(-1), peers.size, peers.name)
    return wait_for(flat).reshape(peers.size, *x.shape)


def all_to_all(x: Tensor, peers: Peers) -> Tensor:
    """Row `r` of every peer, for the peer `r`: their rows for this process, along the first axis."""
    if peers.size == 1:
        return x
    rows = [1] * peers.size
    return wait_for(collective("all_to_all_single", x.contiguous(), rows, rows, peers.name))


def reduce_scatter(x: Tensor, peers: Peers) -> Tensor:
    """Row `rank` of the sum over the peers."""
    if peers.size == 1:
        return x[0]
    flat = collective("reduce_scatter_tensor", x.contiguous(), "sum", peers.size, peers.name)
    return wait_for(flat).reshape(x.shape[1:])


def broadcast(x: Tensor, source: int, peers: Peers) -> Tensor:
    """The tensor of one of the peers, by its rank among them."""
    if peers.size == 1:
        return x
    return wait_for(collective("broadcast", x.contiguous(), source, peers.name))


@functools.cache
def mesh_of(process_group: Any, device: str) -> Any:
    """A mesh of one axis for a group, to lay DTensors on."""
    return importlib.import_module("torch.distributed.tensor").DeviceMesh.from_group(process_group, device)
