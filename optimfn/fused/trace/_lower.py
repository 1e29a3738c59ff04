"""From a graph of whole leaves to one of the shards that this process has of them.

A rule is traced on the shapes of whole leaves, since it may ask for them. What it computes element by element is the
same on a shard; what it reduces is there in parts, which one collective for each stage makes whole: a node between
kernels, for all leaves that lie on the same processes. Whatever else a rule does with shards, its own operators do.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..._torch import is_dtensor, local_shard, wrapped_like
from ...tree._shards import all_reduce, reduce_vector
from ..ir._graph import Layout, Node, Untraceable
from ._trace import Graph


class InShards(Untraceable):
    """What a rule does cannot be done on shards by kernels."""


class Place(NamedTuple):
    """Where a leaf lies: on which processes, how it is cut, and what of it is here."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]  # of the whole
    own: tuple[int, ...]  # of the shard


def place_of(x: Any) -> Place | None:
    """Where a leaf lies; `None` if it is whole here."""
    if not is_dtensor(x):
        return None
    return Place(x.device_mesh, x.placements, tuple(x.shape), tuple(x._local_tensor.shape))


class AllReduce:
    """A collective as an operator: parts in, what they make together with those of other processes out."""

    takes_some = True

    def __init__(self, how: str, groups: tuple[Any, ...]) -> None:
        self.how, self.groups = how, groups
        self.__name__ = f"all_reduce_{how}"

    def __call__(self, *parts: Tensor) -> list[Tensor]:
        """Take part in it."""
        if len({x.dtype for x in parts}) == 1 and parts[0].dtype.is_floating_point:
            vector = torch.stack(parts)  # in one piece, since there is one for each leaf
            for group in self.groups:
                vector = reduce_vector(vector.double(), self.how, group).to(vector.dtype)
            return list(vector.unbind())
        return all_reduce(parts, self.how, [self.groups] * len(parts))

    def __eq__(self, other: object) -> bool:
        return type(other) is AllReduce and (self.how, self.groups) == (other.how, other.groups)

    def __hash__(self) -> int:
        return hash((self.how, self.groups))

    def __repr__(self) -> str:
        size = math.prod(dist.get_world_size(group) for group in self.groups)
        return f"all_reduce({self.how}) over {size} processes"


def lowered(graph: Graph, tensors: Sequence[Any]) -> tuple[Graph, list[Place | None]]:
    """The graph of the shards, and where each output lies.

    Args:
        graph: The graph of the whole leaves.
        tensors: What its first inputs stand for.

    Raises:
        InShards: if an operator mixes elements of a shard in another way than by a sum or the like of all of them.
    """
    if any(p.is_partial() for x in tensors if is_dtensor(x) for p in x.placements):
        raise InShards("gradients lie in parts that are still to be summed")
    lowering = _Lowering(graph, tensors)
    outputs = [lowering.found[x] if isinstance(x, Node) else x for x in graph.outputs]
    places = [lowering.places[x] if isinstance(x, Node) else None for x in outputs]
    return graph._replace(nodes=lowering.nodes, outputs=outputs, opaque=lowering.opaque), places


class _Lowering:
    def __init__(self, graph: Graph, tensors: Sequence[Any]) -> None:
        self.nodes: list[Node] = []
        self.found: dict[Node, Node] = {}
        self.places: dict[Node, Place | None] = {}
        self.opaque = dict(graph.opaque)
        self._fills: dict[tuple[Node, Place], Node] = {}
        inputs = [node for node in graph.nodes if node.kind == "input"]
        places = [place_of(x) for x in tensors] + [None] * (len(inputs) - len(tensors))
        for node, place, x in zip(inputs, places, [*tensors, *graph.captured.values()], strict=True):
            layout = node.layout if place is None else Layout.dense(local_shard(x))
            self.found[node] = self._new(node, (), layout, place)
        turns = _turns(graph.nodes, {node: self.places[self.found[node]] for node in inputs})
        waiting: dict[tuple[str, tuple[Any, ...]], list[Node]] = {}
        turn = 0
        for node in sorted(graph.nodes, key=lambda node: (turns[node], node.number)):
            if turns[node] > turn:
                turn = turns[node]
                self._talk(waiting)
            if node.kind != "input":
                self.found[node] = self._lower(node)
            own = self.places[self.found[node.args[0]]] if node.kind == "reduce" and len(node.args) == 1 else None
            if own is not None:
                groups = _groups(own)
                if groups:
                    waiting.setdefault((str(node.op), groups), []).append(node)
        self._talk(waiting)
        for node in graph.outputs:
            if isinstance(node, Node) and self.found[node].op == "fill" and node.layout.shape:
                raise InShards("it returns leaves of numbers that lie nowhere yet")

    def _talk(self, waiting: dict[tuple[str, tuple[Any, ...]], list[Node]]) -> None:
        """Add the collectives that make whole what was reduced, one for each group of processes."""
        for (how, groups), nodes in waiting.items():
            op = AllReduce(how, groups)
            parts = tuple(self.found[node] for node in nodes)
            together = self._add("opaque", op, parts, parts[0].layout, op.__name__)
            self.opaque[str(op)] = "makes whole what lies in shards"
            for i, node in enumerate(nodes):
                self.found[node] = self._add("item", i, (together,), node.layout, op.__name__)
        waiting.clear()

    def _lower(self, node: Node) -> Node:
        operands = [self.found[x] for x in node.parents()]
        places = {self.places[x] for x in operands if not x.is_scalar and not _is_fill(x)} - {None}
        if not places:
            return self._new(node, self._replaced(node.args, None), node.layout, None)
        if len(places) > 1:
            raise InShards("it brings together leaves that are cut in different ways")
        (place,) = places
        assert place is not None
        if node.kind == "reduce" and len(node.args) == 1 and node.op in ("sum", "max", "min"):
            return self._new(node, self._replaced(node.args, place), node.layout, None)
        if node.kind != "pointwise" or node.op == "spread" or node.layout.shape != place.shape:
            what = node.name if node.kind != "fold" else "a reduction along an axis"
            raise InShards(f"{what}, {node.line}, mixes elements of a leaf that lies in shards")
        whole = [x for x in operands if self.places[x] is None and not x.is_scalar and not _is_fill(x)]
        strides = {x.layout.stride for x in operands if self.places[x] is not None}
        if whole or len(strides) > 1:
            raise InShards("it brings together leaves that are cut and leaves that are whole, or in several orders")
        layout = Layout(place.own, node.dtype, next(iter(strides)))
        return self._new(node, self._replaced(node.args, place), layout, place)

    def _replaced(self, value: Any, place: Place | None) -> Any:
        if isinstance(value, tuple):
            return tuple([self._replaced(x, place) for x in value])
        if not isinstance(value, Node):
            return value
        own = self.found[value]
        if place is None or not _is_fill(own) or own.is_scalar:
            return own
        if (own, place) not in self._fills:
            layout = Layout(place.own, own.dtype, torch.empty(place.own, device="meta").stride())
            self._fills[own, place] = self._add("pointwise", "fill", (own.args[0], place.own), layout, own.name)
        return self._fills[own, place]

    def _new(self, node: Node, args: tuple[Any, ...], layout: Layout, place: Place | None) -> Node:
        kwargs = {key: self._replaced(x, place) for key, x in node.kwargs.items()}
        return self._put(node.of_others(args, kwargs, len(self.nodes), layout), place)

    def _add(self, kind: Any, op: Any, args: tuple[Any, ...], layout: Layout, name: str) -> Node:
        number, size = len(self.nodes), math.prod(layout.shape)
        return self._put(Node(kind, op, args, {}, layout, layout.dtype, number, name, "", size, False), None)

    def _put(self, node: Node, place: Place | None) -> Node:
        self.places[node] = place
        self.nodes.append(node)
        return node


def _is_fill(node: Node) -> bool:
    return node.kind == "pointwise" and node.op == "fill"


def _groups(place: Place) -> tuple[Any, ...]:
    cut = [p.is_shard() and place.mesh.size(i) > 1 for i, p in enumerate(place.placements)]
    return tuple(place.mesh.get_group(i) for i, it_is in enumerate(cut) if it_is)


def _turns(nodes: Sequence[Node], inputs: Mapping[Node, Place | None]) -> dict[Node, int]:
    """How many collectives, one after the other, come before each node."""
    turns: dict[Node, int] = {}
    cut: dict[Node, bool] = {}
    for node in nodes:
        parents = node.parents()
        talks = [x.kind == "reduce" and cut[x.args[0]] for x in parents]
        turns[node] = max([turns[x] + said for x, said in zip(parents, talks, strict=True)], default=0)
        place = inputs.get(node)
        own = place is not None and bool(_groups(place))
        cut[node] = own or (node.kind == "pointwise" and any(cut[x] for x in parents))
    return turns


class Shards:
    """Which of some tensors lie in shards, and how: what a program for them hangs on.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._where = [i for i, x in enumerate(tensors) if is_dtensor(x)]
        self._specs = [tensors[i]._spec for i in self._where]
        self.key = tuple([(i, place_of(tensors[i])) for i in self._where])

    def opened(self, tensors: Sequence[Any]) -> list[Any] | None:
        """The tensors with what is here in the place of shards; `None` if some lie in another way."""
        opened = [*tensors]
        for i, spec in zip(self._where, self._specs, strict=True):
            x = tensors[i]
            if x is None:  # a gradient that is absent
                continue
            own = getattr(x, "_spec", None)
            if own is not spec and (own is None or own != spec):
                return None
            opened[i] = x._local_tensor
        return opened

    def like(self, tensors: Sequence[Any]) -> dict[Place | None, Any]:
        """A tensor for each of the ways in which some lie."""
        return {place: tensors[i] for i, place in self.key if tensors[i] is not None}


def wrap(outputs: Sequence[Any], places: Sequence[Place | None], like: Mapping[Place | None, Any]) -> list[Any]:
    """The outputs of a program as parts of wholes again."""
    pairs = zip(outputs, places, strict=True)
    return [x if p is None else wrapped_like(x, like[p], p.shape, p.placements) for x, p in pairs]


def local(x: Any) -> Any:
    """What of a leaf is here."""
    return x._local_tensor if is_dtensor(x) else x
