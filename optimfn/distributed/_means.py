"""Means of gradients over replicas, at once or while the next step computes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation, apply_updates, check_transformation, init_empty_state
from .._checks import check_dtype, check_steps
from .._recipe import factory, uses_factory
from .._torch import is_in_flight
from .._typing import Params, State, Updates
from ..tree._core import cast_leaf
from ..tree._shards import local
from ._comm import BUCKET_BYTES, Peers, check_unbatched, check_whole, start_mean, waited


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

    def update(
        updates: Updates, state: State, params: Params | None = None, in_flight: bool = False, **extra: Any
    ) -> tuple[Updates, State]:
        check_unbatched("all_reduce_mean", updates)
        if peers.size == 1:
            return updates, state
        check_whole("all_reduce_mean", updates)
        departure = start_mean(updates, peers, dtype, bucket_bytes)
        return departure.in_flight() if in_flight else departure.wait(), state

    return GradientTransformation(init_empty_state, update)


class DeferredState(NamedTuple):
    """What is on its way, and the state of the rest."""

    pending: Tensor  # () bool, whether there is a mean that has not been used
    mean: Updates  # the gradients of the last step, averaged, like params; perhaps still on their way
    inner: State


@factory
def deferred(tx: GradientTransformation) -> GradientTransformation:
    """Let the mean of one step travel while the next one computes: each update uses the gradients before these.

    It hides the time of an all-reduce behind a whole step, at the price of gradients that are one step old. What comes
    up to the first all-reduce in the chain is done at once; the rest waits for the next call. The first call changes
    nothing, and after the last one step is outstanding: `drain` takes it. `flush` waits, before a state is saved or
    read by anything but torch's operators.

    Maths:
        update_t <- rest(mean_{t-1});  mean_t <- mean over replicas of head(g_t)

    Args:
        tx: A transformation, mostly a chain with `all_reduce_mean` in it; members before it and itself are the head. A
            compressed mean is waited for at once.

    Shapes:
        state: pending () bool; mean like params; the state of `tx`.
        Memory: 1 x params beside that of `tx`.

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

    def travels(member: GradientTransformation) -> bool:
        return member.recipe is not None and member.recipe.factory is all_reduce_mean

    def sent_dtype() -> torch.dtype | None:
        last = tx.members[keys[cut - 1]] if cut else tx
        found: torch.dtype | None = last.arguments["dtype"] if travels(last) else None
        return found

    def run(
        chosen: list[Any], updates: Updates, states: Any, params: Params | None, extra: dict[str, Any]
    ) -> tuple[Updates, Any]:
        new = dict(zip(keys, states, strict=True)) if isinstance(states, tuple) else dict(states)
        for key in chosen:
            member = tx.members[key]
            own = extra | {"in_flight": True} if travels(member) else extra
            updates, new[key] = member.rule(updates, new[key], params, **own)
        return updates, tuple(new.values()) if isinstance(states, tuple) else new

    def head(updates: Updates, inner: State, params: Params | None, extra: dict[str, Any]) -> tuple[Updates, State]:
        if travels(tx):
            return tx.rule(updates, inner, params, in_flight=True, **extra)
        return run(keys[:cut], updates, inner, params, extra) if cut else (updates, inner)

    def rest(updates: Updates, inner: State, params: Params | None, extra: dict[str, Any]) -> tuple[Updates, State]:
        if travels(tx):
            return updates, inner
        return run(keys[cut:], updates, inner, params, extra) if cut else tx.rule(updates, inner, params, **extra)

    def init(params: Params) -> DeferredState:
        device = next((x.device for x in tree.leaves(params)), torch.device("cpu"))
        pending = torch.zeros((), dtype=torch.bool, device=device)
        return DeferredState(pending, tree.zeros_like(params, sent_dtype()), tx.init(params))

    def update(
        updates: Updates, state: DeferredState, params: Params | None = None, drain: bool = False, **extra: Any
    ) -> tuple[Updates, DeferredState]:
        check_whole("deferred", updates)
        sent, inner = (state.mean, state.inner) if drain else head(updates, state.inner, params, extra)
        # A read on the host, so that nothing is computed twice; a compiler makes it a choice of elements.
        pending = state.pending if torch.compiler.is_compiling() else bool(state.pending)
        arrived = tree.map(lambda u, x: None if u is None else cast_leaf(x, u.dtype), updates, waited(state.mean))
        out, after = rest(arrived, inner, params, extra)
        new = DeferredState(torch.full_like(state.pending, not drain), _kept(sent, state.mean), inner)
        return choose(pending, out, 0.0, params), new._replace(inner=tree.where(pending, after, inner))

    said = tx.eval_params
    last = None if said is None else lambda state, params: said(state.inner, params)
    return GradientTransformation(init, update, takes_assigned=True, eval_params=last)


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
    return waited(state)


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
    """What was sent, as a state keeps it: what is on its way as it is, the rest as a copy, nothing as zero."""

    def leaf(was: Tensor, now: Any) -> Any:
        if now is None:
            return torch.zeros_like(was)
        return now if is_in_flight(local(now)) else now.to(was.dtype, copy=True)

    return tree.map(leaf, old, sent)
