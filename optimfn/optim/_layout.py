"""Where each leaf of a pure state lives in the `state` dict of a torch optimizer.

A torch checkpoint keeps one flat dict of tensors per parameter. A pure state is a tree in which some
leaves mirror a parameter, such as a moment, and some belong to all of them, such as a count. Parameters
go into the rule as a dict whose keys are marked; a leaf below such a key belongs to that parameter, and
every other leaf is shared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._torch import DispatchMode, constants
from .._typing import State
from ..fused.run._flatten import Structure

Entries = dict[str, Any]  # the state of one parameter, as torch keeps it

_keys: dict[str, "ParamKey"] = {}


@constants
class ParamKey(str):
    """The name of a parameter, told apart from every other dict key in a state."""

    __slots__ = ()
    owns_state = True  # what stands below it in a state is its own, and rests where it has no gradient

    def __new__(cls, name: object) -> "ParamKey":
        """There is one for each name: the compiler of torch 2.10 takes two for different keys of a dict."""
        return _keys.setdefault(str(name), super().__new__(cls, name))


class Slot(NamedTuple):
    """Where one leaf lives: under `key`, for one parameter or, if `owner` is `None`, for all."""

    owner: ParamKey | None
    key: str


@dataclass(frozen=True)
class Layout:
    """The structure of a state, and the slots of all its leaves."""

    structure: Structure
    slots: Sequence[Slot | None]  # `None` where the state has `None`

    @staticmethod
    def of(state: State, rename: Callable[[str], str]) -> "Layout":
        """Find the slot of every leaf; `rename` turns the path in the state into the key."""
        structure = Structure(state)
        leaves = structure.flatten(state) or []
        slots: list[Slot | None] = [None] * len(leaves)
        for path, i in tree.leaves_with_path(structure.unflatten([*range(len(leaves))])):
            if leaves[i] is not None:
                owner = next((entry for entry in path if isinstance(entry, ParamKey)), None)
                rest = tuple(entry for entry in path if not isinstance(entry, ParamKey))
                slots[i] = Slot(owner, rename(tree.join_path(rest)))
        return Layout(structure, slots)

    def read(self, state: State) -> list[Any] | None:
        """The leaves of a state, in the order of the slots; `None` if it has another layout."""
        leaves = self.structure.flatten(state)
        fits = leaves is not None and [x is None for x in leaves] == [slot is None for slot in self.slots]
        return leaves if fits else None

    def shared(self) -> list[str]:
        """The keys of the leaves that belong to all parameters."""
        return [slot.key for slot in self.slots if slot is not None and slot.owner is None]

    def gather(self, stored: Mapping[ParamKey, Entries], shared: Mapping[str, Any]) -> State:
        """Build the state from the dicts of the parameters and the shared leaves.

        Raises:
            KeyError: if an entry is missing, naming it.
        """
        found: list[Any] = []
        for slot in self.slots:
            entries = {} if slot is None else shared if slot.owner is None else stored[slot.owner]
            if slot is not None and slot.key not in entries:
                raise KeyError(f"the optimizer state of parameter {slot.owner!r} has no entry {slot.key!r}")
            found.append(None if slot is None else entries[slot.key])
        return self.structure.unflatten(found)

    def scatter(self, state: State) -> tuple[dict[ParamKey, Entries], dict[str, Tensor]]:
        """The dicts of the parameters, and the shared leaves, of a state."""
        stored: dict[ParamKey, Entries] = {}
        shared: dict[str, Tensor] = {}
        leaves = self.structure.flatten(state)
        if leaves is None:  # a rule may make a dict in another order
            example = self.structure.unflatten([*range(len(self.slots))])
            leaves = self.structure.flatten(tree.map_nodes(_second, example, state)) or []
        for slot, leaf in zip(self.slots, leaves, strict=True):
            if slot is not None:
                (shared if slot.owner is None else stored.setdefault(slot.owner, {})).setdefault(slot.key, leaf)
        return stored, shared


def _second(_: Any, example: Any, node: Any) -> tuple[bool, Any]:
    return isinstance(example, int), node


class Memoryless(DispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Tensors made under this mode have no memory, whatever they are made from.

    A rule's `init` sees the parameters as they are, which a mask may judge, and what it computes costs nothing.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch._dynamo, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on the meta device."""
        kwargs = {key: _on_meta(x) for key, x in (kwargs or {}).items()}
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        return func(*_on_meta(args), **kwargs)


def _on_meta(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x if x.is_meta else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return type(x)(map(_on_meta, x)) if type(x) in (list, tuple) else x
