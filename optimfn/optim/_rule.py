"""One parameter group and the rule that drives it."""

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._recipe import find_arguments, substitute
from .._typing import Params, State
from ._layout import Layout, ParamKey


class GroupStep(NamedTuple):
    """What one step makes of a group: parameters and state, before and after."""

    old: tuple[Params, State]
    new: tuple[Params, State]


class GroupRule:
    """The transformation of one group, with its hyperparameters taken from the group.

    The rule is made again with tensors for them, which are filled from the group before every step: a change
    reaches the rule without making, tracing or compiling anything again.
    """

    def __init__(self, tx: GradientTransformation, group: Mapping[str, Any], names: Mapping[str, str]) -> None:
        params = group["params"]
        self.names = [ParamKey(name) for name in group.get("param_names", range(len(params)))]
        self.live: dict[str, Tensor] = {}  # the hyperparameters of this step, by their keys in the group
        self.schedule: Any = None
        self.shown = group.get("lr")  # what a scheduled group shows, and after this step
        self.next_shown = self.shown
        for key, name in names.items():
            value = next(find_arguments(tx, name))
            if callable(value):
                self.schedule = value
                tx = substitute(tx, name, self._record)
            else:
                self.live[key] = tree.wide(tree.count(params))
                tx = substitute(tx, name, self.live[key])
        self.tx = tx
        self.layout = Layout.of(tx, self._named(params))

    def compute(self, group: Mapping[str, Any], stored: Mapping[Tensor, dict[str, Any]]) -> GroupStep:
        """Compute a step from the gradients; only the live hyperparameters are written."""
        self._read(group)
        params = self._named(group["params"])
        grads = {name: p.grad for name, p in params.items()}
        entries = {name: stored[p] for name, p in params.items() if stored.get(p)}
        # Shared leaves stand under every parameter; the first one's are taken.
        shared = next(iter(entries.values()), {})
        state = self.layout.gather(entries, shared) if entries else self.tx.init(params)
        updates, new_state = self.tx.update(grads, state, params)
        return GroupStep((params, state), (apply_updates(params, updates), new_state))

    def store(
        self, group: MutableMapping[str, Any], stored: MutableMapping[Tensor, dict[str, Any]], state: State
    ) -> None:
        """Show a state, already written, in the dicts of the parameters."""
        entries, shared = self.layout.scatter(state)
        if entries or shared:
            for name, p in self._named(group["params"]).items():
                stored[p].update({**shared, **entries.get(name, {})})
        if self.schedule is not None:
            group["lr"] = self.shown = self.next_shown

    def _read(self, group: Mapping[str, Any]) -> None:
        for key, tensor in self.live.items():
            tensor.fill_(group[key])
        if self.schedule is not None and group["lr"] is not self.shown:
            raise ValueError(
                f"lr was set to {group['lr']!r}, but the schedule {self.schedule!r} of the transformation drives it"
            )

    def _record(self, count: int | Tensor) -> Tensor:
        value: Tensor = self.schedule(count)
        self.next_shown = value
        return value

    def _named(self, params: list[Tensor]) -> dict[ParamKey, Tensor]:
        return dict(zip(self.names, params, strict=True))


def one_learning_rate(tx: GradientTransformation) -> dict[str, Any]:
    """The learning rate of a ready-made transformation, by name; nothing if there is none, or several."""
    found = list(find_arguments(tx, "learning_rate"))
    return {"learning_rate": found[0]} if len(found) == 1 and found[0] is not None else {}


def own_hyperparameters(tx: GradientTransformation) -> dict[str, Any]:
    """The learning rate, and all arguments that are numbers, of the factory that made a transformation."""
    assert tx.recipe is not None
    defaults = inspect.signature(tx.recipe.factory).parameters

    def is_live(name: str, value: Any) -> bool:
        if name == "learning_rate":
            return value is not None
        whole = isinstance(value, int) and not isinstance(value, bool) and isinstance(defaults[name].default, float)
        return isinstance(value, float | Tensor) or whole

    return {name: value for name, value in tx.arguments.items() if is_live(name, value)}
