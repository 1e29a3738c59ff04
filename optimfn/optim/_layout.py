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
from .._torch import DispatchMode
from .._typing import State

Entries = dict[str, Any]  # the state of one parameter, as torch keeps it


class ParamKey(str):
    """The name of a parameter, told apart from every other dict key in a state."""

    __slots__ = ()
    owns_state = True  # what stands below it in a state is its own, and rests where it has no gradient


class Slot(NamedTuple):
    """Where one leaf lives: under `key`, for one parameter or, if `owner` is `None`, for all."""

    owner: ParamKey | None
    key: str


@dataclass(frozen=True)
class Layout:
    """The slots of all leaves of a state, and a state to take the structure from."""

    template: State
    slots: Sequence[Slot]

    @staticmethod
    def of(template: State, rename: Callable[[str], str]) -> "Layout":
        """Find the slot of every leaf; `rename` turns the path in the state into the key."""
        slots = []
        for path, _ in tree.leaves_with_path(template):
            owner = next((entry for entry in path if isinstance(entry, ParamKey)), None)
            rest = tuple(entry for entry in path if not isinstance(entry, ParamKey))
            slots.append(Slot(owner, rename(tree.join_path(rest))))
        return Layout(template, slots)

    def shared(self) -> list[str]:
        """The keys of the leaves that belong to all parameters."""
        return [key for owner, key in self.slots if owner is None]

    def gather(self, stored: Mapping[ParamKey, Entries], shared: Mapping[str, Any]) -> State:
        """Build the state from the dicts of the parameters and the shared leaves.

        Raises:
            KeyError: if an entry is missing, naming it.
        """
        found = []
        for owner, key in self.slots:
            entries = shared if owner is None else stored[owner]
            if key not in entries:
                raise KeyError(f"the optimizer state of parameter {owner!r} has no entry {key!r}")
            found.append(entries[key])
        return tree.unflatten(self.template, found)

    def scatter(self, state: State) -> tuple[dict[ParamKey, Entries], dict[str, Tensor]]:
        """The dicts of the parameters, and the shared leaves, of a state."""
        stored: dict[ParamKey, Entries] = {}
        shared: dict[str, Tensor] = {}
        for (owner, key), leaf in zip(self.slots, tree.leaves(state), strict=True):
            (shared if owner is None else stored.setdefault(owner, {})).setdefault(key, leaf)
        return stored, shared


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
