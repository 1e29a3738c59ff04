"""How nodes of several processes exchange parameters: one process of each for all, or each its part."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._torch import is_dtensor, wait_for
from .._typing import Params
from ._comm import (
    Departure,
    Peers,
    all_gather,
    begin_all_reduce,
    broadcast_tree,
    complex_again,
    mean,
    reduce_scatter,
    start_mean,
)
from ._flight import land, launch
from ._phases import MERGE, SEND, SHARE, TAKE, Actions, weight


class Part(NamedTuple):
    """The sum over the nodes of this process's part of a flat vector, on its way."""

    flat: Tensor

    def wait(self) -> Tensor:
        """The sum."""
        return wait_for(self.flat)


class Exchange:
    """The collectives of DASO, on trees.

    Args:
        mesh: A `DeviceMesh` of two axes, the nodes and the processes of each.
        exact: One process of each node sends all, in turn, and the others get it from there, as in Heat. Else each
            sends the mean of its node of its part.

    Raises:
        TypeError, ValueError: if it is no such mesh, or `exact` is asked for with one process a node, where Heat's
            rule is not defined.
    """

    def __init__(self, mesh: Any, exact: bool) -> None:
        if not hasattr(mesh, "get_group"):
            raise TypeError(f"mesh must be a DeviceMesh of two axes, nodes and the processes of each, got {mesh!r}")
        if mesh.ndim != 2:
            raise ValueError(f"mesh must have two axes, nodes and the processes of each, got {mesh.ndim}")
        if exact and mesh.size(1) < 2:
            raise ValueError("exact=True needs at least two processes a node, got a mesh with one; use exact=False")
        self.nodes, self.local, self.exact = Peers((mesh, 0)), Peers((mesh, 1)), exact

    @staticmethod
    def check_leaves(params: Params) -> None:
        """Refuse what lies in shards.

        Raises:
            TypeError: naming the leaf.
        """
        for path, p in tree.leaves_with_path(params):
            if is_dtensor(p):
                name = tree.join_path(path)
                raise TypeError(
                    f"DASO sends whole parameters, and parameter {name} is a DTensor, {p.placements} of "
                    f"{tuple(p.shape)}: give every process all of it, or use outer_sync, which takes shards"
                )

    def average_local(self, grads: Any) -> Any:
        """The mean of gradients in the node."""
        return mean(grads, self.local)

    def carry_out(
        self, actions: Actions, params: Params, sent: Params, ticket: int, dtype: torch.dtype | None
    ) -> tuple[Params, Params, int]:
        """Do what is due.

        Args:
            actions: As `after_batch` has said.
            params: The parameters.
            sent: What this process has sent.
            ticket: Finds what comes of it.
            dtype: The dtype in which to send; `None` is that of the parameters.

        Returns:
            The three as they are then; parameters that nothing was done to are the same object.
        """
        if not tree.size(params):  # there is nothing to agree about, for anyone
            return params, sent, ticket
        for what, one in actions:
            takes_part = not self.exact or one == self.local.rank
            if what == SEND and takes_part:
                sent = tree.map(lambda p: p.clone(), params)
                ticket = launch(self._begin(sent, dtype), self.nodes, tree.leaves(sent)[0].device)
            elif what == TAKE and takes_part:
                total = land(ticket, self._begin(sent, dtype), self.nodes)
                params = self._put(lambda x, s: s / self.nodes.size, params, total)
            elif what == MERGE and (not self.exact or one.sent_by == self.local.rank):
                own, all_ = weight(one, self.exact), self.nodes.size
                total = land(ticket, self._begin(sent, dtype), self.nodes)
                params = self._put(_merging(own, all_), params, total)
            elif what == SHARE and self.exact:
                params = broadcast_tree(params, one, self.local)
        return params, sent, ticket

    def _begin(self, sent: Params, dtype: torch.dtype | None) -> Callable[[], Departure | Part]:
        if self.exact:
            return lambda: start_mean(sent, self.nodes, dtype, how="sum")

        def begin() -> Part:
            own = self._part(sent)
            own = own if dtype is None else own.to(dtype)
            return Part(own if self.nodes.size == 1 else begin_all_reduce(own, self.nodes))

        return begin

    def _part(self, params: Params) -> Tensor:
        """The mean over the node of the part of this process, of all parameters in a row."""
        leaves = tree.leaves(params)
        flat = torch.cat([tree.as_real(x).reshape(-1).to(self._wide(leaves)) for x in leaves])
        rows = torch.nn.functional.pad(flat, (0, -len(flat) % self.local.size)).reshape(self.local.size, -1)
        return reduce_scatter(rows, self.local) / self.local.size

    def _put(self, rule: Callable[[Tensor, Tensor], Tensor], params: Params, total: Any) -> Params:
        if self.exact:
            return tree.map(lambda p, s: rule(p, s.to(p.dtype)), params, total)
        own = self._part(params)
        flat = all_gather(rule(own, total.to(own.dtype)), self.local).reshape(-1)
        leaves, form = tree.flatten(params)
        reals = [None if x is None else tree.as_real(x) for x in leaves]
        sizes = [x.numel() for x in reals if x is not None]
        pieces = iter(torch.split(flat[: sum(sizes)], sizes))
        back = [None if x is None else next(pieces).reshape(x.shape).to(x.dtype) for x in reals]
        return form.unflatten(
            [x if x is None else complex_again(x, like) for x, like in zip(back, leaves, strict=True)]
        )

    @staticmethod
    def _wide(leaves: list[Tensor]) -> torch.dtype:
        wide = torch.float32
        for x in leaves:
            wide = torch.promote_types(wide, tree.real_dtype(x.dtype))
        return wide


def _merging(own: int, others: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of the own parameters, so many times, and those of others, of which there is the sum."""
    return lambda x, total: x * (own / (others + own)) + total / (others + own)
