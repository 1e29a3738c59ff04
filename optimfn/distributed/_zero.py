"""The state of an optimizer shared out among replicas: ZeRO."""

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._checks import check_choice
from .._recipe import Recorded, factory
from .._state_spec import map_mirrors, values_of
from .._torch import is_dtensor, local_shard, placed_like, replicate, wrapped_like
from .._typing import Params, State, Tree, Updates
from ..tree._shards import map_rows
from ._comm import BUCKET_BYTES, Peers, _buckets, all_gather, check_whole, mesh_of, reduce_scatter
from ._flat import Flat, together

_ALL = 1 << 62  # bytes: no bucket is full


@factory
def zero(
    inner: GradientTransformation,
    group: Any,
    *,
    stage: int = 1,
    averaged: bool = False,
    layout: Literal["leaves", "flat"] = "leaves",
) -> GradientTransformation:
    """Share a rule out among replicas: each keeps its part of the state, and makes its part of the updates.

    For plain replicas, without FSDP2, that have the memory for the parameters and not for the state. Every leaf is cut
    along its longest axis into DTensors, but for single numbers, and the rule steps those: the gradients go to whoever
    needs them, as their mean over the replicas, and the updates come back to all. Checkpoints are those of the inner
    rule, on any number of processes; with one vector for all leaves they are of vectors, see `relaid`.

    Maths:
        g_r <- part r of the mean of the gradients        on each replica r
        u_r, state_r <- inner(g_r, state_r, part r of params)
        updates <- the parts u of all replicas

    Args:
        inner: The rule. One that works element by element sends nothing itself; norms and whole matrices send what
            they do on shards.
        group: The replicas: a process group, a `DeviceMesh` of one axis, a pair of a mesh and one of its axes, or
            `None` for all processes.
        stage: 1 sends the gradients in one piece, and the updates in one; 2 in buckets of 25 MiB, so that there is
            never a second copy of all of them. The numbers are the same.
        averaged: Whether the gradients are the mean already, as after DDP; nothing is sent for them then.
        layout: `"leaves"` cuts each leaf. `"flat"` cuts one vector of all leaves of a dtype into equal parts, so that
            many short leaves are shared out as well and the rule has one leaf to step. The rule must be `elementwise`
            then, and every parameter have a gradient.

    Shapes:
        params: needed if `inner` needs them; whole on every replica.
        state: that of `inner`, as DTensors; with `"flat"` for a dict of vectors, named by their dtypes.
        Memory: that of `inner`, divided by the number of replicas.
        Sends: 1 reduce-scatter and 1 all-gather of the size of the parameters, for each dtype.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value; also if a rule inside takes no
            shards or, with `"flat"`, is not elementwise, see `GradientTransformation`.
        TypeError: in `init` and `update`, if leaves lie in shards already.
        RuntimeError: under `vmap`.

    Differs from: torch's ZeroRedundancyOptimizer, which gives each process whole parameters, gathers the state in one
        process to save it, and sends once for each process and group.

    Source: Rajbhandari et al., 2019, arXiv:1910.02054, stages 1 and 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.zero(of.adam(0.1), None)  # alone, it is the inner rule
        >>> params = torch.tensor([1.0])
        >>> updates, state = tx.update(torch.tensor([2.0]), tx.init(params), params)
        >>> updates
        tensor([-0.1000])
    """
    check_transformation(inner=inner)
    check_choice("stage", stage, (1, 2))
    for own in _within(inner):
        if not own.takes_shards:
            raise ValueError(f"zero cuts leaves into shards, which is nothing for {own!r}")
    check_choice("layout", layout, ("leaves", "flat"))
    if layout == "flat":
        _check_elementwise(inner)
    most = _ALL if stage == 1 else BUCKET_BYTES
    shares: Any = _Shares(Peers(group), most) if layout == "leaves" else Flat(Peers(group), most)

    def init(params: Params) -> State:
        _refuse_shards(params)
        if layout == "flat" and isinstance(params, tree.ParamsPlaceholder):
            return inner.init(torch.zeros(()))  # no part of the state is like the parameters
        return inner.init(shares.cut(tree.narrow(params)))

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        check_whole("zero", updates)
        _refuse_shards((updates, params))
        # The rule is to see parameters of half precision, and by its own look at them float32 in their place.
        given = None if params is None else tree.narrow(params)
        own = shares.cut(updates, given) if averaged else shares.mean(updates, given)
        made, state = inner.update(own, state, None if given is None else shares.cut(given), **extra)
        return shares.whole(made, updates, given), state

    def eval_params(state: State, params: Params) -> Params:
        assert inner.eval_params is not None
        return shares.whole(inner.eval_params(state, shares.cut(params)), params)

    promises: Any = {
        "leafwise": inner.leafwise and layout == "leaves",
        "eval_params": None if inner.eval_params is None else eval_params,
    }
    return GradientTransformation(init, update, **promises)


def _check_elementwise(inner: GradientTransformation) -> None:
    """Refuse a rule that sees leaves, by the name of the innermost part that does."""
    seeing = [own for own in _within(inner) if not own.elementwise]
    if seeing and not inner.elementwise:
        raise ValueError(
            f"zero with layout='flat' lays all leaves out as one vector, and {seeing[-1]!r} is not elementwise: put it "
            "outside of zero, or use layout='leaves'"
        )


def _within(value: Any) -> Iterator[GradientTransformation]:
    """A transformation and all that it was made of."""
    if isinstance(value, GradientTransformation):
        yield value
        yield from _within([*value.members.values()])
    if isinstance(value, Recorded):
        yield from _within([*value.arguments.values()])
    elif isinstance(value, dict):
        yield from _within([*value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _within(one)


def relaid(state: State, old: GradientTransformation, new: GradientTransformation, params: Params) -> State:
    """Lay the state of a rule out for another place of it: by itself, or in `zero` of another layout or other replicas.

    So a run that began with one vector goes on with leaves, or as one process, and the other way round. On all replicas
    of both; while it lasts each has the whole state.

    Args:
        state: A state of `old`.
        old: The rule, or `zero` of it.
        new: The same rule, or `zero` of it.
        params: The parameters, whole on every replica.

    Returns:
        A state of `new`.

    Raises:
        ValueError: if the two are not of the same rule.

    Example:
        >>> import torch, optimfn as of
        >>> rule, params = of.trace(0.9), {"a": torch.ones(2), "b": torch.ones(1)}
        >>> tx = of.distributed.zero(rule, None, layout="flat")
        >>> tx.init(params)
        TraceState(trace={'float32': float32[3]})
        >>> of.distributed.relaid(tx.init(params), tx, rule, params)
        TraceState(trace={'a': float32[2], 'b': float32[1]})
    """
    check_transformation(old=old, new=new)
    rules = [tx.arguments["inner"] if _is_zero(tx) else tx for tx in (old, new)]
    if rules[0] != rules[1]:
        raise ValueError(f"a state of {rules[0]!r} is none of {rules[1]!r}")
    template = values_of(rules[0])
    if _is_flat(old):
        shares = Flat(Peers(old.arguments["group"]), _ALL)
        state = map_mirrors(template, lambda part: shares.apart(part, params), state)
    state = tree.whole(state)
    if _is_flat(new):
        state = map_mirrors(template, lambda part: together(part, params), state)
    return tree.map(placed_like, state, new.init(params))


def _is_zero(tx: GradientTransformation) -> bool:
    return tx.recipe is not None and tx.recipe.factory is zero


def _is_flat(tx: GradientTransformation) -> bool:
    return _is_zero(tx) and tx.arguments["layout"] == "flat"


class _Shares:
    """Trees that all replicas have as a whole, and the parts of each."""

    def __init__(self, peers: Peers, most: int) -> None:
        self.peers, self.most = peers, most

    def cut(self, leaves: Tree, params: Params | None = None) -> Tree:
        """The parts of this replica, as DTensors, and numbers as they are; nothing is sent."""
        if self.peers.size == 1:
            return leaves

        def part(x: Tensor) -> Any:
            span = _Span(x.shape, self.peers)
            return self._wrapped(span.own(x.detach()), span) if span.shape else x.detach()

        return tree.map(part, leaves)

    def mean(self, leaves: Tree, params: Params | None = None) -> Tree:
        """The same of the mean over the replicas: one collective for each bucket."""
        if self.peers.size == 1:
            return leaves

        def scatter(rows: Sequence[Sequence[Any]]) -> list[Any]:
            found = [x for (x,) in rows]
            spans = [_Span(x.shape, self.peers) for x in found]
            for places in _buckets(found, None, self.most):
                parts = [spans[i].rows(tree.as_real(found[i].detach())) for i in places]
                # Each its part, as DDP does it, so that low precision does not overflow.
                row = reduce_scatter(torch.cat(parts, 1) / self.peers.size, self.peers)
                pieces = torch.split(row, [part.shape[1] for part in parts])
                for i, piece in zip(places, pieces, strict=True):
                    own = spans[i].unpadded(piece, found[i].is_complex())
                    found[i] = self._wrapped(own, spans[i]) if spans[i].shape else own
            return found

        return map_rows(scatter, leaves)

    def whole(self, leaves: Tree, like: Tree = None, params: Params | None = None) -> Tree:
        """Trees of parts as a whole, on all replicas: one collective for each bucket."""
        if self.peers.size == 1:
            return leaves

        def gather(rows: Sequence[Sequence[Any]]) -> list[Any]:
            found = [x for (x,) in rows]
            cut = [i for i, x in enumerate(found) if is_dtensor(x)]
            spans = [_Span(found[i].shape, self.peers) for i in cut]
            owns = [local_shard(self._placed(found[i], span)) for i, span in zip(cut, spans, strict=True)]
            for places in _buckets(owns, None, self.most):
                parts = [spans[i].padded(tree.as_real(owns[i])) for i in places]
                together = all_gather(torch.cat(parts), self.peers)
                pieces = torch.split(together, [part.numel() for part in parts], 1)
                for i, piece in zip(places, pieces, strict=True):
                    found[cut[i]] = spans[i].joined(piece, owns[i].is_complex())
            return found

        return map_rows(gather, leaves)

    def _wrapped(self, own: Tensor, span: "_Span") -> Any:
        tensors = importlib.import_module("torch.distributed.tensor")
        mesh = mesh_of(self.peers.process_group, own.device.type)
        like = tensors.DTensor.from_local(own.new_zeros(()), mesh, [replicate()], run_check=False)
        return wrapped_like(own, like, span.shape, [tensors.Shard(span.axis) if span.shape else replicate()])

    def _placed(self, x: Any, span: "_Span") -> Any:
        """What an inner rule returns, as the leaves that it was given lie."""
        tensors = importlib.import_module("torch.distributed.tensor")
        wanted = (tensors.Shard(span.axis) if span.shape else replicate(),)
        return x if x.placements == wanted else x.redistribute(placements=wanted)


class _Span:
    """How a leaf is cut: along its longest axis, into parts of which the last may be shorter or empty."""

    def __init__(self, shape: Sequence[int], peers: Peers) -> None:
        self.shape, self.size = torch.Size(shape), peers.size
        self.axis = max(range(len(shape)), key=lambda axis: (shape[axis], -axis)) if shape else 0
        self.length = shape[self.axis] if shape else 1
        self.step = -(-self.length // peers.size)
        self.first = min(self.step * peers.rank, self.length)
        self.here = min(self.step, self.length - self.first)
        self.rest = [n for axis, n in enumerate(shape) if axis != self.axis]

    def own(self, x: Tensor) -> Tensor:
        """The part of this replica, in a layout of its own."""
        return x.narrow(self.axis, self.first, self.here).contiguous() if self.shape else x

    def rows(self, x: Tensor) -> Tensor:
        """The parts of all replicas, one a row and all as long; of a number, the number itself."""
        if not self.shape:
            return x.reshape(1, -1).expand(self.size, -1)
        moved = x.movedim(self.axis, 0)
        row = self.step * math.prod(moved.shape[1:])
        return self._filled(moved, self.size * self.step).reshape(self.size, row)

    def padded(self, x: Tensor) -> Tensor:
        """The part of this replica as a row."""
        return self._filled(x.movedim(self.axis, 0), self.step).reshape(-1) if self.shape else x.reshape(-1)

    def unpadded(self, row: Tensor, is_complex: bool) -> Tensor:
        """The part of this replica from a row."""
        if not self.shape:
            return _back(row.reshape(-1), is_complex, ())
        own = _back(row, is_complex, (self.step, *self.rest))
        return own.narrow(0, 0, self.here).movedim(0, self.axis).contiguous()

    def joined(self, rows: Tensor, is_complex: bool) -> Tensor:
        """The leaf from the rows of all replicas."""
        if not self.shape:
            return _back(rows[0], is_complex, ())
        whole = _back(rows, is_complex, (self.size * self.step, *self.rest))
        return whole.narrow(0, 0, self.length).movedim(0, self.axis).contiguous()

    def _filled(self, x: Tensor, length: int) -> Tensor:
        missing = length - x.shape[0]
        return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _back(x: Tensor, is_complex: bool, shape: Sequence[int]) -> Tensor:
    return torch.view_as_complex(x.reshape(*shape, 2)) if is_complex else x.reshape(tuple(shape))


def _refuse_shards(leaves: Tree) -> None:
    for path, x in tree.leaves_with_path(leaves):
        if is_dtensor(x):
            raise TypeError(
                f"zero takes whole leaves, and {tree.join_path(path) or 'the tree'} is a DTensor: step it by the inner "
                "rule, whose state lies in shards then"
            )
