"""The numbers of a transformation that stand in the parameter groups, and how they get back into it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._recipe import Recorded, find_arguments, substitute
from .._transforms._rate import scale
from ._members import Member, Place, Route, labelled, members

FIRST, LAST = (-1,), (1 << 60,)  # places before and after all members


class Hyperparameter(NamedTuple):
    """Which argument a key of a group stands for."""

    origin: Place  # where the factory call that has the argument stands; () for the whole transformation
    argument: str
    own: bool  # whether it is an argument of that very call, rather than of one inside


class Found(NamedTuple):
    """A hyperparameter, and its value as it was given: a number, a tensor or, for a learning rate, a schedule."""

    one: Hyperparameter
    value: Any


def find_hyperparameters(tx: GradientTransformation, route: Route, whole: bool) -> dict[str, Found]:
    """The hyperparameters of a group, by their keys in it; always one that is called `lr`.

    Args:
        tx: The transformation.
        route: The labels of the group.
        whole: Whether the numbers among the arguments of the call that made `tx` are hyperparameters, rather
            than those of the calls that made what stands under the labels.
    """
    found = []
    for origin, under in [((), tx)] if whole else labelled(tx, route):
        found += [Found(Hyperparameter(origin, name, True), value) for name, value in _own_numbers(under).items()]
    if not any(one.argument == "learning_rate" for one, _ in found):
        rates = [
            Found(Hyperparameter(member.origin, "learning_rate", False), rate)
            for member in members(tx, route)
            for rate in find_arguments(member.tx, "learning_rate")
            if rate is not None
        ]
        # Without a learning rate, or with several, the key is a factor of the whole update.
        found += rates if len(rates) == 1 else [Found(Hyperparameter(LAST, "factor", False), 1.0)]
    keys = {"learning_rate": "lr", "factor": "lr"}
    return {keys.get(each.one.argument, each.one.argument): each for each in found}


def make_members(
    tx: GradientTransformation, route: Route, values: Mapping[Hyperparameter, Any], maximize: bool = False
) -> list[Member]:
    """The members of a group, made again with other values for its hyperparameters."""
    own = {(one.origin, one.argument): value for one, value in values.items() if one.own}
    inside = {one.origin: value for one, value in values.items() if one.argument == "learning_rate" and not one.own}

    def remake(origin: Place, under: GradientTransformation) -> GradientTransformation:
        changes = {argument: value for (place, argument), value in own.items() if place == origin}
        return under.replace(**changes) if changes else under

    made = [
        member._replace(tx=substitute(member.tx, "learning_rate", inside[member.origin]))
        if member.origin in inside
        else member
        for member in members(remake((), tx), route, remake)
    ]
    if maximize:
        made.insert(0, Member(FIRST, FIRST, "maximize", scale(-1.0)))
    made += [Member(LAST, LAST, "lr", scale(value)) for one, value in values.items() if one.argument == "factor"]
    return made


def uses(value: Any, tensors: Mapping[int, Any]) -> frozenset[int]:
    """Which of some tensors, given by their ids, can be in what a factory made; all, if that cannot be known."""
    if isinstance(value, Tensor):
        return frozenset([id(value)]) & tensors.keys()
    if isinstance(value, Recorded) and value.recipe is not None:
        return uses(list(value.arguments.values()), tensors)
    if isinstance(value, Mapping):
        return uses(list(value.values()), tensors)
    if isinstance(value, list | tuple):
        return frozenset().union(*(uses(member, tensors) for member in value))
    plain = value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | type | Shown)
    if plain or (inspect.isfunction(value) and not value.__closure__):
        return frozenset()
    return frozenset(tensors)


class Shown:
    """A schedule that remembers its last value, for the group to show it."""

    def __init__(self, schedule: Callable[[Any], Any], last: Tensor) -> None:
        self.schedule = schedule
        self.last = last

    def __call__(self, count: int | Tensor) -> Any:
        value = self.schedule(count)
        self.last = value.to(self.last.dtype) if isinstance(value, Tensor) else torch.full_like(self.last, value)
        return value


def show(schedule: Callable[[Any], Any], params: Sequence[Tensor]) -> Tensor:
    """A tensor that shows the value of a schedule, at first that of the first step."""
    count = tree.count(params)
    return tree.wide(count).copy_(torch.as_tensor(schedule(count)))


class Live:
    """The tensors through which hyperparameters reach a rule.

    Groups share the tensor of a hyperparameter until they differ in it; from then on each has its own.
    """

    def __init__(self) -> None:
        self.apart: set[Hyperparameter] = set()
        self._tensors: dict[Slot, Tensor] = {}
        self._written: dict[Slot, Any] = {}

    def tensor(self, one: Hyperparameter, number: int, params: Sequence[Tensor], value: Any) -> Tensor:
        """The tensor for a group, on the device of the parameters; a new one has the value."""
        slot = self._slot(one, number)
        if slot not in self._tensors:
            self._tensors[slot] = tree.wide(tree.count(params))
            self._put(slot, value)
        return self._tensors[slot]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return list(self._tensors.values())

    def separate(self, values: Sequence[Mapping[Hyperparameter, Any]]) -> bool:
        """Notice in which hyperparameters the groups differ; whether there are more of them than before."""
        first: dict[Hyperparameter, Any] = {}
        known = len(self.apart)
        for group in values:
            for one, value in group.items():
                if one not in self.apart and not _same_number(first.setdefault(one, value), value):
                    self.apart.add(one)
        return len(self.apart) > known

    def write(self, values: Sequence[Mapping[Hyperparameter, Any]], capturing: bool = False) -> None:
        """Put the values of the groups into the tensors.

        While a graph is captured, numbers are left out, since the graph would keep them as they are now; and so
        are tensors that lie elsewhere.
        """
        for number, group in enumerate(values):
            for one, value in group.items():
                slot = self._slot(one, number)
                if slot not in self._tensors:  # a differentiable step takes the value itself
                    continue
                if not capturing or (isinstance(value, Tensor) and value.device == self._tensors[slot].device):
                    self._put(slot, value)

    def _put(self, slot: "Slot", value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors[slot].copy_(value.detach().reshape(()))
            self._written.pop(slot, None)
        elif self._written.get(slot) != value:
            self._tensors[slot].fill_(value)
            self._written[slot] = value

    def _slot(self, one: Hyperparameter, number: int) -> "Slot":
        return one, number if one in self.apart else None


Slot = tuple[Hyperparameter, int | None]  # a hyperparameter, and the number of the group that has it for itself


def complete_betas(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Let `betas`, which the schedulers of torch cycle, and `b1` and `b2` be the same numbers."""
    if "b1" not in defaults or "b2" not in defaults:
        return
    if "betas" in group:
        group.setdefault("b1", group["betas"][0])
        group.setdefault("b2", group["betas"][1])
    group["betas"] = (group.get("b1", defaults["b1"]), group.get("b2", defaults["b2"]))


def follow_betas(group: dict[str, Any], seen: tuple[Any, ...]) -> None:
    """Bring `betas`, `b1` and `b2` together after one or the other was changed.

    Raises:
        ValueError: if both were changed, and not alike.
    """
    alone, together = (group["b1"], group["b2"]), tuple(group["betas"])
    if alone == together:
        return
    if alone != seen and together != seen:
        raise ValueError(f"b1, b2 were set to {alone!r} and betas to {together!r}; set one of them")
    now = alone if together == seen else together
    group["b1"], group["b2"] = now
    group["betas"] = now


def _own_numbers(tx: GradientTransformation) -> dict[str, Any]:
    """The learning rate, and all arguments that are numbers, of the call that made a transformation."""
    if tx.recipe is None:
        return {}
    defaults = inspect.signature(tx.recipe.factory).parameters

    def is_live(name: str, value: Any) -> bool:
        if name == "learning_rate":
            return value is not None
        whole = isinstance(value, int) and not isinstance(value, bool) and isinstance(defaults[name].default, float)
        return isinstance(value, float | Tensor) or whole

    return {name: value for name, value in tx.arguments.items() if name in defaults and is_live(name, value)}


def _same_number(a: Any, b: Any) -> bool:
    """Whether two groups can share one tensor for these values; tensors are told apart without being read."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)
