"""What may stand where in a chain: what each part must be given, and what nothing may follow."""

import enum
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ._recipe import Recorded

# Arguments of what sees some leaves or steps only.
_APART = ("mask", "freeze_mask", "param_labels", "condition", "should_transform_fn")
_ALTER = ("optimfn._transforms.", "optimfn._algorithms.")  # where factories live whose results change updates


class Place(enum.Enum):
    """What a transformation is to see, if that decides what may stand beside it."""

    FRONT = "gradients, before any rule"
    RULE = "gradients"
    DECAY = "directions, before the learning rate"
    WHOLE = "gradients: it makes whole steps"
    LAST = "the finished step"
    WATCHES = "anything, and lets it through"


def check_order(members: Iterable[Any]) -> None:
    """Refuse a chain in which a part is given what it cannot work with.

    Only what is certain is refused: what acts on some leaves or in some steps, or is not of this library, may be
    anything.

    Raises:
        ValueError: naming the part, what it stands behind, and where it belongs.
    """
    if torch.compiler.is_compiling():
        return  # what is made anew in a compiled step has been judged in `init`; dynamo cannot look at arguments
    behind: dict[Place, Any] = {}
    rated = None
    for tx in flat(members):
        if rated is not None and tx.place in (Place.FRONT, Place.RULE, Place.DECAY, Place.WHOLE):
            raise ValueError(
                f"{_name(tx)} must see {tx.place.value}, and {_name(rated)} has made a step of them: put it in front"
            )
        if tx.place is Place.FRONT and (rule := behind.get(Place.RULE)) is not None:
            raise ValueError(f"{_name(tx)} must see {tx.place.value}, and stands behind {_name(rule)}: put it in front")
        if Place.WHOLE in behind and _alters(tx):
            raise ValueError(
                f"the step of {_name(behind[Place.WHOLE])} must reach the parameters as it is, and {_name(tx)} behind "
                "it would change it: put it in front, or inside"
            )
        if Place.LAST in behind and (has_rate(tx) or tx.place not in (None, Place.LAST, Place.WATCHES)):
            raise ValueError(
                f"{_name(behind[Place.LAST])} must see {Place.LAST.value}, and {_name(tx)} behind it would change it: "
                "put it last"
            )
        rated = tx if rated is None and has_rate(tx) else rated
        place = Place.RULE if is_rule(tx) else tx.place
        if place is not None:
            behind.setdefault(place, tx)


def flat(members: Iterable[Any]) -> Iterator[Any]:
    """The members of chains within chains."""
    for tx in members:
        yield from flat(tx.members.values()) if tx.members else [tx]


def has_rate(tx: Any) -> bool:
    """Whether it makes steps downhill of gradients, for certain: there is a learning rate in it, for all leaves."""
    if tx.members:
        return any(map(has_rate, tx.members.values()))
    if tx.place is not None:
        return tx.place is Place.WHOLE
    arguments = tx.arguments
    if "learning_rate" in arguments:
        return arguments["learning_rate"] is not None and bool(arguments.get("flip_sign", True))
    if any(name in arguments for name in _APART):
        return False
    return any(has_rate(inner) for inner in arguments.values() if _is_transformation(inner))


def is_rule(tx: Any) -> bool:
    """Whether it makes directions of gradients, uphill as these, for certain."""
    if tx.recipe is None or tx.place not in (None, Place.RULE) or has_rate(tx):
        return False
    make = tx.recipe.factory
    return tx.place is Place.RULE or (make.__module__.startswith(_ALTER[1]) and make.__name__.startswith("scale_by_"))


def check_descends(**values: Any) -> None:
    """Refuse what goes uphill for certain: rules without a learning rate, and nothing else."""
    for name, tx in values.items():
        members = list(flat([tx]))
        known = all(is_rule(part) or part.place in (Place.FRONT, Place.DECAY, Place.WATCHES) for part in members)
        if known and any(map(is_rule, members)):
            raise ValueError(
                f"{name} must be a whole optimizer, whose updates go downhill, got the rule {tx!r}: put "
                "scale_by_learning_rate behind it"
            )


def check_directions(**values: Any) -> None:
    """Refuse optimizers of which some have a learning rate and some have not, or that decay behind it.

    Raises:
        ValueError: naming the argument and what is wrong with it.
    """
    rated = {name: has_rate(tx) for name, tx in values.items()}
    if len(set(rated.values())) > 1:
        name, other = sorted(rated, key=rated.__getitem__, reverse=True)[:2]
        raise ValueError(
            f"{name} has a learning rate and {other} has none, so that they point opposite ways, got {values[name]!r}: "
            "give both as rules, and put the rate behind"
        )
    for name, tx in values.items():
        members = list(flat([tx]))
        rules = [i for i, part in enumerate(members) if is_rule(part)]
        for part in members[max(rules, default=len(members)) :]:
            if part.place is Place.DECAY:
                raise ValueError(f"{name} must not decay, got {part!r} in it: put it behind")


def check_keeps_none(**values: Any) -> None:
    """Refuse optimizers that keep parameters of their own, inside of something that moves the parameters elsewhere."""
    for name, tx in values.items():
        if tx.eval_params is not None:
            raise ValueError(
                f"{name} must not keep parameters to evaluate of its own, got {tx!r}: an average belongs behind, in a "
                "chain"
            )


def _alters(tx: Any) -> bool:
    if tx.place in (Place.LAST, Place.WATCHES):
        return False
    return has_rate(tx) or (tx.recipe is not None and tx.recipe.factory.__module__.startswith(_ALTER))


def _is_transformation(value: Any) -> bool:
    return isinstance(value, Recorded) and hasattr(value, "members")


def _name(tx: Any) -> str:
    while tx.recipe is not None and tx.recipe.factory.__name__ == "masked":
        tx = tx.arguments["inner"]
    return repr(tx) if tx.recipe is None else tx.recipe.factory.__name__
