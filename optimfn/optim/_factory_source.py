"""The source behind `Optimizer`: groups that stand for a transformation made again with their numbers."""

from collections.abc import Callable, Hashable, Mapping
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._recipe import find_arguments, uses_factory
from .._wrappers._offload import offload
from ._bound import Bound, copied
from ._contract import every, is_capturing
from ._evaluation import Evaluation
from ._groups import check_keys
from ._hyperparameters import FactoryRules, Found, find_hyperparameters, follow_betas
from ._layout import Entries, ParamKey
from ._members import Route
from ._mould import mould_for
from ._runs import common_places, template
from ._source import Said


class FactorySource(Evaluation):
    """What the engine asks an `Optimizer`."""

    tx: GradientTransformation
    _whole: bool  # whether the numbers of the call that made it are hyperparameters
    _routes: dict[str, Route]  # by label
    _rules: dict[tuple[str, bool], FactoryRules]  # by label, and whether it goes uphill
    _live_rates: dict[str, Tensor]  # the values of schedules at the last step, by label

    def _begin(self) -> None:
        """Begin anew with the groups as they are, as after a checkpoint was loaded."""
        self._bound = None
        self._live_numbers().rejoin(set())
        self._own("_rules", dict)
        self._hyperparameters: dict[str, dict[str, Found]] = {}
        self._keys: dict[int, set[str]] = {}  # of each group, that were found to be right
        self._seen: dict[int, tuple[Any, ...]] = {}  # each group, its lr, b1 and b2 at the last step
        self._shown_rates: dict[str, tuple[Tensor, int]] = {}  # what shows the value of a schedule, by label
        live = self._own("_live_rates", dict)
        for group in self.__dict__.get("param_groups", ()):
            self._note(group)
            label = group.get("label", "")
            if any(callable(value) for _, value in self._found(group).values()):
                live.setdefault(label, group["lr"].clone()).copy_(group["lr"])
                self._shown_rates[label] = group["lr"], group["lr"]._version

    def _check_keys(self, group: dict[str, Any]) -> None:
        check_keys(group, self._found(group), self.tx)
        self._keys[id(group)] = set(group)

    def _note(self, group: dict[str, Any]) -> None:
        self._seen[id(group)] = group, group["lr"], group.get("b1"), group.get("b2")

    def _say(self, capturing: bool) -> list[Said]:
        said: list[Said] = []
        for group in self.param_groups:
            if self._keys.get(id(group)) != group.keys():
                self._check_keys(group)
            if "betas" in group:
                follow_betas(group, self._seen.get(id(group), (None,) * 4)[2:])
            self._note(group)
            label = group.get("label", "")
            said.append((self._rules_of(label, group["maximize"]), self._values(group)))
            if label in self._shown_rates:
                self._check_shown(label, group)
        return said

    def _values(self, group: dict[str, Any], now: Mapping[str, Any] | None = None) -> Mapping[Any, Any]:
        """The numbers of a group, or of another one as far as that has them."""
        now = group if now is None else {**group, **now}
        return {one: now[key] for key, (one, value) in self._found(group).items() if not callable(value)}

    def _rules_of(self, label: str, maximize: bool) -> FactoryRules:
        if (label, maximize) not in self._rules:
            self._rules[label, maximize] = FactoryRules(self.tx, tuple(self._routes[label].items()), maximize)
        return self._rules[label, maximize]

    def _names(self) -> list[list[ParamKey]]:
        taken: set[str] = set()
        named: list[list[ParamKey]] = []
        for number, group in enumerate(self.param_groups):
            start = sum(len(names) for names in named)
            names = group.get("param_names") or range(start, start + len(group["params"]))
            # Two groups may use the same names, as those of two modules do.
            named.append([ParamKey(f"{number}.{name}" if str(name) in taken else str(name)) for name in names])
            taken.update(map(str, names))
        return named

    def _schedules(self, group: dict[str, Any]) -> tuple[tuple[Hashable, str, Callable[[Any], Any]], ...]:
        found = self._found(group).values()
        return tuple((one, group.get("label", ""), value) for one, value in found if callable(value))

    def _rates(self) -> dict[str, Tensor]:
        return self._live_rates

    def _sees_all(self) -> bool:
        # A tree of marks has a place for every parameter.
        marks = [one for name in ("mask", "param_labels", "freeze_mask") for one in find_arguments(self.tx, name)]
        return any(isinstance(one, dict | list | tuple) for one in marks)

    def _publish(self, bound: Bound) -> None:
        if bound.state.rates:
            self._show_rates(bound)
        self._publish_entries(bound)

    def _publish_entries(self, bound: Bound) -> None:
        if not bound.is_published:
            for name, entries in bound.entries().items():
                own = self.state[bound.params[name]]
                own.clear()
                own.update(entries)
            self._watch(bound)
            bound.is_published = True

    def _show_rates(self, bound: Bound) -> None:
        """Let the groups show the values of the schedules, in tensors that a user may keep."""
        with torch.no_grad():
            for label, rate in bound.state.rates.items():
                self._live_rates[label].copy_(rate)
        bound.state = bound.state._replace(rates=self._live_rates)
        # A graph can write only where it has written.
        shown = self._live_rates if is_capturing(self.param_groups) else copied(self._live_rates)
        self._shown_rates = {label: (rate, rate._version) for label, rate in shown.items()}
        for group in self.param_groups:
            if group.get("label", "") in shown:
                group["lr"] = shown[group.get("label", "")]

    def _check_shown(self, label: str, group: dict[str, Any]) -> None:
        shown, version = self._shown_rates[label]
        value = group["lr"]
        if value is shown and version == shown._version:
            return
        shown = self._live_rates[label].clone()
        self._shown_rates[label] = shown, shown._version
        for other in self.param_groups:
            if other.get("label", "") == label:
                other["lr"] = shown
        schedule = next(one for _, one in self._found(group).values() if callable(one))
        raise ValueError(f"lr was set to {value!r}, but the schedule {schedule!r} of the transformation drives it")

    def _is_rehearsal(self) -> bool:
        """Whether this is no step but torch.distributed.checkpoint's way of having the state made."""
        if not all(_is_zero(group["lr"]) for group in self.param_groups):
            return False
        frames = (frame.f_globals.get("__name__") for frame, _ in walk_stack(None))
        return "torch.distributed.checkpoint.state_dict" in frames and not any(
            p.grad.any() for p in every(self.param_groups) if p.grad is not None
        )

    def _rehearse(self) -> None:
        """Make the state. Some rules put the learning rate into it, so that must be the last true one."""
        zeros = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self._seen[id(group)][1]
        try:
            self._publish_entries(self._join(self._say(False)))
        finally:
            for group, zero in zip(self.param_groups, zeros, strict=True):
                group["lr"] = zero

    def _wanted(self, loaded: Mapping[str, Any], strict: bool) -> tuple[dict[ParamKey, Entries], set[str]]:
        """What entries the parameters need that have some in a state dict, and which keys runs have in common.

        Groups run together, or each by itself, as those do that were saved.
        """
        wanted: dict[ParamKey, Entries] = {}
        common: set[str] = set()
        numbers = every(loaded["param_groups"])
        params = self._params()
        if len(numbers) != len(params):
            return wanted, common  # of this, torch speaks
        begun = {name for name, number in zip(params, numbers, strict=True) if loaded["state"].get(number)}
        live, own = self._live_numbers(), self.param_groups
        were_apart = live.apart()
        live.rejoin(set())
        live.separate([self._values(*both) for both in zip(own, loaded["param_groups"], strict=False)])
        try:
            parts, tensors = self._parts(self._say(False), False)
        finally:
            live.rejoin(were_apart)
            self._bound = None  # its numbers are bound no more
        mould = mould_for(type(self), parts, tensors, self._live_rates)
        for place in common_places(mould, [[n for n in names if n in begun] for names in self._names()]):
            # What is kept elsewhere is loaded there, and with memory it says where.
            memory = not strict or uses_factory(self.tx, offload)
            each = template(mould, place, params, self, has_memory=memory)
            for name, entries in each.scatter(each.state).items():
                wanted.setdefault(name, {}).update(entries)
            common |= {slot.key for slot in each.layout.slots if slot is not None and slot.owner is None}
        return wanted, common

    def _found(self, group: dict[str, Any]) -> dict[str, Found]:
        """The hyperparameters of a group, by their keys in it."""
        label = group.get("label", "")
        if label not in self._hyperparameters:
            self._hyperparameters[label] = find_hyperparameters(self.tx, self._routes[label], self._whole)
        return self._hyperparameters[label]


def _is_zero(rate: Any) -> bool:
    """Whether a learning rate is zero, without waiting for a device."""
    if isinstance(rate, Tensor):
        return rate.device.type == "cpu" and not rate.any()
    return bool(rate == 0)
