"""One parameter group and the rule that drives it."""

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
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
    """The transformation of one group, with its learning rate taken from the group.

    The rule is made again with a tensor for the learning rate, which is filled from `group["lr"]` before
    every step: a change reaches the rule without making, tracing or compiling anything again.
    """

    def __init__(self, tx: GradientTransformation, group: Mapping[str, Any]) -> None:
        params = group["params"]
        self.names = [ParamKey(name) for name in group.get("param_names", range(len(params)))]
        self.live: Tensor | None = None  # the learning rate of this step
        self.shown = group.get("lr")  # what a scheduled group shows
        self.schedule: Any = None
        rate = learning_rate(tx)
        if callable(rate):
            self.schedule = rate
            tx = substitute(tx, "learning_rate", self._record)
        elif rate is not None:
            self.live = tree.wide(tree.count(params))
            tx = substitute(tx, "learning_rate", self.live)
        self.tx = tx
        self.layout = Layout.of(
            tx.init({n: torch.empty_like(p, device="meta") for n, p in self._named(params).items()})
        )

    def compute(self, group: Mapping[str, Any], stored: Mapping[Tensor, dict[str, Any]]) -> GroupStep:
        """Compute a step from the gradients; only the live learning rate is written."""
        self._read_rate(group)
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
            group["lr"] = self.shown

    def _read_rate(self, group: Mapping[str, Any]) -> None:
        rate: Any = group.get("lr")
        if self.live is not None:
            self.live.fill_(rate)
        elif self.schedule is not None and rate is not self.shown:
            raise ValueError(
                f"lr was set to {rate!r}, but the schedule {self.schedule!r} of the transformation drives it"
            )

    def _record(self, count: int | Tensor) -> Tensor:
        value: Tensor = self.schedule(count)
        self.shown = value
        return value

    def _named(self, params: list[Tensor]) -> dict[ParamKey, Tensor]:
        return dict(zip(self.names, params, strict=True))


def learning_rate(tx: GradientTransformation) -> Any:
    """The learning rate in the recipes that made a transformation; `None` if there is none, or several."""
    found = list(find_arguments(tx, "learning_rate"))
    return found[0] if len(found) == 1 else None
