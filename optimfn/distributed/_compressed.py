"""Means over replicas of which only a compressed form is sent, and what is left out comes later."""

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._checks import check_steps
from .._recipe import factory
from .._state_spec import HostCount, LeafSpec
from .._torch import is_dtensor, shard, shard_like, wrapped_like
from .._typing import Params, State, Updates
from ..tree._shards import local, wrapped
from ._comm import Peers, check_whole, complex_again, mean
from ._compressors import Compressor
from ._owners import OwnerState


class CompressedMeanState(NamedTuple):
    """What this replica has not sent yet, and what the compressor remembers."""

    error: Annotated[Updates, LeafSpec("per_replica")]  # like params; empty without error feedback
    compressor: State
    count: HostCount = ()  # () int64 on the CPU, steps taken; empty if it compresses from the start


@factory
def compressed_mean(
    group: Any, compressor: Compressor, *, error_feedback: bool = True, start: int = 0
) -> GradientTransformation:
    """Replace each process's gradients by a mean over a group for which fewer bytes are sent.

    In the place of `all_reduce_mean`, where the network is slower than the arithmetic. With error feedback the part of
    a gradient that was not sent is added to the next, so that nothing is lost but only late. Every process of the group
    calls it with leaves of the same shapes; a leaf without gradient has none anywhere.

    Maths:
        c_r <- g_r + e_r
        update <- mean of what was sent of c_r over the W replicas, by the compressor
        e_r <- c_r - what was sent of it

    Args:
        group: As for `all_reduce_mean`. A group of one compresses all the same.
        compressor: `cast`, `powersgd`, `topk`, `sign_1bit`, `int8_block`, or a `Compressor` of one's own.
        error_feedback: Whether what was not sent is kept. Without it the compressor's error is lost in every step.
        start: Steps taken with the exact mean before, a whole number, >= 0. The count is read on the host.

    Shapes:
        state: error like params, each replica's own; for the shards of DTensors with an axis of the replicas in front.
            It survives `distributed.save` and `load` exactly; among another number of replicas each gets the mean.
        Memory: 1 x params; `powersgd` its factors, `sign_1bit` and `int8_block` 1/W x params beside.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `init`, if `sign_1bit` or `int8_block` are given the shards of DTensors, or `powersgd` uneven
            ones; or if the group is no axis of their mesh.
        RuntimeError: in `update` under `vmap`.

    Source: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.topk(0.5))
        >>> g = torch.tensor([3.0, 2.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([3., 0.]), tensor([0., 4.]))
    """
    if not isinstance(compressor, Compressor):
        raise TypeError(f"compressor must be a Compressor, such as cast(torch.bfloat16), got {compressor!r}")
    check_steps(start=start)
    peers = Peers(group)

    def init(params: Params) -> CompressedMeanState:
        for p in filter(is_dtensor, tree.leaves(params)):
            _check_shards(compressor, p)
        error = tree.map(lambda p: _zeros(p, peers), params) if error_feedback else ()
        count = tree.host_count(params) if start else ()
        return CompressedMeanState(error, compressor.init(tree.map(lambda p: _real(local(p)), params), peers), count)

    def update(
        updates: Updates, state: CompressedMeanState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, CompressedMeanState]:
        check_whole("compressed_mean", updates)
        counted: Any = state.count
        if start:
            state = state._replace(count=counted + 1)
        if start and int(counted) < start:
            return mean(updates, peers), state
        grads, form = tree.flatten(updates)
        errors, error_form = tree.flatten(state.error)
        errors = errors if error_feedback else [None] * len(grads)
        likes = errors if error_feedback or params is None else tree.flatten(params)[0]
        whole: list[Any] = [_sum(g, e, like) for g, e, like in zip(grads, errors, likes, strict=True)]
        chosen = [i for i, c in enumerate(whole) if c is not None]
        real = [_real(whole[i]) for i in chosen]
        means, sent, kept = compressor.mean(real, state.compressor, peers)
        if not error_feedback and isinstance(kept, OwnerState):
            kept = state.compressor  # the owners keep no error either
        for i, c, found, gone in zip(chosen, real, means, sent, strict=True):
            if grads[i] is not None:
                if error_feedback:
                    errors[i] = _put(complex_again(c - gone, whole[i]), errors[i])
                grads[i] = wrapped(complex_again(found, whole[i]).to(grads[i].dtype), grads[i])
        error = error_form.unflatten(errors) if error_feedback else ()
        return form.unflatten(grads), state._replace(error=error, compressor=kept)

    return GradientTransformation(init, update)


def _check_shards(compressor: Compressor, p: Any) -> None:
    even = all(
        not place.is_shard() or p.shape[place.dim] % p.device_mesh.size(i) == 0 for i, place in enumerate(p.placements)
    )
    if compressor.shards == "none" or (compressor.shards == "even" and not even):
        what = "whole leaves" if compressor.shards == "none" else "shards of one shape"
        raise ValueError(f"{compressor!r} needs {what}, got {p.placements} of {tuple(p.shape)}: take topk or cast")


def _zeros(p: Any, peers: Peers) -> Any:
    """Room for what is each replica's own: like a leaf, and for shards with an axis of the replicas in front."""
    if not is_dtensor(p):
        return torch.zeros_like(p, requires_grad=False)
    mesh, names = p.device_mesh, [p.device_mesh.get_group(i).group_name for i in range(p.device_mesh.ndim)]
    if peers.name not in names or p.placements[names.index(peers.name)].is_shard():
        raise ValueError(f"group must be an axis of the mesh of a leaf, along which it is no shard; it lies at {p!r}")
    axis = names.index(peers.name)
    placements = [shard_like(place, place.dim + 1) if place.is_shard() else place for place in p.placements]
    placements[axis] = shard(0)
    own = torch.zeros_like(local(p), requires_grad=False)[None]
    return wrapped_like(own, p, (mesh.size(axis), *p.shape), placements)


def _own(x: Any) -> Tensor:
    """What this replica has of a leaf that is each replica's own."""
    own: Tensor = local(x)[0] if is_dtensor(x) else x
    return own


def _put(own: Tensor, like: Any) -> Any:
    """The same leaf with another content."""
    if not is_dtensor(like):
        return own.to(like.dtype)
    return wrapped_like(own.to(like.dtype)[None], like, like.shape, like.placements)


def _sum(g: Any, e: Any, like: Any) -> Tensor | None:
    """A gradient and what was kept of those before, here; zeros for none, so that all leaves keep their places."""
    if g is None:
        return None if like is None else torch.zeros_like(_own(like) if e is not None else local(like))
    here: Tensor = local(g)
    return here if e is None else here + _own(e)


def _real(x: Tensor) -> Tensor:
    return tree.as_real(x.detach())
