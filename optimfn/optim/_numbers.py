"""The numbers of parameter groups as tensors that a rule reads, and that are written anew for every step."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Slot = tuple[Hashable, int | None]  # a number, and the group that has it for itself


class Numbers:
    """A 0-dim tensor for every number.

    Args:
        are_shared: Whether groups share the tensor of a number until they differ in it. A rule that sees several
            groups at once can then be the same for all of them.
    """

    def __init__(self, are_shared: bool) -> None:
        self._are_shared = are_shared
        self._apart: set[Hashable] = set()
        self._tensors: dict[Slot, Tensor] = {}
        self._written: dict[Slot, Any] = {}

    def slot(self, key: Hashable, group: int) -> Slot:
        """Where the number of a group stands."""
        return key, group if not self._are_shared or key in self._apart else None

    def tensor(self, slot: Slot, like: Tensor, value: Any) -> Tensor:
        """The tensor in a slot, on the device of a parameter; in float64, or the dtype of a value that is a tensor."""
        device = like.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if isinstance(value, Tensor) and not self._are_shared:
            dtype = value.dtype  # torch's classes round to it
        old = self._tensors.get(slot)
        if old is None or (old.dtype, old.device) != (dtype, device):
            self._tensors[slot] = torch.empty((), dtype=dtype, device=device)
            self._written.pop(slot, None)
        self._put(slot, value)
        return self._tensors[slot]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return list(self._tensors.values())

    def separate(self, values: Sequence[Mapping[Any, Any]]) -> bool:
        """Notice in which numbers the groups differ; whether there are more of them than before."""
        if not self._are_shared or len(values) == 1:
            return False
        first: dict[Hashable, Any] = {}
        known = len(self._apart)
        for group in values:
            for key, value in group.items():
                if key not in self._apart and not same_number(first.setdefault(key, value), value):
                    self._apart.add(key)
        return len(self._apart) > known

    def write(self, values: Sequence[Mapping[Any, Any]], capturing: bool = False) -> None:
        """Put the values of the groups into the tensors.

        While a graph is captured, numbers are left out, since the graph would keep them as they are now; and so
        are tensors that lie elsewhere.
        """
        for number, group in enumerate(values):
            for key, value in group.items():
                slot = self.slot(key, number)
                tensor = self._tensors.get(slot)
                if tensor is None:  # a differentiable step takes the value itself
                    continue
                if not capturing or (isinstance(value, Tensor) and value.device == tensor.device):
                    self._put(slot, value)

    def _put(self, slot: Slot, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors[slot].copy_(value.detach().reshape(()))
            self._written.pop(slot, None)
        elif slot not in self._written or self._written[slot] != value:
            self._tensors[slot].fill_(value)
            self._written[slot] = value


def same_number(a: Any, b: Any) -> bool:
    """Whether two numbers are the same; tensors are told apart without being read."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return bool(a == b)
