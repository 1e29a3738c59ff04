"""What DASO does in each batch and epoch, as numbers on the host: no tensor of the model, and no communication."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._transforms._plateau import DetectPlateauState, PlateauDetector

SEND, MERGE, TAKE, SHARE = "send", "merge", "take", "share"


class Phase(NamedTuple):
    """Where the schedule stands; the same on all processes."""

    epoch: int = 0
    batch: int = 0
    global_skips: int = 0  # batches between two sends among nodes; 0: after every batch, and waited for
    local_skips: int = 0  # batches between two means of gradients in a node
    wait: int = 0  # batches for which what was sent may be on its way
    sender: int = 0  # the local rank that sends next
    sent_by: int = -1  # the local rank that has sent what is on its way; -1 if nothing is
    sent_wait: int = 0  # batches that it was to be on its way
    sent_at: int = 0  # the batch in which it was sent
    pending: int = 0  # whether that is still to be merged
    syncs_local: int = 1  # whether the next gradients are averaged in the node

    def pack(self, like: Tensor) -> Tensor:
        """The numbers as a tensor."""
        return torch.tensor(self, dtype=like.dtype, device=like.device)

    @classmethod
    def unpack(cls, numbers: Tensor) -> "Phase":
        """The numbers of a tensor."""
        return cls(*(int(x) for x in numbers.tolist()))


class Epochs(NamedTuple):
    """What decides about epochs."""

    total: int
    warmup: int
    cooldown: int
    max_skips: int
    reduction: int
    local_factor: int
    exact: bool


Actions = list[tuple[str, Any]]


def after_batch(now: Phase, last: int, nearby: int, exact: bool) -> tuple[Phase, Actions]:
    """What is done after the own step of a batch, in order, and where the schedule stands then.

    Args:
        now: Where it stands.
        last: The number of the last batch of an epoch.
        nearby: Processes of a node.
        exact: Whether to do what Heat does, also where what was sent is merged later than its weight says.
    """
    batch, skips = now.batch, now.global_skips
    since = batch % skips if skips else 0
    wait = now.wait if now.wait + batch <= last else last - batch
    if batch == last or since == 0:
        return _meet(now, wait, last, nearby, exact)
    done: Actions = []
    on = now._replace(batch=batch + 1)
    due = since == wait if exact else since >= wait
    if due and not exact and now.pending:
        done.append((MERGE, now))
        on = on._replace(pending=0)
    if (batch + 1) % skips == 0:
        return on._replace(syncs_local=1), done
    if since < wait:
        return (on._replace(syncs_local=1) if batch + 1 == last else on), done
    if due:
        if exact:
            done += _arrive(now)
            on = on._replace(pending=0)
        if now.local_skips > 1:
            on = on._replace(syncs_local=0)
    if now.local_skips == 1 and batch + 1 != last:
        return on._replace(syncs_local=1), done
    phase = batch % now.local_skips if now.local_skips else 0
    if phase == 0:
        on = on._replace(syncs_local=0)
    elif (batch + 1) % now.local_skips == 0:
        on = on._replace(syncs_local=1)
    return (on._replace(syncs_local=1) if batch + 1 == last else on), done


def _meet(now: Phase, wait: int, last: int, nearby: int, exact: bool) -> tuple[Phase, Actions]:
    """The nodes exchange parameters."""
    ends, sender = now.batch == last, now.sender
    merge: Actions = _arrive(now) if now.wait else []
    send: Actions = [(SEND, sender)]
    # Heat sends first; what has arrived is better in it.
    done = send + merge if exact else merge + send
    following = (sender + 1) % nearby
    if ends or not now.wait:
        done += [(TAKE, sender), (SHARE, sender)]
        on = now._replace(sent_by=-1, pending=0)
        if ends:
            return on._replace(sender=0, epoch=now.epoch + 1, batch=0), done
        return on._replace(batch=now.batch + 1, sender=following), done
    sent = now._replace(sent_by=sender, sent_wait=wait, sent_at=now.batch, pending=1)
    return sent._replace(batch=now.batch + 1, sender=following), done


def _arrive(now: Phase) -> Actions:
    """What was sent comes in, and the process that has merged it shares the result."""
    merge: Actions = [(MERGE, now)] if now.pending else []
    return [*merge, (SHARE, now.sent_by)] if now.sent_by >= 0 else []


def weight(sent: Phase, exact: bool) -> int:
    """How much the own parameters weigh against those that were sent, one for each node."""
    waited = sent.sent_wait if exact else sent.batch - sent.sent_at
    return 2 * waited if waited > 0 else 1


def after_epoch(
    now: Phase, seen: DetectPlateauState, loss: float | Tensor, detector: PlateauDetector, epochs: Epochs
) -> tuple[Phase, DetectPlateauState]:
    """What the loss of an epoch, the mean over all processes, makes of the schedule."""
    blocking = now._replace(global_skips=0, local_skips=0, wait=0)
    if now.epoch < epochs.warmup:
        return blocking, seen
    if now.epoch == epochs.warmup:
        first = 4 if epochs.exact else min(4, epochs.max_skips)
        now = now._replace(global_skips=first, local_skips=min(1, first), wait=min(1, first))
    if now.epoch >= epochs.total - epochs.cooldown:
        return blocking, seen
    hit, seen = detector.update(loss, seen)
    if not bool(hit):
        return now, seen
    if now.global_skips > 1:
        skips, local, wait = now.global_skips // epochs.reduction, now.local_skips // epochs.reduction, now.wait - 1
        if skips > 0:
            wait, local = wait or 1, local or 1
        now = now._replace(global_skips=skips, local_skips=local, wait=wait)
    elif now.global_skips == 1:
        rare = epochs.max_skips // epochs.local_factor
        now = now._replace(global_skips=epochs.max_skips, local_skips=rare, wait=rare)
    return now, seen
