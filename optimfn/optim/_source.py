"""What a source says to the engine: the rules of its groups, their numbers, and what an entry is called."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._gate import unasked
from .._typing import State
from ._contract import FiresHooksOnce, refuse_absent
from ._layout import Entries, ParamKey, Slot
from ._pipeline import Rules

Values = Mapping[Any, Any]  # the numbers of a group
Said = tuple[Rules, Values]


class Source(FiresHooksOnce):
    """The part of an optimizer that the engine asks."""

    counts_alone = False
    """Whether every rule counts the steps of each parameter by itself, also one that sees all parameters."""

    def _say(self, capturing: bool) -> Sequence[Said]:
        """For each group what makes its rules, the same object as long as that is the same, and its numbers."""
        raise NotImplementedError

    def _names(self) -> Sequence[Sequence[ParamKey]]:
        """What the parameters of each group are called."""
        raise NotImplementedError

    def _schedules(self, group: dict[str, Any]) -> tuple[tuple[Hashable, str, Callable[[Any], Any]], ...]:
        """The schedules among the hyperparameters of a group, each with the label under which its value is shown."""
        return ()

    def _rates(self) -> dict[str, Tensor]:
        """The values of the schedules, by label."""
        return {}

    def _check_capture(self) -> None:
        """Refuse what a graph would do wrong."""
        refuse_absent(self._params())

    def rename(self, member: str, path: str) -> str:
        """The key of a path in the state of a member."""
        return f"{member}.{path}" if path else member

    def has_state(self, p: Tensor) -> bool:
        """Whether there are entries for a parameter."""
        return bool(self.state.get(p))

    def has_parted(self, p: Tensor) -> bool:
        """Whether a parameter has missed a gradient that others had."""
        return p in self._own("_parted", set)

    def past(self, p: Tensor, keys: Sequence[str]) -> Hashable:
        """The numbers that a parameter shares with others, such as how many steps it has made."""
        entries = self.entries(p)
        return tuple(entries[key].item() if key in entries and entries[key].ndim == 0 else None for key in keys)

    def entries(self, p: Tensor) -> Entries:
        """The entries of a parameter by the keys of the layout."""
        own: Entries = self.state[p]
        return own

    def init(self, tx: GradientTransformation, params: Mapping[ParamKey, Tensor]) -> State:
        """A fresh state."""
        with torch.no_grad(), unasked():
            return tx.init(params)

    def kept(
        self, slots: Sequence[Slot | None], leaves: Sequence[Any], params: Mapping[ParamKey, Tensor]
    ) -> Sequence[Any]:
        """The leaves of a fresh state as they are kept."""
        return leaves

    def _sees_all(self) -> bool:
        """Whether rules must be given all parameters, also those that have had no gradient yet."""
        return False

    def _is_rehearsal(self) -> bool:
        """Whether this is no step, but a way of having the state made."""
        return False

    def _rehearse(self) -> None:
        """Make the state."""

    def _params(self) -> dict[ParamKey, Tensor]:
        """All parameters, by name."""
        pairs = zip(self._names(), self.param_groups, strict=True)
        return {name: p for names, group in pairs for name, p in zip(names, group["params"], strict=True)}

    def _own(self, name: str, make: Callable[[], Any]) -> Any:
        """An attribute, made where it is missing: the classes of torch have constructors of their own."""
        if name not in self.__dict__:
            self.__dict__[name] = make()
        return self.__dict__[name]
