"""Collectives that stay on their way while other steps compute.

A state must be a tree of tensors that can be written to, copied and saved; a handle is none of that. So the state keeps
what was sent, and a ticket, a number. The handle waits here under that number. Whoever comes with a ticket for which
there is nothing here, from a checkpoint, say, gets the same by a collective that only begins then.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from ._comm import Peers, broadcast

_MOST = 64  # collectives that nobody has come back for, as those of a state that was given up
_SEQUENCE = 20  # bits of a ticket that count


class _Board(threading.local):
    """What is on its way in this thread, in the order of departure, which is the same on all processes."""

    def __init__(self) -> None:
        self.departures: OrderedDict[int, Any] = OrderedDict()
        # For each group a number that all its processes know and no other run will have, so that no old ticket fits.
        self.marks: dict[Any, int] = {}
        self.counts: dict[Any, int] = {}  # of departures


_board = _Board()


def launch(begin: Callable[[], Any], peers: Peers, device: torch.device) -> int:
    """Begin a collective, and return the ticket for it.

    Args:
        begin: Begins it, and returns something that can `wait` for what comes of it.
        peers: Those who take part.
        device: Where they can communicate.
    """
    group = peers.process_group
    if group not in _board.marks:
        drawn = torch.tensor(secrets.randbits(62 - _SEQUENCE), dtype=torch.int64, device=device)
        _board.marks[group] = int(broadcast(drawn, 0, peers))
    count = _board.counts[group] = _board.counts.get(group, 0) + 1
    ticket = _board.marks[group] << _SEQUENCE | count % (1 << _SEQUENCE)
    _board.departures[ticket] = begin()
    if len(_board.departures) > _MOST:
        _board.departures.popitem(last=False)[1].wait()
    return ticket


def look_for(ticket: int, *, forget: bool = False) -> Any:
    """What came of the collective for a ticket; `None` if this process knows of no such ticket. Begins nothing.

    Args:
        ticket: The ticket; it stays good, unless the process is to `forget` it.
        forget: Whether nobody will come with it again.
    """
    departure = _board.departures.pop(ticket, None) if forget else _board.departures.get(ticket)
    return None if departure is None else departure.wait()


def land(ticket: int, begin: Callable[[], Any], peers: Peers) -> Any:
    """What came of the collective for a ticket; if this process knows of no such ticket, it only begins now."""
    # Only what this very group has launched: others may hold the ticket on some of these processes and not on all.
    known = _board.marks.get(peers.process_group) == ticket >> _SEQUENCE
    departure = _board.departures.pop(ticket, None) if known else None
    return (begin() if departure is None else departure).wait()
