"""Where each leaf of a pure state lives in the `state` dict of a torch optimizer.

A torch checkpoint keeps one flat dict of tensors per parameter. A pure state is a tree in which some
leaves mirror a parameter, such as a moment, and some belong to all of them, such as a count. Parameters
go into the rule as a dict whose keys are marked; a leaf below such a key belongs to that parameter, and
every other leaf is shown under each parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import tree
from .._typing import State


class ParamKey(str):
    """The name of a parameter, told apart from every other dict key in a state."""

    __slots__ = ()


@dataclass(frozen=True)
class Slot:
    """Where one leaf lives: under `key`, for one parameter or, if `owner` is `None`, for all."""

    owner: ParamKey | None
    key: str


@dataclass(frozen=True)
class Layout:
    """The slots of all leaves of a state, and a state to take the structure and dtypes from."""

    template: State
    slots: Sequence[Slot]

    @staticmethod
    def of(template: State) -> "Layout":
        """Find the slot of every leaf by its path."""
        slots = []
        for path, _ in tree.leaves_with_path(template):
            owner = next((entry for entry in path if isinstance(entry, ParamKey)), None)
            rest = tuple(entry for entry in path if not isinstance(entry, ParamKey))
            slots.append(Slot(owner, tree.join_path(rest)))
        return Layout(template, slots)

    def gather(self, stored: Mapping[ParamKey, Mapping[str, Any]]) -> State:
        """Build the state from the dicts of the parameters.

        Raises:
            KeyError: if an entry is missing, naming it.
        """
        first = next(iter(stored), None)
        found = []
        for slot in self.slots:
            owner = first if slot.owner is None else slot.owner
            if owner is None or slot.key not in stored[owner]:
                raise KeyError(f"the optimizer state of parameter {owner!r} has no entry {slot.key!r}")
            found.append(stored[owner][slot.key])
        return tree.unflatten(self.template, found)

    def scatter(self, state: State, names: Sequence[ParamKey]) -> dict[ParamKey, dict[str, Tensor]]:
        """The dicts of the parameters for a state; a shared leaf is the same tensor in each of them."""
        stored: dict[ParamKey, dict[str, Tensor]] = {name: {} for name in names}
        for slot, leaf in zip(self.slots, tree.leaves(state), strict=True):
            for owner in names if slot.owner is None else (slot.owner,):
                stored[owner][slot.key] = leaf
        return {name: entries for name, entries in stored.items() if entries}
