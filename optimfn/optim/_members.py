"""The parts of a transformation, as they apply to one parameter group.

A chain is taken apart into its members, and of a `partition` only the member for the label of the group
remains. So every group has a list of members, and groups can share those that are the same for them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._base import GradientTransformation
from .._recipe import Recipe, Recorded
from .._wrappers._partition import partition, resolve_labels
from .._wrappers._quantize_state import quantize_state
from ._layout import ParamKey

Place = tuple[int, ...]
"""Positions in the chains, and among the labels, that lead to a member; sorted, they are in the order of execution."""

Route = Mapping[Place, Any]
"""The label of a group at each `partition`."""


class Member(NamedTuple):
    """One member of the chain of a group."""

    place: Place
    origin: Place  # of the innermost label it stands under; () if it stands under none
    name: str  # under which its state is kept
    tx: GradientTransformation


def routes(tx: GradientTransformation, params: Mapping[ParamKey, Tensor]) -> list[tuple[Route, list[ParamKey]]]:
    """The parameters by their labels; all of them in one piece if there is no `partition`."""

    def visit(
        tx: GradientTransformation, place: Place, found: list[tuple[Route, list[ParamKey]]]
    ) -> list[tuple[Route, list[ParamKey]]]:
        for position, member in enumerate(tx.members.values()):
            found = visit(member, (*place, position), found)
        if not _is_partition(tx):
            return found
        transforms, split = tx.arguments["transforms"], []
        for route, names in found:
            labels = resolve_labels(transforms, tx.arguments["param_labels"], {name: params[name] for name in names})
            for position, (label, inner) in enumerate(transforms.items()):
                if own := [name for name in names if labels[name] == label]:
                    split += visit(inner, (*place, position), [({**route, place: label}, own)])
        return split

    return visit(tx, (), [({}, list(params))])


def members(
    tx: GradientTransformation,
    route: Route,
    remake: Callable[[Place, GradientTransformation], GradientTransformation] = lambda origin, tx: tx,
) -> list[Member]:
    """The members of the chain of a group, in order.

    Args:
        tx: The whole transformation.
        route: The labels of the group.
        remake: Called with what stands under a label, before it is taken apart, and where that is.
    """
    found: list[Member] = []

    def visit(tx: GradientTransformation, place: Place, origin: Place, prefix: str) -> None:
        for position, (key, member) in enumerate(tx.members.items()):
            visit(member, (*place, position), origin, f"{prefix}{key}." if isinstance(key, str) else prefix)
        if tx.members:
            return
        if _is_partition(tx):
            transforms: dict[str, GradientTransformation] = tx.arguments["transforms"]
            label = route[place]
            under = (*place, list(transforms).index(label))
            visit(remake(under, transforms[label]), under, under, f"{prefix}{label}.")
        else:
            found.append(Member(place, origin, prefix + _name(tx), tx))

    visit(tx, (), (), "")
    return _numbered(found)


def labelled(tx: GradientTransformation, route: Route) -> Sequence[tuple[Place, GradientTransformation]]:
    """What stands under the labels of a route, outermost first."""
    found: list[tuple[Place, GradientTransformation]] = []

    def see(origin: Place, tx: GradientTransformation) -> GradientTransformation:
        found.append((origin, tx))
        return tx

    members(tx, route, see)
    return found


def keep_slow(value: Any) -> Any:
    """The same with the slow parameters of every `lookahead` in its state: an optimizer has one copy of parameters."""
    if isinstance(value, Recorded) and value.recipe is not None:
        given = value.recipe.arguments
        new = {name: True if name == "slow_in_state" else keep_slow(x) for name, x in given.items()}
        if all(new[name] is x for name, x in given.items()):
            return value
        bound = value.recipe.bind()
        bound.arguments.update(new)
        return value.recipe.remake(bound)
    if type(value) is dict:
        kept = {key: keep_slow(member) for key, member in value.items()}
        return kept if any(kept[key] is not member for key, member in value.items()) else value
    if type(value) in (list, tuple):
        members = type(value)(map(keep_slow, value))
        return members if any(new is not old for new, old in zip(members, value, strict=True)) else value
    return value


def _name(tx: GradientTransformation) -> str:
    """What a member is called: by its factory, never by its arguments, which may change."""
    if tx.recipe is None:
        return "transformation"
    make = tx.recipe.factory
    if make is quantize_state:  # so that its checkpoints are those of the rule, in another format
        return _name(tx.recipe.arguments["tx"])
    recipe: Recipe | None = getattr(make, "recipe", None)  # of a factory that was made by one
    return (make if recipe is None else recipe.factory).__name__


def _is_partition(tx: GradientTransformation) -> bool:
    return tx.recipe is not None and tx.recipe.factory is partition


def _numbered(found: list[Member]) -> list[Member]:
    """The second member of a name is called `name_2`."""
    seen: dict[str, int] = {}
    named: list[Any] = []
    for member in found:
        count = seen[member.name] = seen.get(member.name, 0) + 1
        named.append(member if count == 1 else member._replace(name=f"{member.name}_{count}"))
    return named
