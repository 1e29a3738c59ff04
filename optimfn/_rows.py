"""Some rows of a table: read them, and say what becomes of them without making the table anew.

A gradient with a sparse layout has a few rows of a table, so a step that works on these alone costs what they cost,
as long as nobody copies the table. A pure step must: its result is a new one. A donating step writes into the old one,
but only when everything else is known, and what a rule returns may be looked at before, by a wrapper around it. So
under `donating` the result is a tensor that becomes a table when an operator asks for one, and mostly none does.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from . import tree
from ._lazy import Lazy
from ._typing import Tree


class Replaced(Lazy):
    """A table with other values in some rows.

    Args:
        table: The table.
        places: Where the rows are, as for `Tensor.index_put`.
        rows: Their values, in the dtype of the table.
    """

    table: Tensor
    places: tuple[Tensor, ...]
    rows: Tensor

    @staticmethod
    def __new__(cls: type[Self], table: Tensor, places: tuple[Tensor, ...], rows: Tensor) -> Self:
        """Make what stands for the table."""
        stands: Self = cls.in_place_of(table)
        stands.table, stands.places, stands.rows = table, places, rows
        return stands

    def whole(self) -> Tensor:
        """The table that it stands for."""
        return self.table.index_put(self.places, self.rows)

    def write_into(self, target: Tensor) -> None:
        """Give a tensor these values."""
        if target is not self.table:
            target.copy_(self.whole())
        elif len(self.places) == 1:
            target.index_copy_(0, self.places[0], self.rows)
        else:
            target.index_put_(self.places, self.rows)


class _Donating(threading.local):
    """Whether what a rule returns is written into what it was given."""

    now = False


_donating = _Donating()


@contextlib.contextmanager
def donating() -> Iterator[None]:
    """Let `put` leave tables as they are: whoever asks for this writes the rows into them."""
    before, _donating.now = _donating.now, True
    try:
        yield
    finally:
        _donating.now = before


def is_donating() -> bool:
    """Whether it is asked for."""
    return _donating.now


def take(table: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Some rows of a table."""
    return table.index_select(0, index[0]) if len(index) == 1 else table[index]  # several times as fast


def put(table: Tensor, index: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """A table with other values in some rows, rounded to its dtype."""
    rows = tree.cast_leaf(rows, table.dtype)
    return Replaced(table, index, rows) if is_donating() else table.index_put(index, rows)


def sparse(index: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows of a table of this shape, each once and in order, in a sparse layout."""
    return torch.sparse_coo_tensor(index, rows, shape, is_coalesced=True, check_invariants=False)


def are_sparse(updates: Tree) -> bool:
    """Whether a leaf has rows of its parameter alone."""
    return any(isinstance(x, Tensor) and x.is_sparse for x in tree.leaves(updates))


def either(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`torch.where`, also for a table with other rows that are kept where the condition does not hold."""
    if not isinstance(x, Replaced) or x.table is not y:
        return torch.where(condition, x, y)
    return Replaced(y, x.places, torch.where(condition, x.rows, take(y, x.places)))


def either_or_number(condition: Tensor, x: Tensor, number: float) -> Tensor:
    """The same for a number in the place of every element that is there."""
    if not x.is_sparse:
        return torch.where(condition, x, torch.full_like(x, number))
    x = x.coalesce()
    rows = torch.where(condition, x.values(), torch.full_like(x.values(), number))
    return sparse(x.indices(), rows, x.shape)


_TAKEN = "__taken__"  # where an update knows the rows of its parameter, so that nobody takes them out again


def update_rows(g: Tensor, new: Tensor, p: Tensor, own: Tensor) -> Tensor:
    """An update laid out as a gradient is, for a parameter whose rows there are `own`."""
    update = sparse(g.indices(), new, g.shape)
    setattr(update, _TAKEN, (p, own))
    return update


def add_rows(p: Tensor, update: Tensor) -> Tensor:
    """A parameter with a sparse update added, rounded once."""
    update = update.coalesce()
    index, taken = tuple(update.indices()), getattr(update, _TAKEN, None)
    own: Tensor = taken[1] if taken is not None and taken[0] is p else take(p, index)
    return put(p, index, own + update.values())
