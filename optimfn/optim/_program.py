"""What a step of an `Optimizer` needs, made once and used as long as its groups and its state stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain as concatenated
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._base import GradientTransformation, apply_updates
from ..fused import make_step
from ._amp import skip_overflow
from ._hyperparameters import Found, Hyperparameter, Live, Shown, make_members, uses
from ._layout import ParamKey
from ._members import Route, members
from ._pipeline import PipelineState, Stored, gather, merge, pipeline, scatter


class Group(NamedTuple):
    """One parameter group, as a program sees it."""

    params: Sequence[Tensor]
    names: Sequence[ParamKey]
    label: str
    route: Route
    found: Mapping[str, Found]
    maximize: bool


class Program:
    """All groups of an optimizer as one transformation, its state, and where that stands in the optimizer.

    Args:
        tx: The transformation of the optimizer.
        groups: Its groups.
        live: The tensors for the hyperparameters.
        rates: The tensors that show the values of schedules, by label.
        stored: The state of the optimizer.
        values: The hyperparameters of each group, without those that a schedule drives.
        differentiable: Whether values that are tensors are used as they are, rather than live tensors.
        backend: How steps run, as for `make_step`.
    """

    def __init__(
        self,
        tx: GradientTransformation,
        groups: Sequence[Group],
        live: Live,
        rates: Mapping[str, Tensor],
        stored: Stored,
        values: Sequence[Mapping[Hyperparameter, Any]],
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        self.params = {name: p for group in groups for name, p in zip(group.names, group.params, strict=True)}
        self._groups = [list(group.params) for group in groups]
        self.schedules = _schedules(groups, rates)
        tensors, made = [], []
        for number, group in enumerate(groups):
            own: dict[Hyperparameter, Any] = {}
            for one, given in group.found.values():
                if callable(given):
                    own[one] = self.schedules[group.label]
                elif differentiable and isinstance(values[number][one], Tensor):
                    own[one] = values[number][one]
                else:
                    own[one] = live.tensor(one, number, group.params, values[number][one])
            tensors.append({id(value): value for value in own.values() if isinstance(value, Tensor)})
            made.append((make_members(tx, group.route, own, group.maximize), group.names))
        originals = [{member.place: member.tx for member in members(tx, group.route)} for group in groups]

        def used(number: int, member: Any) -> frozenset[int]:
            untouched = originals[number].get(member.place) is member.tx
            return frozenset() if untouched else uses(member.tx, tensors[number])

        self.runs = merge(made, used, self.params, stored)
        # The recipe is for messages: it prints as the transformation that the user has made.
        self.tx = replace(skip_overflow(pipeline(self.runs, self.schedules)), recipe=tx.recipe)
        self.state = PipelineState(gather(self.runs, self.params, stored), dict(rates))
        self.take = make_step(self.tx, donate=True, backend=backend).bind(self.params, self.state)
        self._versions = self._seen()
        self._shown: tuple[list[Any], list[Tensor]] | None = None
        if any(stored.get(p) for p in self.params.values()):
            self.publish(stored)

    def fits(self, groups: Sequence[Mapping[str, Any]], stored: Stored) -> bool:
        """Whether parameters and state are still those of the program."""
        if len(groups) != len(self._groups):
            return False
        for group, params in zip(groups, self._groups, strict=True):
            if len(group["params"]) != len(params) or not all(map(is_, group["params"], params)):
                return False
        if self._shown is None:
            return not stored
        dicts, leaves = self._shown
        if len(dicts) != len(stored) or not all(map(is_, dicts, stored.values())):
            return False
        now = list(concatenated.from_iterable(map(dict.values, dicts)))
        return len(now) == len(leaves) and all(map(is_, now, leaves))

    def was_overruled(self, label: str, value: Any) -> bool:
        """Whether the learning rate that a group shows was changed, in the group or in place."""
        shown = self.state.rates[label]
        return value is not shown or self._versions[label] != shown._version

    def take_differentiable(self, grads: Mapping[ParamKey, Tensor | None], extra: Mapping[str, Any]) -> None:
        """A step through which gradients flow."""
        # Writing in place must not change what autograd has kept of the parameters.
        params = {name: p.clone() for name, p in self.params.items()}
        updates, state = self.tx.update(grads, self.state, params, **extra)
        new = apply_updates(params, updates)
        for name, p in self.params.items():
            p.copy_(new[name])
        with torch.no_grad():
            for label, rate in state.rates.items():
                self.state.rates[label].copy_(rate)
        self.state = PipelineState(state.runs, self.state.rates)
        self._shown = None

    def publish(self, stored: Stored) -> None:
        """Show the state in the dicts of the parameters, if it is not there already."""
        self._versions = self._seen()
        if self._shown is not None:
            return
        for name, entries in scatter(self.runs, self.state.runs).items():
            own = stored[self.params[name]]
            own.clear()
            own.update(entries)
        dicts = list(stored.values())
        self._shown = dicts, [leaf for entries in dicts for leaf in entries.values()]

    def _seen(self) -> dict[str, int]:
        return {label: shown._version for label, shown in self.state.rates.items()}


def _schedules(groups: Sequence[Group], rates: Mapping[str, Tensor]) -> dict[str, Shown]:
    """The schedule of each label that has one."""
    return {
        group.label: Shown(value, rates[group.label])
        for group in groups
        for _, value in group.found.values()
        if callable(value)
    }
