"""The numbers of a transformation that stand in the parameter groups, and how they get back into it."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, init_empty_state
from .._recipe import Recorded, factory, find_arguments, signature_of, substitute
from .._transforms._rate import scale
from .._typing import Assign, Params, Scalar, State, Updates
from .._wrappers._hyperparams import InjectedFactory, StatefulSchedule, lets_tensors_in
from ._members import Member, Place, Route, labelled
from ._members import members as members_of
from ._pipeline import Shown

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
            for member in members_of(tx, route)
            for rate in find_arguments(member.tx, "learning_rate")
            if rate is not None and not isinstance(rate, StatefulSchedule)
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
        changes = {argument: _given(under, value) for (place, argument), value in own.items() if place == origin}
        return under.replace(**changes) if changes else under

    made = [
        member._replace(tx=substitute(member.tx, "learning_rate", _given(member.tx, inside[member.origin])))
        if member.origin in inside
        else member
        for member in members_of(remake((), tx), route, remake)
    ]
    if maximize:
        made.insert(0, Member(FIRST, FIRST, "maximize", scale(-1.0)))
    made += [Member(LAST, LAST, "lr", scale_steps(value)) for one, value in values.items() if one.argument == "factor"]
    return made


@factory
def scale_steps(factor: Scalar) -> GradientTransformation:
    """`scale` for the end of any transformation: what is assigned is no step, and stays as it is."""

    def leaf(p: Tensor, u: Any) -> Any:
        return u if u is None or type(u) is Assign else tree.scale(factor, u)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        return tree.map(leaf, params, updates), state

    return GradientTransformation(init_empty_state, update, leafwise=True, elementwise=True, takes_assigned=True)


def _given(tx: GradientTransformation, value: Any) -> Any:
    """A number as the call that made a transformation takes it.

    What `inject_hyperparams` made keeps numbers in its state, and asks functions in every step.
    """
    injects = tx.recipe is not None and isinstance(tx.recipe.factory, InjectedFactory)
    return (lambda count: value) if injects and isinstance(value, Tensor) else value


class FactoryRules(NamedTuple):
    """What makes the members of a group of `Optimizer`: they are made again with the numbers of the group."""

    tx: GradientTransformation
    route: tuple[tuple[Place, Any], ...]
    maximize: bool

    def members(self, numbers: Mapping[Hyperparameter, Any]) -> list[Member]:
        """The members, first to last."""
        return make_members(self.tx, dict(self.route), numbers, self.maximize)

    def uses(self, members: Sequence[Member], numbers: Mapping[int, int]) -> list[Hashable]:
        """Which of some numbers each member is made of; all, if that cannot be known."""
        originals = {member.place: member.tx for member in members_of(self.tx, dict(self.route))}
        return [frozenset() if originals.get(one.place) is one.tx else uses(one.tx, numbers) for one in members]

    def __repr__(self) -> str:
        return repr(self.tx)


def uses(value: Any, tensors: Mapping[int, int]) -> frozenset[int]:
    """Which of some tensors, given by their ids, can be in what a factory made; all, if that cannot be known."""
    if isinstance(value, Tensor):
        return frozenset([tensors[id(value)]] if id(value) in tensors else [])
    if isinstance(value, Recorded) and value.recipe is not None:
        return uses(list(value.arguments.values()), tensors)
    if isinstance(value, Mapping):
        return uses(list(value.values()), tensors)
    if isinstance(value, list | tuple):
        return frozenset().union(*(uses(member, tensors) for member in value))
    plain = value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | type | Shown)
    if plain or (inspect.isfunction(value) and not value.__closure__):
        return frozenset()
    return frozenset(tensors.values())


def show(schedule: Callable[[Any], Any], params: Sequence[Tensor]) -> Tensor:
    """A tensor that shows the value of a schedule, at first that of the first step."""
    count = tree.count(params)
    return tree.wide(count).copy_(torch.as_tensor(schedule(count)))


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
        ValueError: if both were changed, and not alike, or `betas` are not two.
    """
    if not isinstance(group["betas"], list | tuple) or len(group["betas"]) != 2:
        raise ValueError(f"betas of a group must be two numbers, got {group['betas']!r}")
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
    defaults = signature_of(tx.recipe.factory).parameters

    def is_live(name: str, value: Any) -> bool:
        if name == "learning_rate":
            return value is not None
        if not lets_tensors_in(defaults[name]):  # such as a number by which the host decides
            return False
        whole = isinstance(value, int) and not isinstance(value, bool) and isinstance(defaults[name].default, float)
        return isinstance(value, float | Tensor) or whole

    return {name: value for name, value in tx.arguments.items() if name in defaults and is_live(name, value)}
