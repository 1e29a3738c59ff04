"""One transformation for all groups of an optimizer, as a value.

It is made of what the groups say without their numbers: those are part of its state, and the rules are made from them
in every update. So two optimizers with the same rules have equal transformations, whatever their learning rates are,
and a number that changes is nothing new to a trace.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import tree
from .._algorithms.adam._sparse_adam import scale_by_sparse_adam
from .._base import GradientTransformation
from .._in_place._parts import Halves, InHalves, is_apart
from .._recipe import factory, is_own, uses_factory
from .._typing import Params, State, Updates
from .._wrappers._by_rows import rows
from .._wrappers._per_leaf import per_leaf
from ._amp import skip_overflow
from ._layout import ParamKey
from ._members import Member, Place


class Rules(Protocol):
    """What makes the members of a group from its numbers; compared by value."""

    def members(self, numbers: Mapping[Any, Any]) -> Sequence[Member]:
        """The members, first to last."""

    def uses(self, members: Sequence[Member], numbers: Mapping[int, int]) -> Sequence[Hashable]:
        """Which of some numbers, given by their ids, each member is made of; what tells it from those of others."""


class Part(NamedTuple):
    """What a group contributes."""

    rules: Rules
    numbers: tuple[tuple[Hashable, int], ...]  # its numbers, and which of those in the state each of them is
    schedules: tuple[tuple[Hashable, str, Callable[[Any], Any]], ...]  # a number, the label that shows it, the schedule


class Run(NamedTuple):
    """One member, and the parameters that go through it together."""

    part: int
    place: Place
    positions: tuple[int, ...]  # of the parameters
    alone: bool  # whether each of them has a state, and so a count, of its own

    def own(self, whole: Mapping[ParamKey, Any]) -> Mapping[ParamKey, Any]:
        """What a dict of all parameters holds for those of this run."""
        if len(self.positions) == len(whole):
            return whole
        names = list(whole)
        return {names[position]: whole[names[position]] for position in self.positions}


class EngineState(NamedTuple):
    """Everything that changes from step to step."""

    runs: tuple[State, ...]
    rates: dict[str, Tensor]  # the values of the schedules at the last step, by label
    numbers: tuple[Tensor, ...]  # of the groups, which a step reads


class Shown:
    """A schedule that remembers its last value, for the group to show it."""

    def __init__(self, schedule: Callable[[Any], Any], last: Tensor) -> None:
        self.schedule = schedule
        self.last = last

    def __call__(self, count: int | Tensor) -> Any:
        value = self.schedule(count)
        self.last = value.to(self.last.dtype) if isinstance(value, Tensor) else torch.full_like(self.last, value)
        return value


class Built(NamedTuple):
    """The transformations of the runs, made from certain numbers, and the schedules in them."""

    txs: Sequence[GradientTransformation]
    schedules: Mapping[str, Shown]


@dataclass(frozen=True, eq=False, repr=False)
class Stepping(InHalves):
    """What `stepping` makes; it prints as what the user has made."""

    parts: Sequence[Part] = ()

    def __repr__(self) -> str:
        return repr(self.parts[0].rules)


def make_members(
    parts: Sequence[Part], numbers: Sequence[Any], rates: Mapping[str, Tensor]
) -> tuple[list[Sequence[Member]], dict[str, Shown]]:
    """The members of each part, and the schedules in them."""
    schedules: dict[str, Shown] = {}
    made = []
    for part in parts:
        own: dict[Hashable, Any] = {key: numbers[i] for key, i in part.numbers}
        for key, label, schedule in part.schedules:
            own[key] = schedules.setdefault(label, Shown(schedule, rates[label]))
        made.append(part.rules.members(own))
    return made, schedules


def build(parts: Sequence[Part], runs: Sequence[Run], numbers: Sequence[Any], rates: Mapping[str, Tensor]) -> Built:
    """Make the transformations of the runs."""
    made, schedules = make_members(parts, numbers, rates)
    places = [{member.place: member.tx for member in members} for members in made]
    txs = [places[run.part][run.place] for run in runs]
    return Built([per_leaf(tx) if run.alone else tx for run, tx in zip(runs, txs, strict=True)], schedules)


def advance(built: Built, runs: Sequence[Run], which: range, resting: int) -> Any:
    """An update that goes through some of the runs, one after the other.

    Args:
        built: The transformations.
        runs: All runs.
        which: The runs to go through.
        resting: From which run on those without any gradient are left out.
    """

    def update(
        updates: Updates, state: EngineState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EngineState]:
        own, names = list(state.runs), list(updates)
        for label, shown in built.schedules.items():
            shown.last = state.rates[label]
        for i in which:
            run = runs[i]
            if resting <= i and all(updates[names[position]] is None for position in run.positions):
                continue
            there = None if params is None else run.own(params)
            changed, own[i] = built.txs[i].rule(run.own(updates), own[i], there, **extra)
            updates = changed if len(run.positions) == len(updates) else {**updates, **changed}
        rates = {label: shown.last for label, shown in built.schedules.items()}
        return updates, state._replace(runs=tuple(own), rates=rates)

    return update


@factory
def stepping(parts: tuple[Part, ...], runs: tuple[Run, ...]) -> GradientTransformation:
    """The transformation of the whole.

    Args:
        parts: What the groups contribute.
        runs: What is done, in order.
    """
    made: list[tuple[list[Tensor], GradientTransformation]] = []  # from tensors that stay, in steps of the rule itself

    def of(state: EngineState) -> GradientTransformation:
        numbers = [*state.numbers, *state.rates.values()]
        if made and len(made[0][0]) == len(numbers) and all(map(is_, made[0][0], numbers)):
            return made[0][1]
        tx = whole(build(parts, runs, state.numbers, state.rates), parts, runs)
        if all(type(x) is Tensor for x in numbers) and not torch.compiler.is_compiling():
            made[:] = [(numbers, tx)]
        return tx

    def update(
        updates: Updates, state: EngineState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EngineState]:
        return of(state).rule(updates, state, params, **extra)

    firsts: list[int] = []  # where the tail begins does not depend on numbers

    def halves(state: EngineState) -> Halves | None:
        built = build(parts, runs, state.numbers, state.rates)
        firsts[:] = firsts or [tail_of(built.txs, parts)]
        return halved(built, runs, firsts[0])

    return Stepping(init_none, update, parts=parts, halves=halves)


def whole(built: Built, parts: Sequence[Part], runs: Sequence[Run]) -> GradientTransformation:
    """The same, of transformations that are made already."""
    step = advance(built, runs, range(len(runs)), len(runs))

    def update(
        updates: Updates, state: EngineState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EngineState]:
        # Kernels refuse sparse gradients, so there are none but where the rule itself runs.
        if any(g is not None and g.is_sparse for g in updates.values()) and not _takes_sparse(built.txs):
            updates = tree.map(lambda g: g.to_dense() if g.is_sparse else g, updates)
        stepped: tuple[Updates, EngineState] = step(updates, state, params, **extra)
        return stepped

    made, first = skip_overflow(GradientTransformation(init_none, update)), tail_of(built.txs, parts)
    split = halved(built, runs, first)

    def eval_params(state: EngineState, params: Params) -> Params:
        for run, tx, own in zip(runs, built.txs, state.runs, strict=True):
            if tx.eval_params is not None:
                params = {**params, **tx.eval_params(own, run.own(params))}
        return params

    return InHalves(made.init, made.update, halves=lambda state: split, eval_params=eval_params)


def _takes_sparse(txs: Sequence[GradientTransformation]) -> bool:
    return any(uses_factory(tx, make) for tx in txs for make in (rows, scale_by_sparse_adam))


def tail_of(txs: Sequence[GradientTransformation], parts: Sequence[Part]) -> int:
    """The first of the runs after which no leaf sees another; beyond the last if one may call a function of others."""
    if not is_own(list(parts)):
        return len(txs)
    return next((i for i in range(len(txs), 0, -1) if not is_apart(txs[i - 1])), 0)


def halved(built: Built, runs: Sequence[Run], first: int) -> Halves | None:
    """The same in two: the runs before the first, and those from there on."""
    if first == len(runs):
        return None

    def within(which: range, **halves: bool) -> Any:
        half = GradientTransformation(init_none, advance(built, runs, which, first))
        return skip_overflow(half, **halves).rule

    tail = within(range(first, len(runs)), unscales=not first)
    return Halves(within(range(first), skips=False) if first else None, tail)


def init_none(params: Params) -> State:
    """The optimizer makes the state, from what it has."""
    raise NotImplementedError
