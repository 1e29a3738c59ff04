"""The numbers of parameter groups as tensors that a rule reads, and that are written anew for every step."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Values = Mapping[Hashable, Any]  # the numbers of a group


class Number:
    """A number as a 0-dim tensor, what a group calls it, and what was last written there."""

    __slots__ = ("key", "tensor", "written")

    def __init__(self, key: Hashable, tensor: Tensor) -> None:
        self.key, self.tensor = key, tensor
        self.written: Any = None

    def put(self, value: Any) -> None:
        """Write a value; a tensor is not read on the host, and may have changed since."""
        try:
            if isinstance(value, Tensor):
                self.tensor.copy_(value.detach().reshape(()))
                self.written = None
            elif self.written is None or self.written != value:
                self.tensor.fill_(value)
                self.written = value
        except (TypeError, RuntimeError) as error:
            if isinstance(value, Tensor) and value.numel() == 1:
                raise
            several = self.key if isinstance(self.key, tuple) else (self.key,)
            name = next((x for x in several if isinstance(x, str)), "a hyperparameter")
            name = "lr" if name == "learning_rate" else name  # what a group calls it
            raise TypeError(f"{name} of a group must be a number or a 0-dim tensor, got {value!r}") from error


class Numbers:
    """A 0-dim tensor for every number.

    Args:
        are_shared: Whether groups share the tensor of a number until they differ in it. A rule that sees several
            groups at once can then be the same for all of them.
    """

    def __init__(self, are_shared: bool) -> None:
        self._are_shared = are_shared
        self._apart: set[Hashable] = set()
        self._most = 0  # of them when numbers were bound
        self._known: dict[tuple[Hashable, int | None], Number] = {}  # by key, and the group that has it for itself
        self._rows: list[list[Number]] = []  # of each group, in the order of its values

    def bind(
        self, values: Sequence[Values], near: Sequence[Tensor], as_given: bool
    ) -> tuple[list[tuple[tuple[Hashable, int], ...]], tuple[Tensor, ...]]:
        """Find a tensor for each number, and write it.

        Args:
            values: The numbers of each group.
            near: A parameter of each group, on the device of which its numbers are to lie.
            as_given: Whether numbers that are tensors are used themselves.

        Returns:
            For each group which of the tensors each of its numbers is, and the tensors.
        """
        places: dict[Any, int] = {}
        used: list[Number] = []
        slots: list[tuple[tuple[Hashable, int], ...]] = []
        self._rows, self._most = [], len(self._apart)
        for group, (own, like) in enumerate(zip(values, near, strict=True)):
            row = []
            for key, value in own.items():
                slot = key, group if not self._are_shared or key in self._apart else None
                if slot not in places:
                    places[slot] = len(used)
                    given = as_given and isinstance(value, Tensor)
                    used.append(Number(key, value.reshape(())) if given else self._at(slot, like, value))
                row.append(places[slot])
            self._rows.append([used[place] for place in row])
            slots.append(tuple(zip(own, row, strict=True)))
        return slots, tuple([number.tensor for number in used])

    def _at(self, slot: tuple[Hashable, int | None], like: Tensor, value: Any) -> Number:
        """The number in a slot; in float64, or the dtype of a value that is a tensor."""
        device = like.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if isinstance(value, Tensor) and not self._are_shared:
            dtype = value.dtype  # torch's classes round to it
        number = self._known.get(slot)
        if number is None or (number.tensor.dtype, number.tensor.device) != (dtype, device):
            number = self._known[slot] = Number(slot[0], torch.empty((), dtype=dtype, device=device))
        number.put(value)
        return number

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [number.tensor for number in self._known.values()]

    def separate(self, values: Sequence[Values]) -> bool:
        """Notice in which numbers the groups differ; whether there are more of them than when they were bound."""
        if not self._are_shared or len(values) == 1:
            return False
        first: dict[Hashable, Any] = {}
        for group in values:
            for key, value in group.items():
                one = first.setdefault(key, value)
                if one is not value and key not in self._apart and not same_number(one, value):
                    self._apart.add(key)
        return len(self._apart) > self._most

    def apart(self) -> set[Hashable]:
        """The numbers in which groups differ, or have."""
        return set(self._apart)

    def keep_apart(self, keys: set[Hashable]) -> None:
        """Let groups have these each for itself."""
        self._apart |= keys

    def rejoin(self, apart: set[Hashable]) -> None:
        """Let groups share again what they shared when these were the numbers in which they differed."""
        self._apart = apart

    def write(self, values: Sequence[Values], capturing: bool) -> None:
        """Put the values of the groups, which are those that were bound, into the tensors.

        While a graph is captured, numbers are left out, since the graph would keep them as they are now; and so
        are tensors that lie elsewhere.
        """
        for row, group in zip(self._rows, values, strict=True):
            for number, value in zip(row, group.values(), strict=True):
                if value is number.written and type(value) is float:  # most of them
                    continue
                if not capturing or (isinstance(value, Tensor) and value.device == number.tensor.device):
                    number.put(value)


def same_number(a: Any, b: Any) -> bool:
    """Whether two numbers are the same; tensors are told apart without being read."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return bool(a == b)
