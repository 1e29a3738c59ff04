"""Entries that torch keeps sparse where gradients are."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._rows import sparse, take
from ._bound import Bound, versions
from ._dropin import DropIn, as_torch
from ._layout import Entries, ParamKey
from ._source import Said


class ShowsSparse(DropIn):
    """A drop-in class of which torch keeps some entries sparse, for parameters whose first gradient is sparse.

    The rule steps rows of dense ones. What is shown follows them, and is read again when somebody has changed it.
    """

    sparse_entries: ClassVar[Sequence[str]] = ()
    """Torch's names of these entries."""

    _sparse: tuple[list[tuple[ParamKey, Tensor, str, Tensor]], list[int]]  # each of them, and their versions

    def _say(self, capturing: bool) -> list[Said]:
        shown, known = self._own("_sparse", lambda: ([], []))
        if shown and versions([x for *_, x in shown]) != known:
            self._bound = None
        return super()._say(capturing)

    def _touched(self, p: Tensor, grad: Tensor) -> Tensor:
        """A sparse gradient with zeros in the other rows that an entry has: these move on too.

        Where an entry is dense, every row does, and the gradient is dense.
        """
        shown = [x for key, x in self.state.get(p, {}).items() if key in self.sparse_entries and x is not None]
        if any(not x.is_sparse for x in shown):
            return grad.to_dense()
        grad = grad.coalesce()
        for x in shown:
            grad = _with_rows(grad, x.coalesce())
        self._own("_rows_now", dict)[id(p)] = grad.indices()
        return grad

    def _sparse_of(self, dense: Tensor, p: Tensor, like: Tensor) -> Tensor:
        """What is shown of a dense entry: the rows that have had a gradient."""
        index = self._own("_rows_now", dict).get(id(p))
        if index is None:
            return dense.to_sparse(like.sparse_dim())
        return sparse(index, take(dense, tuple(index)), dense.shape)

    def _fill(self, entries: Entries, p: Tensor, shown: Entries) -> None:
        before = dict(entries)
        super()._fill(entries, p, shown)
        for key in self.sparse_entries:
            like: Any = before.get(key, p.grad)
            if key in shown and like is not None and like.is_sparse:
                entries[key] = self._sparse_of(shown[key], p, like)

    def _publish(self, bound: Bound) -> None:
        is_new = not bound.is_published
        super()._publish(bound)
        if is_new:
            every = [(name, p, self.state.get(p, {})) for name, p in bound.params.items()]
            sparse = [(name, p, key, own[key]) for name, p, own in every for key in self.sparse_entries if key in own]
            self._sparse = [one for one in sparse if one[-1].is_sparse], []
        shown, _ = self._sparse
        if not shown:
            return
        if not torch.is_grad_enabled():
            dense = bound.entries()
            for name, p, key, x in shown:
                if p.grad is None:  # and so it has not moved
                    continue
                x.copy_(self._sparse_of(as_torch(dense[name], p)[key], p, x))
        self._sparse = shown, versions([x for *_, x in shown])
        self.__dict__.pop("_rows_now", None)

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.pop("_sparse", None)
        super().__setstate__(state)


def _with_rows(grad: Tensor, x: Tensor) -> Tensor:
    """A gradient with zeros in the rows that it has not and another tensor has; both are coalesced."""
    own, other = (_flat(g.indices(), grad.shape) for g in (grad, x))
    place = torch.searchsorted(other, own).clamp_(max=max(len(other) - 1, 0))
    is_new = other[place] != own if len(other) else torch.ones_like(own, dtype=torch.bool)
    index, flat = x.indices(), other
    if is_new.any():
        flat, order = torch.cat([other, own[is_new]]).sort()
        index = torch.cat([index, grad.indices()[:, is_new]], 1)[:, order]
        place = torch.searchsorted(flat, own)
    values = grad.values().new_zeros(len(flat), *grad.values().shape[1:]).index_copy_(0, place, grad.values())
    return sparse(index, values, grad.shape)


def _flat(index: Tensor, shape: Sequence[int]) -> Tensor:
    """The place of each row in a list of all."""
    flat = index[0]
    for i, size in zip(index[1:], shape[1:], strict=False):
        flat = flat * size + i
    return flat
