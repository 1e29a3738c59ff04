"""Trees as one vector for each dtype, which replicas cut into equal parts."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._assign import values
from .._torch import is_dtensor, local_shard, replicate, wrapped_like
from .._typing import Assign, Params, Tree, Updates
from ._comm import Peers, all_gather, mesh_of, reduce_scatter


class Flat:
    """Trees that all replicas have as a whole, and of their vectors the part of each.

    Args:
        peers: The replicas.
        most: The most bytes that are put together to be sent at once.
    """

    def __init__(self, peers: Peers, most: int) -> None:
        self.peers, self.most = peers, most

    def cut(self, leaves: Tree, params: Params | None = None) -> dict[str, Any]:
        """What this replica has of the vectors; nothing is sent, and no vector is made as a whole."""
        return {name: self.own(vector) for name, vector in vectors(leaves, params).items()}

    def mean(self, leaves: Tree, params: Params | None = None) -> dict[str, Any]:
        """The same of the mean over the replicas: one collective for each bucket."""
        return {name: self._averaged(vector) for name, vector in vectors(leaves, params).items()}

    def whole(self, parts: dict[str, Any], leaves: Tree, params: Params | None = None) -> Tree:
        """A tree from the parts of all replicas: one collective for each bucket.

        Args:
            parts: What a rule has made of the parts of a tree.
            leaves: That tree, for the shapes and dtypes.
            params: What was given beside it.
        """
        rows, found = tree.leaves(leaves), {}
        for name, places in _groups(leaves, params).items():
            whole = self._gathered(values(parts[name]), Vector([rows[i] for i in places]))
            pieces = torch.split(whole, [rows[i].numel() for i in places])
            for i, piece in zip(places, pieces, strict=True):
                own = tree.cast_leaf(piece.reshape(rows[i].shape), rows[i].dtype)
                found[i] = Assign(own) if type(parts[name]) is Assign else own
        return tree.unflatten(leaves, [found[i] for i in range(len(rows))])

    def apart(self, parts: dict[str, Any], params: Params) -> Tree:
        """What mirrors a tree, from the parts of its vectors; what is there in another shape is so for every leaf."""
        rows, groups, found = tree.leaves(params), _groups(params, None), {}
        for name, places in groups.items():
            vector = Vector([rows[i] for i in places])
            if parts[name].shape[0] == vector.total:
                whole = torch.split(self._gathered(parts[name], vector), [rows[i].numel() for i in places])
                found.update({i: x.reshape(rows[i].shape) for i, x in zip(places, whole, strict=True)})
            else:
                found.update({i: tree.whole(parts[name]).clone() for i in places})
        return tree.unflatten(params, [found[i] for i in range(len(rows))])

    def own(self, vector: "Vector") -> Any:
        """The part of this replica."""
        first, last = self._bounds(vector)
        return self._wrapped(vector.elements(first, last), vector)

    def _bounds(self, vector: "Vector") -> tuple[int, int]:
        step = self._step(vector)
        return min(step * self.peers.rank, vector.total), min(step * (self.peers.rank + 1), vector.total)

    def _step(self, vector: "Vector") -> int:
        """The elements of a part; the last ones are shorter or empty, as torch cuts a DTensor."""
        return -(-vector.total // self.peers.size)

    def _columns(self, vector: "Vector") -> list[tuple[int, int]]:
        """From where to where in each part the buckets go."""
        step = self._step(vector)
        width = max(1, self.most // (self.peers.size * vector.dtype.itemsize))
        return [(first, min(first + width, step)) for first in range(0, step, width)]

    def _averaged(self, vector: "Vector") -> Any:
        size, step = self.peers.size, self._step(vector)
        if size == 1:
            return self.own(vector)
        arrived = []
        for first, last in self._columns(vector):
            rows = [tree.as_real(vector.elements(r * step + first, r * step + last, fill=True)) for r in range(size)]
            # Each its part, as DDP does it, so that low precision does not overflow.
            arrived.append(reduce_scatter(torch.stack(rows) / size, self.peers))
        first, last = self._bounds(vector)
        if not arrived:
            return self.own(vector)
        return self._wrapped(tree.as_complex(torch.cat(arrived), vector.zeros(0))[: last - first], vector)

    def _gathered(self, part: Any, vector: "Vector") -> Tensor:
        size, step = self.peers.size, self._step(vector)
        if size == 1 or not step:
            return local_shard(part) if is_dtensor(part) else part
        own: Tensor = local_shard(self._placed(part))
        if own.shape[0] < step:
            own = torch.cat([own, own.new_zeros(step - own.shape[0])])
        pieces = [all_gather(tree.as_real(own[first:last]), self.peers) for first, last in self._columns(vector)]
        return tree.as_complex(torch.cat(pieces, 1), own).reshape(-1)[: vector.total]

    def _wrapped(self, own: Tensor, vector: "Vector") -> Any:
        if self.peers.size == 1:
            return own
        tensors = importlib.import_module("torch.distributed.tensor")
        mesh = mesh_of(self.peers.process_group, own.device.type)
        like = tensors.DTensor.from_local(own.new_zeros(()), mesh, [replicate()], run_check=False)
        return wrapped_like(own, like, torch.Size([vector.total]), [tensors.Shard(0)])

    def _placed(self, x: Any) -> Any:
        """What a rule returns, cut as what it was given."""
        wanted = (importlib.import_module("torch.distributed.tensor").Shard(0),)
        return x if x.placements == wanted else x.redistribute(placements=wanted)


class Vector:
    """The elements of some leaves in a row, of which parts are read."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.rows = [x.detach().reshape(-1) for x in leaves]
        self.total = sum(x.shape[0] for x in self.rows)
        self.dtype = self.rows[0].dtype

    def elements(self, first: int, last: int, fill: bool = False) -> Tensor:
        """Those from one place to another, in memory of their own; with `fill` zeros behind the end."""
        pieces, start = [], 0
        for row in self.rows:
            if start < last and start + row.shape[0] > first:
                pieces.append(row[max(first - start, 0) : last - start])
            start += row.shape[0]
        if fill and last > max(first, start):
            pieces.append(self.zeros(last - max(first, start)))
        return torch.cat(pieces) if pieces else self.zeros(0)

    def zeros(self, count: int) -> Tensor:
        """So many zeros like them."""
        return self.rows[0].new_zeros(count)


def vectors(leaves: Tree, params: Params | None = None) -> dict[str, Vector]:
    """One vector for each dtype of the parameters, named by it."""
    rows = tree.leaves(leaves)
    return {name: Vector([rows[i] for i in places]) for name, places in _groups(leaves, params).items()}


def together(leaves: Tree, params: Params) -> dict[str, Tensor]:
    """The vectors of what mirrors the parameters, as a whole."""
    rows = tree.leaves(leaves)
    found = {name: torch.cat([rows[i].reshape(-1) for i in places]) for name, places in _groups(params, None).items()}
    return found


def _groups(leaves: Updates, params: Params | None) -> dict[str, list[int]]:
    """The numbers of the leaves that belong to a vector.

    Raises:
        ValueError: if a parameter has no gradient, or leaves lie on several devices, naming one.
    """
    if params is not None:
        rows = tree.leaves(tree.map(lambda path, p, u: u is None and path, tree.paths(params), params, leaves))
        absent = next((path for path in rows if path is not False), None)
        if absent is not None:
            raise ValueError(
                f"zero with layout='flat' needs a gradient for every parameter, and {absent or 'the leaf'} has none: "
                "make it zeros, leave the parameter out, or use layout='leaves'"
            )
    found: dict[str, list[int]] = {}
    like = tree.leaves(leaves if params is None else params)
    for i, x in enumerate(like):
        if x.device != like[0].device:
            raise ValueError(
                f"zero with layout='flat' puts all leaves into one vector, and they lie on {like[0].device} and "
                f"{x.device}: use layout='leaves'"
            )
        found.setdefault(str(x.dtype).removeprefix("torch."), []).append(i)
    return found
