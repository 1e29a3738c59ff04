"""One transformation for all groups of an optimizer, and where its state lives.

Groups whose member is the same at some place of the chain run through it as one tree, so that a global norm is
that of all of them. Where a hyperparameter differs, or the past, as in a group that was added later, each runs
through a member of its own.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._typing import Params, State, Updates
from ._hyperparameters import Shown
from ._layout import Entries, Layout, ParamKey
from ._members import Member

Stored = MutableMapping[Tensor, Entries]


class PipelineState(NamedTuple):
    """The states of the runs, and the values of the schedules at the last step."""

    runs: tuple[State, ...]
    rates: dict[str, Tensor]  # by the label of the groups


class Run(NamedTuple):
    """A member, and the parameters that go through it together."""

    name: str
    tx: GradientTransformation
    names: tuple[ParamKey, ...]
    layout: Layout

    def own(self, whole: Mapping[ParamKey, Any]) -> dict[ParamKey, Any]:
        """What a dict of all parameters holds for those of this run."""
        return {name: whole[name] for name in self.names}


def merge(
    groups: Sequence[tuple[Sequence[Member], Sequence[ParamKey]]],
    used: Callable[[int, Member], frozenset[int]],
    params: Mapping[ParamKey, Tensor],
    stored: Stored,
) -> list[Run]:
    """Put the members of all groups in order, those that are the same in one run.

    Args:
        groups: The members of each group, and its parameters.
        used: The identities of the hyperparameters that a member of a group, given by its number, uses.
        params: All parameters.
        stored: Their entries, which tell the past.
    """
    runs = []
    for place in sorted({member.place for members, _ in groups for member in members}):
        together: dict[Any, list[tuple[Member, Sequence[ParamKey], Layout]]] = {}
        for number, (members, names) in enumerate(groups):
            for member in members:
                if member.place == place:
                    layout = _layout(member, names, params)
                    past = _past(layout, stored.get(params[names[0]], {}))
                    together.setdefault((used(number, member), past), []).append((member, names, layout))
        for alike in together.values():
            member, names, layout = alike[0]
            if len(alike) > 1:
                names = [name for _, own, _ in alike for name in own]
                layout = _layout(member, names, params)
            runs.append(Run(member.name, member.tx, tuple(names), layout))
    return runs


def pipeline(runs: Sequence[Run], schedules: Mapping[str, Shown]) -> GradientTransformation:
    """The transformation of the whole: dicts of parameters by name go through one run after the other."""

    def init(params: Params) -> PipelineState:
        states = tuple(run.tx.init(run.own(params)) for run in runs)
        return PipelineState(states, {label: shown.last for label, shown in schedules.items()})

    def update(
        updates: Updates, state: PipelineState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, PipelineState]:
        states = []
        for label, shown in schedules.items():
            shown.last = state.rates[label]
        for run, run_state in zip(runs, state.runs, strict=True):
            if len(run.names) == len(updates):
                updates, run_state = run.tx.update(updates, run_state, params, **extra)
            else:
                own_params = None if params is None else run.own(params)
                changed, run_state = run.tx.update(run.own(updates), run_state, own_params, **extra)
                updates = {**updates, **changed}
            states.append(run_state)
        return updates, PipelineState(tuple(states), {label: shown.last for label, shown in schedules.items()})

    return GradientTransformation(init, update)


def gather(runs: Sequence[Run], params: Mapping[ParamKey, Tensor], stored: Stored) -> tuple[State, ...]:
    """The states of the runs from the entries of the parameters; fresh ones for those that have none.

    Raises:
        KeyError: if a parameter has entries and one is missing, naming it.
    """
    states = []
    for run in runs:
        entries = {name: stored[params[name]] for name in run.names if stored.get(params[name])}
        if len(entries) == len(run.names):
            states.append(run.layout.gather(entries, _shared(run, entries)))
            continue
        fresh = run.tx.init({name: params[name].detach() for name in run.names})
        if entries:
            of_params, shared = run.layout.scatter(fresh)
            known = {name: entries.get(name, of_params.get(name, {})) for name in run.names}
            fresh = run.layout.gather(known, {**shared, **_shared(run, entries)})
        states.append(fresh)
    return _apart(tuple(states))


def scatter(runs: Sequence[Run], states: Sequence[State]) -> dict[ParamKey, Entries]:
    """The entries of the parameters. Shared leaves stand under each, if they are more than numbers under the first."""
    found: dict[ParamKey, Entries] = {}
    for run, state in zip(runs, states, strict=True):
        of_params, shared = run.layout.scatter(state)
        numbers = {key: leaf for key, leaf in shared.items() if leaf.ndim == 0}
        for position, name in enumerate(run.names):
            entries = {**(numbers if position else shared), **of_params.get(name, {})}
            if entries:
                found.setdefault(name, {}).update(entries)
    return found


def _apart(states: tuple[State, ...]) -> tuple[State, ...]:
    """The same states without a tensor in two places, as of a group that from now on counts by itself."""
    seen: set[int] = set()

    def once(leaf: Tensor) -> Tensor:
        leaf = leaf.clone() if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return leaf

    return tuple(tree.map(once, state) for state in states)


def _shared(run: Run, entries: Mapping[ParamKey, Entries]) -> Entries:
    return next(iter(entries.values()))


def _layout(member: Member, names: Sequence[ParamKey], params: Mapping[ParamKey, Tensor]) -> Layout:
    def key(path: str) -> str:
        return f"{member.name}.{path}" if path else member.name

    return Layout.of(member.tx, {name: params[name] for name in names}, key)


def _past(layout: Layout, entries: Entries) -> Any:
    """The numbers that a group shares, such as how many steps it has made; all alike if there are none to share."""
    keys = [slot.key for slot in layout.slots if slot.owner is None]
    return tuple(_number(entries.get(key)) for key in keys)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else None
