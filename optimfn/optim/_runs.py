"""Which parameters go through which rule together, and the state of each run from the entries of the parameters."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._typing import State
from .._wrappers._per_leaf import per_leaf
from ._layout import Entries, Layout, Memoryless, ParamKey
from ._members import Member
from ._pipeline import Part, Run

_MOST_PASTS = 4  # of parameters that step together; beyond, each steps alone
Params = Mapping[ParamKey, Tensor]


class Book(Protocol):
    """What is known of each parameter."""

    counts_alone: bool  # whether every rule counts the steps of each parameter, rather than those that see only it

    def has_state(self, p: Tensor) -> bool:
        """Whether there are entries for it."""

    def has_parted(self, p: Tensor) -> bool:
        """Whether it has missed a gradient that others had."""

    def past(self, p: Tensor, keys: Sequence[str]) -> Hashable:
        """What it has in common with those that have made the same steps."""

    def entries(self, p: Tensor) -> Entries:
        """Its entries by the keys of the layout."""

    def init(self, tx: GradientTransformation, params: Params) -> State:
        """A fresh state."""

    def rename(self, member: str, path: str) -> str:
        """The key of a path in the state of a member."""


class Placed(NamedTuple):
    """A run, where its leaves live, and its state."""

    run: Run
    names: Sequence[ParamKey]
    layout: Layout
    state: State
    is_together: bool  # whether these share a count, so that they must go on together

    def scatter(self, state: State) -> dict[ParamKey, Entries]:
        """The entries of the parameters. Shared numbers stand under each of them, larger leaves under the first."""
        own, shared = self.layout.scatter(state)
        numbers = {key: leaf for key, leaf in shared.items() if leaf.ndim == 0}
        found = {name: {**(numbers if i else shared), **own.get(name, {})} for i, name in enumerate(self.names)}
        return {name: entries for name, entries in found.items() if entries}


class Place(NamedTuple):
    """A member as it is the same for several groups, and the parameters of those."""

    part: int
    member: Member
    names: list[ParamKey]


def common_places(
    parts: Sequence[Part],
    made: Sequence[Sequence[Member]],
    numbers: Sequence[Tensor],
    names: Sequence[Sequence[ParamKey]],
) -> list[Place]:
    """The members of all groups in order, with the parameters of all groups for which they are the same.

    Args:
        parts: What each group contributes.
        made: Its members.
        numbers: Those of all groups; what a member uses of them tells it from those of other groups in its place.
        names: The parameters of each group.
    """
    found: dict[Any, Place] = {}
    for number, (part, members) in enumerate(zip(parts, made, strict=True)):
        own_numbers = {id(numbers[i]): i for _, i in part.numbers}
        used = part.rules.uses(members, own_numbers) if len(parts) > 1 else [None for _ in members]
        for member, own in zip(members, used, strict=True):
            place = found.setdefault((member.place, own), Place(number, member, []))
            place.names.extend(names[number])
    return sorted(found.values(), key=lambda place: place.member.place)


class Cohort(NamedTuple):
    """Parameters of a place that share a state."""

    names: Sequence[ParamKey]
    alone: bool = False  # each has one of its own instead
    together: bool = False  # they share a count, so that they must go on together


def cohorts(place: Place, params: Params, book: Book) -> list[Cohort]:
    """The parameters of a place by their past.

    Those with one past step as one tree, with one count, until they part. One that begins later, or misses a gradient,
    counts by itself from then on.
    """
    names = place.names
    if not (names and (place.member.tx.leafwise or book.counts_alone)):
        return [Cohort(names)]
    own = [params[name] for name in names]
    if not any(book.has_state(p) or book.has_parted(p) or p.grad is None for p in own):
        return [Cohort(names, together=True)]  # the first step, as a rule
    layout = _layout(place.member, {names[0]: own[0]}, book, False)
    if not layout.slots:
        return [Cohort(names)]
    names = [name for name in names if book.has_state(params[name]) or params[name].grad is not None]
    shared = [key for owner, key in layout.slots if owner is None]
    if not shared:
        return [Cohort(names)]
    pasts: dict[Hashable, list[ParamKey]] = {}
    alone: list[ParamKey] = []
    for name in names:
        p = params[name]
        if book.has_parted(p):
            alone.append(name)
        else:
            pasts.setdefault(book.past(p, shared) if book.has_state(p) else "new", []).append(name)
    if len(pasts) > _MOST_PASTS:
        alone, pasts = names, {}
    return [Cohort(own, together=True) for own in pasts.values()] + ([Cohort(alone, alone=True)] if alone else [])


def place_run(place: Place, cohort: Cohort, params: Params, positions: Mapping[ParamKey, int], book: Book) -> Placed:
    """A run of some parameters, with its state: from their entries, and fresh for those that have none.

    Raises:
        KeyError: if a parameter has entries and one is missing, naming it.
    """
    member, (names, alone, together) = place.member, cohort
    own = {name: params[name] for name in names}
    run = Run(place.part, member.place, tuple(positions[name] for name in names), alone)
    known = {name: book.entries(p) for name, p in own.items() if book.has_state(p)}
    fresh: Any = None
    if len(known) < len(own) or not own:
        tx = per_leaf(member.tx) if alone else member.tx
        fresh = book.init(tx, {name: p for name, p in own.items() if not (alone and name in known)})
    if not known:
        layout = _layout_of(fresh, member, book)
        return Placed(run, names, layout, fresh, together and bool(layout.shared()))
    if alone:
        old = _layout(member, {name: own[name] for name in known}, book, True).gather(known, {})
        state = {name: (old if name in known else fresh)[name] for name in names}
        return Placed(run, names, _layout_of(state, member, book), state, together)
    shared = next(iter(known.values()))
    layout = _layout(member, own, book, False) if fresh is None else _layout_of(fresh, member, book)
    if fresh is not None:
        of_params, new = layout.scatter(fresh)
        known, shared = {name: known.get(name, of_params.get(name, {})) for name in names}, {**new, **shared}
    return Placed(run, names, layout, layout.gather(known, shared), together)


def template(place: Place, params: Params, book: Book, has_memory: bool) -> Placed:
    """A run of all parameters of a place, each by itself where it can be, with a fresh state."""
    member, names = place.member, place.names
    own = {name: params[name] for name in names}
    alone = bool(names) and (member.tx.leafwise or book.counts_alone)
    if has_memory:
        layout = _layout_of(book.init(per_leaf(member.tx) if alone else member.tx, own), member, book)
    else:
        layout = _layout(member, own, book, alone)
    return Placed(Run(place.part, member.place, (), alone), names, layout, layout.template, False)


def apart(states: Sequence[State]) -> tuple[State, ...]:
    """The same states without a tensor in two places, as of parameters that from now on count by themselves."""
    seen: set[int] = set()

    def once(leaf: Tensor) -> Tensor:
        leaf = leaf.clone() if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return leaf

    return tuple(tree.map(once, state) for state in states)


def _layout(member: Member, params: Params, book: Book, alone: bool) -> Layout:
    tx = per_leaf(member.tx) if alone else member.tx
    mode: Any = Memoryless
    with mode(), torch.no_grad():
        return _layout_of(tx.init(params), member, book)


def _layout_of(state: State, member: Member, book: Book) -> Layout:
    return Layout.of(state, lambda path: book.rename(member.name, path))
