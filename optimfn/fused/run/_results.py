"""The new tensors of a step that does not donate, and how the leaves of its result are put together."""

import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import empty_strided_cpu
from ..ir._graph import Node
from ..ir._kernels import Output
from ._recycled import WORTH, Pool, is_large, nbytes_of
from ._settings import settings


class Results:
    """What a step makes and returns.

    Args:
        outputs: Where each leaf of the result comes from.
        kept: The leaves that are an input, since nothing was computed, and which.
        inputs: How many inputs there are.
        device: Where new tensors lie.
    """

    def __init__(self, outputs: Sequence[Output], kept: Mapping[int, int], inputs: int, device: torch.device) -> None:
        self._device = device
        new = [(i, x, x.node.layout) for i, x in enumerate(outputs) if x.kind == "new" and x.node and i not in kept]
        on_cpu = device.type == "cpu"
        worth = on_cpu and sum(nbytes_of(layout) for _, _, layout in new) >= WORTH
        # In the order in which they are made: small ones first.
        large = [one for one in new if worth and is_large(one[2])]
        ordered = [*(one for one in new if not (worth and is_large(one[2]))), *large]
        self._small = [layout for _, _, layout in ordered[: len(new) - len(large)]]
        shapes, dtypes, strides = [*zip(*self._small, strict=True)] or ((), (), ())
        self._columns = (shapes, strides, dtypes) if on_cpu else None
        self.large = [layout for _, _, layout in large]
        self._buffers = [out.value for _, out, _ in ordered]
        first, order = min(self._buffers, default=0), sorted(range(len(new)), key=self._buffers.__getitem__)
        self._span = slice(first, first + len(new))  # of the table of all buffers, if they are side by side
        self._in_order = _picker(order) if sorted(self._buffers) == [*range(first, first + len(new))] else None
        made = {i: inputs + k for k, (i, _, _) in enumerate(ordered)}
        self._others: list[Any] = []
        indices = []
        for i, (kind, value, _) in enumerate(outputs):
            if i in made:
                indices.append(made[i])
            elif kind == "buffer" or i in kept:
                indices.append(value if kind == "buffer" else kept[i])
            else:
                indices.append(inputs + len(made) + len(self._others))
                self._others.append(value)
        self._pick = _picker(indices)

    def make(self, table: "array[int]", pool: Pool | None) -> list[Tensor]:
        """The new tensors; their addresses go into a table of all buffers."""
        device = self._device
        if self._columns:
            made = list(map(empty_strided_cpu, *self._columns))
        else:
            made = [layout.empty(device) for layout in self._small]
        if self.large:
            made += (pool.take(self.large) if pool else None) or [layout.empty(device) for layout in self.large]
        addresses = list(map(Tensor.data_ptr, made))
        if self._in_order:
            table[self._span] = array("q", self._in_order(addresses))
        else:
            for buffer, address in zip(self._buffers, addresses, strict=True):
                table[buffer] = address
        return made

    def put_together(self, inputs: list[Any], made: list[Tensor], values: Mapping[Node, Any]) -> list[Any]:
        """The leaves of the result."""
        others = [values[x] if isinstance(x, Node) else x for x in self._others]
        return self._pick([*inputs, *made, *others])

    @property
    def recycles(self) -> bool:
        """Whether large ones are to lie in memory that is used again."""
        return bool(self.large) and settings.recycle


def _picker(indices: Sequence[int]) -> Callable[[list[Any]], list[Any]]:
    """Takes some out of a list, at the speed of C."""
    if len(indices) < 2:
        return lambda given: [given[i] for i in indices]
    pick = operator.itemgetter(*indices)
    return lambda given: list(pick(given))
