"""Collectives that stay on their way while other steps compute.

A state must be a tree of tensors that can be written to, copied and saved; a handle is none of that. So the state keeps
what was sent, and a ticket, a number. The handle waits here under that number. Whoever comes with a ticket for which
there is nothing here, from a checkpoint, say, gets the same by a collective that only begins then.
"""

import secrets
import threading
from collections import OrderedDict
from typing import Any

import torch

from .. import tree
from .._typing import Tree
from ._comm import Departure, Peers, broadcast, mean, start_mean

_MOST = 64  # collectives that nobody has come back for, as those of a state that was given up
_SEQUENCE = 20  # bits of a ticket that count


class _Board(threading.local):
    """What is on its way in this thread, in the order of departure, which is the same on all processes."""

    def __init__(self) -> None:
        self.departures: OrderedDict[int, Departure] = OrderedDict()
        self.marks: dict[Any, int] = {}
        self.count = 0


_board = _Board()


def launch(sent: Tree, peers: Peers, dtype: torch.dtype | None = None) -> int:
    """Begin a mean over replicas, and return the ticket for it."""
    mark = _mark(peers, sent)
    _board.count += 1
    ticket = mark << _SEQUENCE | _board.count % (1 << _SEQUENCE)
    _board.departures[ticket] = start_mean(sent, peers, dtype)
    if len(_board.departures) > _MOST:
        _board.departures.popitem(last=False)[1].wait()
    return ticket


def land(ticket: int, sent: Tree, peers: Peers, dtype: torch.dtype | None = None) -> Tree:
    """The mean for a ticket; of what was sent, if this process knows of no such ticket."""
    # Only what this very group has launched: others may hold the ticket on some of these processes and not on all.
    known = _board.marks.get(peers.process_group) == ticket >> _SEQUENCE
    departure = _board.departures.pop(ticket, None) if known else None
    return mean(sent, peers, dtype) if departure is None else departure.wait()


def _mark(peers: Peers, sent: Tree) -> int:
    """A number that all processes of a group know and that no other run will have, so that no ticket of it fits."""
    group = peers.process_group
    if group not in _board.marks:
        device = next((x.device for x in tree.leaves(sent) if x is not None), "cpu")
        drawn = torch.tensor(secrets.randbits(62 - _SEQUENCE), dtype=torch.int64, device=device)
        _board.marks[group] = int(broadcast(drawn, 0, peers))
    return _board.marks[group]
