"""DASO: nodes that step together inside and exchange parameters now and then, without waiting for each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import becomes
from .._base import GradientTransformation, check_transformation
from .._checks import check_dtype, check_nonnegative, check_steps, need_params
from .._recipe import factory
from .._state_spec import LeafSpec
from .._transforms._plateau import DetectPlateauState, detect_plateau
from .._typing import Assign, Count, Params, State, Updates
from ._comm import Peers, all_reduce, check_whole
from ._exchange import Exchange
from ._phases import Epochs, Phase, after_batch, after_epoch


class DasoState(NamedTuple):
    """The state of the inner rule, where the schedule stands, and what is on its way."""

    inner: Annotated[State, LeafSpec("per_replica")]  # of the inner rule, each process's own
    phase: Annotated[Tensor, LeafSpec("host")]  # (11,) int64 on the CPU, where the schedule stands
    seen: DetectPlateauState  # the losses of the epochs
    sent: Annotated[Params, LeafSpec("per_replica")]  # what this process has sent, like params
    ticket: Annotated[Count, LeafSpec("per_replica")]  # () int64 on the CPU, finds the collective

    @property
    def params_are_own(self) -> bool:
        """Whether each process has other parameters, as checkpoints must know: most of the time they do."""
        return True


EndEpoch = Callable[..., DasoState]


@dataclass(frozen=True, eq=False, repr=False)
class Daso(GradientTransformation):
    """A transformation that is told of the end of an epoch.

    Args:
        end_epoch: `end_epoch(state, loss, *, averaged=False) -> state`.
    """

    end_epoch: EndEpoch | None = None


@factory
def daso(
    inner: GradientTransformation,
    mesh: Any,
    total_epochs: int,
    batches: int,
    *,
    warmup_epochs: int = 4,
    cooldown_epochs: int = 4,
    stability_level: float = 0.05,
    max_global_skips: int = 8,
    skip_reduction_factor: int = 2,
    local_skip_factor: int = 4,
    downcast_type: torch.dtype = torch.bfloat16,
    exact: bool = False,
) -> Daso:
    """Average gradients inside a node, and exchange parameters among nodes without waiting for them.

    In the first and the last epochs the nodes take their mean after every batch. In between they send every so many
    batches, go on, and merge what arrives with what they have become; whenever the loss stops improving they do so more
    often, and after that rarely again. Call `state = tx.end_epoch(state, loss)` after the last batch of an epoch.

    Maths:
        g <- mean of g in the node                      but in the batches that are skipped
        x <- x + inner update
        x <- mean over nodes of x                       in warm-up and cool-down, and at the end of an epoch
        x <- (2 S x + sum over nodes of x S batches ago) / (2 S + nodes)      in between

    Args:
        inner: The rule of every batch.
        mesh: A `DeviceMesh` of two axes: the nodes, and the processes of each.
        total_epochs: Epochs in all, >= 1.
        batches: Batches of an epoch, >= 1, the same on all processes.
        warmup_epochs: Epochs before the nodes begin to go on without waiting, >= 0.
        cooldown_epochs: Epochs after they have stopped to, >= 0.
        stability_level: Fraction by which the loss must fall within three epochs, no unit, >= 0.
        max_global_skips: Batches between two sends at most, >= 0.
        skip_reduction_factor: What divides that at a plateau, >= 1.
        local_skip_factor: Times that a node averages its gradients between two sends, at most, >= 1.
        downcast_type: The dtype of what is sent.
        exact: Do what Heat does: send in full precision in between, from one process of a node for all, in turn, and
            with four batches at first whatever `max_global_skips` is. Else each process sends its part of the mean of
            its node, in `downcast_type`, and what was sent is merged as soon as it should be.

    Shapes:
        params: needed, all of them on every process.
        state: that of `inner`; phase (11,) int64 on the CPU; sent like params, float32 for float16 and bfloat16.
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        TypeError: in `init`, if a parameter is a DTensor.
        ValueError: in `update` if no parameters are given; with `exact`, if one that is to be sent is NaN.

    Source: Coquelin et al., 2022, arXiv:2104.05588; heat.optim.DASO.

    Example:
        >>> import optimfn as of
        >>> of.distributed.daso(of.sgd(0.1), "cluster", total_epochs=10, batches=100)
        Traceback (most recent call last):
        TypeError: mesh must be a DeviceMesh of two axes, nodes and the processes of each, got 'cluster'
    """
    check_transformation(inner=inner)
    check_steps(total_epochs=total_epochs, batches=batches, at_least=1)
    check_steps(warmup_epochs=warmup_epochs, cooldown_epochs=cooldown_epochs, max_global_skips=max_global_skips)
    check_steps(skip_reduction_factor=skip_reduction_factor, local_skip_factor=local_skip_factor, at_least=1)
    check_nonnegative(stability_level=stability_level)
    check_dtype(downcast_type=downcast_type)
    exchange = Exchange(mesh, exact)
    detector = detect_plateau(patience=2, threshold=stability_level)
    skips = max_global_skips, skip_reduction_factor, local_skip_factor
    epochs = Epochs(total_epochs, warmup_epochs, cooldown_epochs, *skips, exact)

    def init(params: Params) -> DasoState:
        exchange.check_leaves(params)
        host = tree.host_count(params)
        phase = torch.tensor(Phase(), dtype=torch.int64, device="cpu")
        return DasoState(inner.init(params), phase, detector.init(), tree.init_moment(params), host)

    def update(
        updates: Updates, state: DasoState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DasoState]:
        need_params("daso", params)
        check_whole("daso", updates)
        now = Phase.unpack(state.phase)
        if now.syncs_local:
            updates = exchange.average_local(updates)
        step, own = inner.rule(updates, state.inner, params, **extra)
        then, actions = after_batch(now, batches - 1, exchange.local.size, exact)
        state = state._replace(inner=own, phase=then.pack(state.phase))
        if not actions:
            return step, state
        here = tree.widen(tree.map(becomes, tree.narrow(params), step))
        dtype = dtype_of(now, downcast_type, exact)
        if exact:
            check_no_nan(here)
        new, sent, ticket = exchange.carry_out(actions, here, state.sent, int(state.ticket), dtype)
        state = state._replace(sent=sent, ticket=torch.full_like(state.ticket, ticket))
        return step if new is here else tree.map(Assign, new), state

    def end_epoch(state: DasoState, loss: float | Tensor, *, averaged: bool = False) -> DasoState:
        if not averaged:
            device = next((x.device for x in tree.leaves(state.sent)), torch.device("cpu"))
            loss = mean_loss(loss, exchange, device)
        now, seen = after_epoch(Phase.unpack(state.phase), state.seen, loss, detector, epochs)
        return state._replace(phase=now.pack(state.phase), seen=seen)

    return Daso(init, update, takes_shards=False, end_epoch=end_epoch)


def dtype_of(now: Phase, downcast_type: torch.dtype, exact: bool) -> torch.dtype | None:
    """What is sent; Heat sends float32 in between."""
    return downcast_type if now.global_skips < 1 or not exact else None


def check_no_nan(params: Params) -> None:
    """Refuse to send what is no number.

    Raises:
        ValueError: naming the leaf.
    """
    for path, p in tree.leaves_with_path(params):
        if bool(torch.isnan(p).any()):
            raise ValueError(f"parameter {tree.join_path(path)} is NaN; nothing is sent")


def mean_loss(loss: float | Tensor, exchange: Exchange, device: torch.device) -> Tensor:
    """The mean over all processes."""
    own = torch.as_tensor(loss, dtype=torch.float32).detach().to(device)
    peers: Peers
    for peers in (exchange.local, exchange.nodes):
        own = all_reduce(own.reshape(1), peers) / peers.size
    return own.reshape(()).cpu()
