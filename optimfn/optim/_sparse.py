"""Entries that torch keeps sparse where gradients are."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._bound import Bound, versions
from ._dropin import DropIn, as_torch
from ._layout import Entries, ParamKey
from ._source import Said


class ShowsSparse(DropIn):
    """A drop-in class of which torch keeps some entries sparse, for parameters whose first gradient is sparse.

    The rule steps dense ones. What is shown follows them, and is read again when somebody has changed it.
    """

    sparse_entries: ClassVar[Sequence[str]] = ()
    """Torch's names of these entries."""

    _sparse: tuple[list[tuple[ParamKey, Tensor, str, Tensor]], list[int]]  # each of them, and their versions

    def _say(self, capturing: bool) -> list[Said]:
        shown, known = self._own("_sparse", lambda: ([], []))
        if shown and versions([x for *_, x in shown]) != known:
            self._bound = None
        return super()._say(capturing)

    def _fill(self, entries: Entries, p: Tensor, shown: Entries) -> None:
        before = dict(entries)
        super()._fill(entries, p, shown)
        for key in self.sparse_entries:
            like: Any = before.get(key, p.grad)
            if key in shown and like is not None and like.is_sparse:
                entries[key] = shown[key].to_sparse(like.sparse_dim())

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
                x.copy_(as_torch(dense[name], p)[key].to_sparse(x.sparse_dim()))
        self._sparse = shown, versions([x for *_, x in shown])

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.pop("_sparse", None)
        super().__setstate__(state)
