"""Compressors in the places where torch's own wrappers average gradients, in the middle of the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._compressed import compressed_mean
from ._compressors import Compressor


def ddp_comm_hook(
    compressor: Compressor, group: Any = None, *, error_feedback: bool = True
) -> Callable[[Any, Any], torch.futures.Future[Tensor]]:
    """Make a communication hook for `DistributedDataParallel` of a compressor.

    `ddp.register_comm_hook(None, ddp_comm_hook(powersgd(1)))`. What it remembers lies in the hook and is not saved;
    that of `compressed_mean` in the chain, with gradients gathered under `no_sync`, is. When DDP sorts its buckets
    anew, after the first backward pass, the errors go along, and the factors of `powersgd` are drawn again.

    Args:
        compressor: As for `compressed_mean`.
        group: As there; that of the wrapper.
        error_feedback: As there.

    Raises:
        TypeError: if `compressor` is none.
    """
    average = _remembering(compressor, group, error_feedback)

    def hook(state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        average([id(p) for p in bucket.parameters()], bucket.gradients())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    hook.__annotations__["bucket"] = vars(dist)["GradBucket"]  # which DDP looks for
    return hook


def fsdp_all_reduce_hook(
    compressor: Compressor, group: Any, *, error_feedback: bool = True
) -> Callable[[Tensor], None]:
    """Make the all-reduce over replicas of modules that `fully_shard` has cut, of a compressor.

    For each module one of its own: `module.set_all_reduce_hook(fsdp_all_reduce_hook(topk(0.01), mesh["replicate"]))`,
    where `fully_shard` was given the mesh of the shards alone. It is given what this process has of all gradients of
    the module as one vector, which `powersgd` sends as it is. What it remembers lies in the hook and is not saved.

    Args:
        compressor: As for `compressed_mean`.
        group: As there; the replicas of this shard.
        error_feedback: As there.

    Raises:
        TypeError: if `compressor` is none.
    """
    average = _remembering(compressor, group, error_feedback)
    return lambda reduced: average([0], [reduced])


def _remembering(compressor: Compressor, group: Any, error_feedback: bool) -> Callable[[list[int], list[Tensor]], None]:
    """What writes the means into gradients, and keeps a state for each list of them, and an error for each of them."""
    tx = compressed_mean(group, compressor, error_feedback=error_feedback)
    states: dict[tuple[int, ...], Any] = {}
    errors: dict[int, Tensor] = {}

    @torch.no_grad()
    def average(names: list[int], grads: list[Tensor]) -> None:
        own = [*grads]
        state = states.get((*names, *(g.numel() for g in own)))
        if state is None:  # the first time, or DDP has sorted its buckets anew
            for key in [key for key in states if {*key[: len(key) // 2]} & {*names}]:
                del states[key]
            state = tx.init(own)
            if error_feedback:
                known = [errors.get(name, e) for name, e in zip(names, state.error, strict=True)]
                fitting = [x if x.shape == e.shape else e for x, e in zip(known, state.error, strict=True)]
                state = state._replace(error=fitting)
        updates, state = tx.update(own, state)
        states[*names, *(g.numel() for g in own)] = state
        if error_feedback:
            errors.update(zip(names, state.error, strict=True))
        for g, u in zip(grads, updates, strict=True):
            g.copy_(u)

    return average
