"""Updates that say what a parameter becomes, and what goes with them in one tree: steps."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from . import tree
from ._rows import Replaced, add_rows, either_or_number, put
from ._torch import placed_like
from ._typing import Assign, Params, Tree, Updates

_NODES = dict, list, tuple  # a union of them is beyond compilers


def is_assigned(updates: Updates) -> bool:
    """Whether a leaf of the updates is an `Assign`."""
    if updates is None or isinstance(updates, Tensor):
        return False
    if type(updates) is Assign:
        return True
    if tree.is_leaf(updates):
        return False
    # Asked of every member of a chain in every step: a plain loop takes a few microseconds for hundreds of leaves.
    if not isinstance(updates, _NODES):
        return any(type(node) is Assign for _, node in tree.walk(updates))
    for child in updates.values() if isinstance(updates, dict) else updates:
        if not isinstance(child, Tensor) and is_assigned(child):
            return True
    return False


def values(updates: Updates) -> Tree:
    """The updates with the value of every `Assign` in its place."""
    if not is_assigned(updates):
        return updates
    return tree.map_nodes(lambda _, node: (type(node) is Assign, getattr(node, "value", None)), updates)


def becomes(p: Tensor, update: Any) -> Tensor:
    """What an update makes of a parameter, in the dtype of the parameter and rounded to it once.

    Args:
        p: The parameter.
        update: What to add to it, an `Assign`, or `None` for nothing.
    """
    if update is None:
        return p
    if type(update) is Assign:
        if isinstance(update.value, Replaced):
            return put(p, update.value.places, update.value.rows)
        # In memory of its own: the value may be a leaf of the state, and steps write in place.
        return p if update.value is None else placed_like(update.value.to(p.dtype, copy=True), p)
    if update.is_sparse:
        return add_rows(p, update)
    return placed_like(tree.cast_leaf(p + update, p.dtype), p)


def choose(condition: bool | Tensor, updates: Updates, others: Updates | float, params: Params | None) -> Updates:
    """The updates if the one condition holds, else others: a tree, or a number in the place of every element, 0 or -0.

    A leaf that is assigned by either is assigned by both: to what the parameter becomes.

    Raises:
        ValueError: if a leaf is assigned and there are no parameters.
    """
    alike = isinstance(others, float)
    if not isinstance(condition, Tensor):
        return updates if condition else tree.full_like(values(updates), others) if alike else others
    if not (is_assigned(updates) or (not alike and is_assigned(others))):
        if alike:
            return tree.map(lambda u: either_or_number(condition, u, others), updates)
        return tree.where(condition, updates, others)
    own = _needed(params)

    def leaf(p: Tensor, u: Any, other: Any) -> Any:
        if u is None:
            return None
        if alike:
            other = torch.full_like(u, others) if isinstance(u, Tensor) else None
        if isinstance(u, Tensor) and isinstance(other, Tensor):
            return torch.where(condition, u, other)
        return Assign(torch.where(condition, becomes(p, u), becomes(p, other)))

    return tree.map(leaf, own, updates, own if alike else others)


def steps(updates: Updates, params: Params | None) -> Updates:
    """The updates as what is added to the parameters, to be looked at: for a leaf that is assigned, the difference."""
    if not is_assigned(updates):
        return updates

    def leaf(p: Tensor, u: Any) -> Any:
        return u if type(u) is not Assign else None if u.value is None else u.value - p

    return tree.map(leaf, _needed(params), updates)


def _needed(params: Params | None) -> Params:
    if params is None:
        raise ValueError("updates that assign need the parameters: call tx.update(updates, state, params)")
    return params


def refuse(who: str, updates: Updates) -> NoReturn:
    """Say that a transformation was given an assigned leaf.

    Raises:
        TypeError: always, naming both and what to do.
    """
    raise TypeError(
        f"{who} cannot transform the update{_place(updates)}: it is an Assign, which says what the parameter becomes "
        f"and is no step to be changed. Put {who} before what assigns, which belongs at the end of the chain"
    )


def need_steps(who: str, updates: Updates) -> Updates:
    """The updates of what is wrapped, which must be steps, since the wrapper reckons with them.

    Raises:
        TypeError: if a leaf is assigned, naming the wrapper and what to do.
    """
    if not is_assigned(updates):
        return updates
    raise TypeError(
        f"{who} reckons with the steps of what it wraps, and the update{_place(updates)} is an Assign, which says what "
        f"the parameter becomes. Put what assigns behind {who}: chain({who}(...), ...)"
    )


def _place(updates: Updates) -> str:
    path = next(path for path, node in tree.walk(updates) if type(node) is Assign)
    return f" of {tree.join_path(path)}" if path else ""
