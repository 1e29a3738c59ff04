"""Which parameters go through which rule together, and the state of each run from the entries of the parameters."""

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._gate import unasked
from .._typing import State
from ._layout import Entries, Layout, Memoryless, ParamKey, Slot
from ._members import Member
from ._mould import Mould
from ._pipeline import Run
from ._source import Source

_MOST_PASTS = 4  # of parameters that step together; beyond, each steps alone
Params = Mapping[ParamKey, Tensor]


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
    numbers: frozenset[Hashable] = frozenset()  # those of the groups of which it is made


def common_places(mould: Mould, names: Sequence[Sequence[ParamKey]]) -> list[Place]:
    """The members of all groups in order, with the parameters of all groups for which they are the same.

    Args:
        mould: What the groups contribute.
        names: The parameters of each group.
    """
    found: dict[Any, Place] = {}
    for number, (part, members) in enumerate(zip(mould.parts, mould.made, strict=True)):
        # What a member uses of the numbers tells it from those of other groups in its place.
        own_numbers = {id(mould.numbers[i]): i for _, i in part.numbers}
        used = part.rules.uses(members, own_numbers) if len(mould.parts) > 1 else [None for _ in members]
        for member, own in zip(members, used, strict=True):
            made_of = own if isinstance(own, frozenset) else frozenset()
            numbers = frozenset(key for key, i in part.numbers if i in made_of)
            place = found.setdefault((member.place, own), Place(number, member, [], numbers))
            place.names.extend(names[number])
    return sorted(found.values(), key=lambda place: place.member.place)


def told_apart(
    mould: Mould, places: Sequence[Place], names: Sequence[Sequence[ParamKey]], params: Params, source: Source
) -> set[Hashable]:
    """The numbers that groups must have each for itself: those of members of which groups have pasts of their own.

    So it is after groups have gone on with other numbers than each other, have equal ones again, and are loaded.

    Args:
        mould: What the groups contribute.
        places: The members of all groups.
        names: The parameters of each group.
        params: All parameters.
        source: What is known of them.
    """
    found: set[Hashable] = set()
    for place in places if len(names) > 1 and not source.counts_alone else ():
        here = set(place.names)
        begun = [[name for name in own if name in here and source.has_state(params[name])] for own in names]
        some = [params[own[0]] for own in begun if own]
        if len(some) < 2 or not place.numbers or place.member.tx.leafwise:
            continue
        layout, _ = _plan(mould, place.member, {place.names[0]: params[place.names[0]]}, source, False)
        shared = layout.shared()
        # Of a run the first parameter has the larger leaves.
        large = {key for key, leaf in source.entries(some[0]).items() if key in shared and leaf.ndim}
        past = source.past(some[0], shared)
        if any(source.past(p, shared) != past or source.entries(p).keys() & large for p in some[1:]):
            found |= place.numbers
    return found


class Cohort(NamedTuple):
    """Parameters of a place that share a state."""

    names: Sequence[ParamKey]
    alone: bool = False  # each has one of its own instead
    together: bool = False  # they share a count, so that they must go on together


def cohorts(mould: Mould, place: Place, params: Params, source: Source) -> list[Cohort]:
    """The parameters of a place by their past.

    Those with one past step as one tree, with one count, until they part. One that begins later, or misses a gradient,
    counts by itself from then on.
    """
    names = place.names
    if not (names and (place.member.tx.leafwise or source.counts_alone)):
        return [Cohort(names)]
    own = [params[name] for name in names]
    if not any(source.has_state(p) or source.has_parted(p) or p.grad is None for p in own):
        return [Cohort(names, together=True)]  # the first step, as a rule
    layout, _ = _plan(mould, place.member, {names[0]: own[0]}, source, False)
    if not any(layout.slots):
        return [Cohort(names)]
    names = [name for name in names if source.has_state(params[name]) or params[name].grad is not None]
    shared = layout.shared()
    if not shared:
        return [Cohort(names)]
    pasts: dict[Hashable, list[ParamKey]] = {}
    alone: list[ParamKey] = []
    for name in names:
        p = params[name]
        if source.has_parted(p):
            alone.append(name)
        else:
            pasts.setdefault(source.past(p, shared) if source.has_state(p) else "new", []).append(name)
    if len(pasts) > _MOST_PASTS:
        alone, pasts = names, {}
    return [Cohort(own, together=True) for own in pasts.values()] + ([Cohort(alone, alone=True)] if alone else [])


def place_run(
    mould: Mould, place: Place, cohort: Cohort, params: Params, positions: Mapping[ParamKey, int], source: Source
) -> Placed:
    """A run of some parameters, with its state: from their entries, and fresh for those that have none.

    Raises:
        KeyError: if a parameter has entries and one is missing, naming it.
        ValueError: if what is kept for all of them together was made for others.
    """
    member, (names, alone, together) = place.member, cohort
    own = {name: params[name] for name in names}
    run = Run(place.part, member.place, tuple(positions[name] for name in names), alone)
    known = {name: source.entries(p) for name, p in own.items() if source.has_state(p)}
    fresh: Any = None
    if len(known) < len(own) or not own:
        new = {name: p for name, p in own.items() if not (alone and name in known)}
        layout, fresh = _fresh(mould, member, alone, new, source)
    if not known:
        return Placed(run, names, layout, fresh, together and bool(layout.shared()))
    if alone:
        kept = {name: own[name] for name in known}
        old = _plan(mould, member, kept, source, True)[0].gather(known, {})
        state = {name: (old if name in known else fresh)[name] for name in names}
        layout, _ = mould.fresh(member, True, lambda tx: state, source.rename)
        return Placed(run, names, layout, state, together)
    layout, leaves = _plan(mould, member, own, source, False) if fresh is None else (layout, layout.read(fresh) or [])
    shared = {
        **next(iter(known.values())),
        **_lent(member, zip(layout.slots, leaves, strict=True), known, params, source),
    }
    if fresh is not None:
        of_params, others = layout.scatter(fresh)
        known, shared = {name: known.get(name, of_params.get(name, {})) for name in names}, {**others, **shared}
    return Placed(run, names, layout, layout.gather(known, shared), together)


def _lent(
    member: Member,
    slots: Iterable[tuple[Slot | None, Any]],
    known: Mapping[ParamKey, Entries],
    params: Params,
    source: Source,
) -> Entries:
    """What parameters keep together beside numbers, which stands under one of them; groups that part have it in turn.

    Raises:
        ValueError: if it was made for other parameters.
    """
    lent: Entries = {}
    for slot, leaf in slots:
        if slot is None or slot.owner is not None or not leaf.ndim:
            continue
        others = map(source.entries, params.values())
        found = next((x[slot.key] for x in (*known.values(), *others) if slot.key in x), None)
        if found is not None and found.shape != leaf.shape:
            raise ValueError(
                f"{member.name} keeps {slot.key} of shape {tuple(found.shape)} for parameters that it steps as one, "
                f"which are others now and need {tuple(leaf.shape)}. Give groups numbers of their own, and every "
                "parameter a gradient, from the first step on"
            )
        if found is not None:
            lent[slot.key] = found
    return lent


def template(mould: Mould, place: Place, params: Params, source: Source, has_memory: bool) -> Placed:
    """A run of all parameters of a place, each by itself where it can be, with a fresh state."""
    member, names = place.member, place.names
    own = {name: params[name] for name in names}
    alone = bool(names) and (member.tx.leafwise or source.counts_alone)
    with contextlib.nullcontext() if has_memory else _memoryless():
        layout, state = _fresh(mould, member, alone, own, source)
    return Placed(Run(place.part, member.place, (), alone), names, layout, state, False)


def _fresh(mould: Mould, member: Member, alone: bool, params: Params, source: Source) -> tuple[Layout, State]:
    layout, leaves = mould.fresh(member, alone, lambda tx: source.init(tx, params), source.rename)
    held = {x.data_ptr() for x in mould.numbers if not x.is_meta}
    # No state holds a number of the mould itself, which other optimizers write.
    leaves = [x.clone() if isinstance(x, Tensor) and not x.ndim and x.data_ptr() in held else x for x in leaves]
    return layout, layout.structure.unflatten(list(source.kept(layout.slots, leaves, params)))


def _plan(mould: Mould, member: Member, params: Params, source: Source, alone: bool) -> tuple[Layout, list[Any]]:
    """The layout of a fresh state, and leaves without memory."""
    with _memoryless():
        return mould.fresh(member, alone, lambda tx: tx.init(params), source.rename)


@contextlib.contextmanager
def _memoryless() -> Iterator[None]:
    mode: Any = Memoryless
    with mode(), torch.no_grad(), unasked():
        yield


def apart(placed: Sequence[Placed]) -> tuple[State, ...]:
    """The states without a tensor in two places, as of parameters that from now on count by themselves."""
    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        is_double = isinstance(leaf, Tensor) and id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if is_double else leaf

    structures = [each.layout.structure for each in placed]
    flat = [one.flatten(each.state) or [] for one, each in zip(structures, placed, strict=True)]
    return tuple([one.unflatten(list(map(once, leaves))) for one, leaves in zip(structures, flat, strict=True)])
