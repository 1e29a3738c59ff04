"""Means of gradients over replicas, at once or while the next step computes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation, apply_updates, check_transformation, init_empty_state
from .._checks import check_dtype, check_steps
from .._recipe import factory, uses_factory
from .._state_spec import HostCount
from .._torch import assert_later
from .._typing import Params, State, Updates
from ..tree._core import cast_leaf
from ._comm import BUCKET_BYTES, Departure, Peers, check_unbatched, check_whole, start_mean
from ._flight import land, launch, look_for


@factory
def all_reduce_mean(
    group: Any, *, dtype: torch.dtype | None = None, bucket_bytes: int = BUCKET_BYTES
) -> GradientTransformation:
    """Replace each process's gradients by their mean over a group.

    For plain replicas without `DistributedDataParallel`, and for what it leaves when gradients were gathered under its
    `no_sync`: as the first member of a chain. Every process of the group calls it with leaves of the same shapes. Of
    DTensors the shards are averaged with those of the peers, so the group is that of the replicas, not of the shards.

    Maths:
        update <- 1/W sum_r g_r                        over the W processes r of the group

    Args:
        group: A process group, a `DeviceMesh` of one axis, `(mesh, axis)`, or `None` for all processes. A group of one
            is left alone.
        dtype: What travels, and in which the sum is taken, such as bfloat16; `None` means that of the leaf, and float32
            for float16 and bfloat16.
        bucket_bytes: The most that goes in one collective, in bytes, >= 1; a larger leaf goes by itself. There is one
            bucket for each dtype and device, or several where it is full.

    Shapes:
        state: empty.

    Raises:
        TypeError, ValueError: at construction, if an argument is none of these.
        RuntimeError: in `update` under `vmap`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.distributed.all_reduce_mean(None), of.sgd(0.1))
        >>> tx.update(torch.ones(1), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    check_dtype(dtype=dtype)
    check_steps(bucket_bytes=bucket_bytes, at_least=1)
    peers = Peers(group)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        check_unbatched("all_reduce_mean", updates)
        if peers.size > 1:
            check_whole("all_reduce_mean", updates)
        return start_mean(updates, peers, dtype, bucket_bytes).wait(), state

    return GradientTransformation(init_empty_state, update)


class DeferredState(NamedTuple):
    """What is on its way, and the state of the rest."""

    pending: Tensor  # () bool, whether there is a mean that has not been used
    mean: Updates  # of the last step, like params: the averaged gradients or, while they travel, what this process sent
    inner: State
    ticket: HostCount = ()  # () int64 on the CPU, finds the mean that travels; 0 if it has arrived


@factory
def deferred(tx: GradientTransformation) -> GradientTransformation:
    """Let the mean of one step travel while the next one computes: each update uses the gradients before these.

    It hides the time of an all-reduce behind a whole step, at the price of gradients that are one step old. What comes
    up to the first all-reduce in the chain is done at once; the rest waits for the next call. The first call changes
    nothing, and after the last one step is outstanding: `drain` takes it. The state keeps what was sent until the mean
    is used: `flush` puts the mean there, before a state of the pure pair is saved or read. `Optimizer.state_dict` and
    `distributed.save` do that by themselves.

    Maths:
        update_t <- rest(mean_{t-1});  mean_t <- mean over replicas of head(g_t)

    Args:
        tx: A transformation, mostly a chain with `all_reduce_mean` in it; members before it and itself are the head. A
            compressed mean is waited for at once.

    Shapes:
        state: pending () bool; mean like params; the state of `tx`; ticket () int64 on the CPU.
        Memory: 1 x params beside that of `tx`, and as much for what is on its way.

    Raises:
        TypeError: at construction if `tx` is not a transformation.

    Differs from: Heat's `DataParallelOptimizer(blocking=False)`, which waits in the next forward pass, so that it uses
        no gradient late and hides less; that is for the loop to do, see `optimfn.optim`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.deferred(of.chain(of.distributed.all_reduce_mean(None), of.sgd(0.1)))
        >>> first, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> second, state = tx.update(torch.zeros(1), state)
        >>> first, second
        (tensor([0.]), tensor([-0.1000]))
    """
    check_transformation(tx=tx)
    keys = [*tx.members]
    cut = next((i + 1 for i, key in enumerate(keys) if uses_factory(tx.members[key], all_reduce_mean)), 0)
    last = tx.members[keys[cut - 1]] if cut else tx
    travels = last.recipe is not None and last.recipe.factory is all_reduce_mean
    courier = _Courier(**last.arguments) if travels else None
    head, tail = keys[: cut - travels] if cut else [], keys[cut:]

    def run(
        chosen: list[Any], updates: Updates, states: Any, params: Params | None, extra: dict[str, Any]
    ) -> tuple[Updates, Any]:
        if not cut:  # all of it is the mean, or comes after it
            return (updates, states) if travels or chosen is head else tx.rule(updates, states, params, **extra)
        new = dict(zip(keys, states, strict=True)) if isinstance(states, tuple) else dict(states)
        for key in chosen:
            updates, new[key] = tx.members[key].rule(updates, new[key], params, **extra)
        return updates, tuple(new.values()) if isinstance(states, tuple) else new

    def init(params: Params) -> DeferredState:
        device = next((x.device for x in tree.leaves(params)), torch.device("cpu"))
        pending = torch.zeros((), dtype=torch.bool, device=device)
        kept = tree.zeros_like(params, None if courier is None else courier.dtype)
        return DeferredState(pending, kept, tx.init(params), tree.host_count(params))

    def update(
        updates: Updates, state: DeferredState, params: Params | None = None, drain: bool = False, **extra: Any
    ) -> tuple[Updates, DeferredState]:
        check_whole("deferred", updates)
        arrived = state.mean if courier is None else courier.mean_of(state)
        if drain:
            sent, inner, ticket = arrived, state.inner, torch.zeros_like(state.ticket)
        else:
            given, inner = run(head, updates, state.inner, params, extra)
            sent, ticket = _kept(given, state.mean), torch.zeros_like(state.ticket)
            if courier is not None:
                sent, ticket = courier.send(sent, ticket)
        # A read on the host, so that nothing is computed twice; a compiler makes it a choice of elements.
        pending = state.pending if torch.compiler.is_compiling() else bool(state.pending)
        arrived = tree.map(lambda u, x: None if u is None else cast_leaf(x, u.dtype), updates, arrived)
        out, after = run(tail, arrived, inner, params, extra)
        new = DeferredState(torch.full_like(state.pending, not drain), sent, inner, ticket)
        return choose(pending, out, 0.0, params), new._replace(inner=tree.where(pending, after, inner))

    said = tx.eval_params
    evaluated = None if said is None else lambda state, params: said(state.inner, params)
    return GradientTransformation(init, update, takes_assigned=True, eval_params=evaluated)


class _Courier:
    """Means that travel while other steps compute; what was sent is in the state, with a ticket for it."""

    def __init__(self, group: Any, dtype: torch.dtype | None, bucket_bytes: int) -> None:
        self.peers, self.dtype, self.bucket_bytes = Peers(group), dtype, bucket_bytes

    def begin(self, sent: Updates) -> Departure:
        """Set a mean going."""
        return start_mean(sent, self.peers, self.dtype, self.bucket_bytes)

    def send(self, sent: Updates, ticket: Tensor) -> tuple[Updates, Tensor]:
        """What to keep of the gradients of a step until their mean is there."""
        if self.peers.size == 1 or torch.compiler.is_compiling():  # between graphs nothing is on its way
            return self.begin(sent).wait(), ticket
        device = next((x.device for x in tree.leaves(sent)), torch.device("cpu"))
        return sent, torch.full_like(ticket, launch(lambda: self.begin(sent), self.peers, device))

    def mean_of(self, state: DeferredState) -> Updates:
        """The mean of the step before, when it has arrived."""
        if torch.compiler.is_compiling():
            assert_later(state.ticket == 0, "a mean is on its way: call flush(state) before a compiled step")
            return state.mean
        ticket = int(state.ticket)
        return land(ticket, lambda: self.begin(state.mean), self.peers) if ticket else state.mean


def flush(state: State) -> State:
    """Wait for everything in a state that is on its way, before it is saved, copied or compared.

    Args:
        state: Any tree.

    Returns:
        The same with ordinary tensors; nothing else changes, and a step that is outstanding stays so, see `drain`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.deferred(of.distributed.all_reduce_mean(None))
        >>> _, state = tx.update(torch.ones(1), tx.init(torch.ones(1)))
        >>> of.distributed.flush(state).mean
        tensor([1.])
    """

    def change(_: Any, node: Any) -> tuple[bool, Any]:
        found = _arrived(node)
        return found is not None, None if found is None else found._replace(inner=flush(found.inner))

    return tree.map_nodes(change, state)


def flush_in_place(state: State) -> None:
    """The same in the tensors of the state, for an optimizer that is saved, be it by one process alone."""
    for _, node in tree.walk(state):
        found = _arrived(node, forget=True)
        if found is not None:
            for was, now in zip(tree.leaves(node.mean), tree.leaves(found.mean), strict=True):
                was.copy_(now)
            node.ticket.zero_()


def _arrived(node: Any, forget: bool = False) -> DeferredState | None:
    """A state with the mean that was on its way; `None` for what is none, or knows of no such mean."""
    if not isinstance(node, DeferredState) or not isinstance(node.ticket, Tensor) or not int(node.ticket):
        return None
    mean = look_for(int(node.ticket), forget=forget)
    return None if mean is None else node._replace(mean=mean, ticket=torch.zeros_like(node.ticket))


def drain(tx: GradientTransformation, params: Params, state: State) -> tuple[Params, State]:
    """Take the step that `deferred` has outstanding: before an evaluation, or at the end.

    Behind `Optimizer` it is `optimizer.step(drain=True)`, whatever the gradients are.

    Args:
        tx: The transformation, with `deferred` in it.
        params: The parameters.
        state: Its state.

    Returns:
        The parameters and the state after that step; if none was outstanding, as they were.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.deferred(of.sgd(0.1))
        >>> params = torch.ones(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> params = of.apply_updates(params, updates)
        >>> of.distributed.drain(tx, params, state)[0]
        tensor([0.9000])
    """
    updates, state = tx.update(tree.zeros_like(params), state, params, drain=True)
    return apply_updates(params, updates), state


def _kept(sent: Updates, old: Updates) -> Updates:
    """Gradients as a state keeps them: a copy, and nothing as zero."""

    def leaf(was: Tensor, now: Any) -> Any:
        return torch.zeros_like(was) if now is None else now.to(was.dtype, copy=True)

    return tree.map(leaf, old, sent)
