"""A donating step of the rule itself, some leaves at a time.

A rule that computes everything before the first write holds all new values and what leads to them at once, several
times the parameters. Where no leaf sees another, it need not: called with the gradients of some leaves, and none for
the others, it gives the new values of these, and everything else as the very objects that it was given. What belongs
to no leaf alone, such as a count, is written last, so that every part sees the old one.

A step that raises has written nothing. So there are parts only where all that can go wrong has been tried before: the
rule is of this package throughout, and has run once, part by part, on tensors without values of the same kinds.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._gate import on_wide
from .._recipe import find_tensors, is_own, uses_factory
from .._rows import donating
from .._torch import is_differentiating, without_modes
from .._transforms._decay_kinds import decay_after_step, decay_proximally
from .._transforms._rate import scale_by_learning_rate, scale_by_schedule
from .._typing import Params, State, Updates
from .._wrappers._by_rows import rows
from .._wrappers._offload import offload
from ._write import targets_apart

# A part is at most this fraction of the parameters, or one leaf; behind a head, which holds as much again, or with
# arguments, such as those of a GradScaler, for which as much is computed again, the second.
_SHARES = 4, 8
# Bytes of parameters, and of a leaf on average; of fewer, walking the trees once a part takes longer than it is worth.
_LEAST, _LEAST_LEAF = 2**19, 2**13
# Where a state is so many times the parameters, a part is at most this fraction of them, or has this much of the state.
_MUCH, _SHARE_OF_MUCH, _STACK = 3, 16, 2**22
_MOST_KINDS = 64  # that are remembered
_PLAIN = (Tensor, torch.nn.Parameter)

Stage = Callable[..., tuple[Updates, State]]  # of updates, state, parameters, and what else the rule is given
Pairs = list[tuple[Tensor, Tensor]]


class Halves(NamedTuple):
    """A rule in two: what looks at all leaves, and what is then done to each leaf alone.

    Each half is given the whole state, and leaves that of the other half as it is.
    """

    head: Stage | None
    tail: Stage


@dataclass(frozen=True, eq=False, repr=False)
class InHalves(GradientTransformation):
    """A transformation that says itself what its halves are, for a certain state."""

    halves: Callable[[State], Halves | None] = field(default=lambda state: None, kw_only=True)


def _on_dense(tx: GradientTransformation) -> GradientTransformation:
    """What steps dense gradients: of sparse ones there are no parts."""
    while tx.recipe is not None and tx.recipe.factory is rows:
        tx = tx.arguments["inner"]
    return tx


def is_apart(tx: GradientTransformation) -> bool:
    """Whether no leaf sees another, but for a number of steps that all share."""
    tx = _on_dense(tx)
    counts = tx.recipe is not None and tx.recipe.factory in (scale_by_schedule, scale_by_learning_rate)
    if tx.recipe is not None and tx.recipe.factory in (decay_after_step, decay_proximally):
        counts = tree.sees_leaves(tx.arguments["mask"])
    return tx.leafwise or counts or (bool(tx.members) and all(map(is_apart, tx.members.values())))


def _halves(tx: GradientTransformation) -> Halves | None:
    """A rule in two; `None` if its end looks at all leaves."""
    tx = _on_dense(tx)
    if is_apart(tx):
        return Halves(None, tx.rule)
    keys, members = list(tx.members), list(tx.members.values())
    first = len(members)
    while first and is_apart(members[first - 1]):
        first -= 1
    inner = _halves(members[first - 1]) if first else None
    if inner is None and first == len(members):
        return None
    whole = range(first if inner is None else first - 1)
    head: list[tuple[Any, Stage]] = [(keys[i], members[i].rule) for i in whole]
    tail: list[tuple[Any, Stage]] = [(keys[i], members[i].rule) for i in range(first, len(members))]
    if inner is not None:
        head += [(keys[first - 1], inner.head)] if inner.head else []
        tail = [(keys[first - 1], inner.tail), *tail]
    return Halves(_in_turn(head) if head else None, _in_turn(tail))


def _in_turn(stages: Sequence[tuple[Any, Stage]]) -> Stage:
    """Some members of a chain, one after the other; the states of the others stay as they are."""

    def stage(updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        own = dict(state) if isinstance(state, dict) else list(state)
        for key, member in stages:
            updates, own[key] = member(updates, own[key], params, **extra)
        return updates, own if isinstance(own, dict) else tuple(own)

    return stage


class Parts:
    """The steps of one transformation part by part."""

    def __init__(self, tx: GradientTransformation) -> None:
        self._tx = tx
        self._kinds: dict[Hashable, list[list[int]]] = {}

    @cached_property
    def _fixed(self) -> Halves | None:
        return _halves(self._tx) if is_own(self._tx) else None

    @cached_property
    def _numbers(self) -> list[Tensor]:
        return find_tensors(self._tx)

    @cached_property
    def _fetches(self) -> bool:
        """Whether a state may lie on a device of its own."""
        return uses_factory(self._tx, offload)

    def take(self, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> bool:
        """Take a step, if it can be taken part by part.

        Raises:
            ValueError: if the tensors to be written share memory, before anything is.
        """
        if torch.compiler.is_compiling() or is_differentiating():
            return False
        split = self._tx.halves(state) if isinstance(self._tx, InHalves) else self._fixed
        if split is None:
            return False
        sizes = [p.nbytes for p in tree.leaves(params) if isinstance(p, Tensor)]
        if sum(sizes) < max(_LEAST, _LEAST_LEAF * len(sizes)):
            return False
        (own, like), (given, other) = tree.flatten(params), tree.flatten(grads)
        held, form = tree.flatten(state)
        if like != other or all(g is None for g in given) or not _are_ordinary([*own, *given, *held]):
            return False
        if len({x.device for x in [*own, *given, *([] if self._fetches else held)] if x is not None and x.ndim}) > 1:
            return False
        # Gradients that come and go make no new kind.
        given = [p if g is None and p is not None else g for p, g in zip(own, given, strict=True)]
        kind = like, form, torch.get_default_dtype(), *map(_kind, own), *map(_kind, given), *map(_kind, held)
        kind = *kind, *((key, _kind_of_extra(x)) for key, x in extra.items())
        parts = self._kinds.get(kind)
        if parts is None:
            parts = self._kinds[kind] = _plan(split, params, state, other.unflatten(given), extra)
            if len(self._kinds) > _MOST_KINDS:
                del self._kinds[next(iter(self._kinds))]
        if not parts:
            return False
        taken = targets_apart((params, state))

        def safe(value: Tensor) -> Tensor:
            return value.clone() if taken.holds(value) else value

        def write(pairs: Pairs) -> None:
            for target, value in [(target, safe(value)) for target, value in pairs]:
                target.copy_(value)

        if any(map(taken.holds, self._numbers)):
            return False
        with donating():
            _run(split, parts, params, state, grads, extra, safe, write)
        return True


def _run(
    split: Halves,
    parts: Sequence[Sequence[int]],
    params: Params,
    state: State,
    grads: Updates,
    extra: dict[str, Any],
    safe: Callable[[Tensor], Tensor],
    write: Callable[[Pairs], None],
) -> None:
    """Take a step part by part.

    Args:
        split: The rule.
        parts: The positions of the leaves of each part.
        params: The parameters.
        state: The state.
        grads: The gradients.
        extra: What else the rule is given.
        safe: Makes a copy of what would change when something is written.
        write: Writes values into the tensors whose next values they are.
    """
    updates, last = grads, dict[int, tuple[Tensor, Tensor]]()
    if split.head is not None:
        updates, ahead = on_wide(split.head, updates, state, params, extra)
        write(_changed(state, ahead))
        del ahead
    leaves, form = tree.flatten(updates)
    waiting = [None if x is None else safe(x) for x in leaves]
    del updates, leaves
    held, like = tree.flatten(params)
    for part in parts:
        if all(waiting[i] is None for i in part):
            continue
        some: list[Any] = [None] * len(waiting)
        for i in part:
            some[i], waiting[i] = waiting[i], None  # nobody else holds what the head has made
        own = [tree.widen(p) if i in part else p for i, p in enumerate(held)]
        changes, now = split.tail(tree.widen(form.unflatten(some)), state, like.unflatten(own), **extra)
        del some, own
        pairs = [*_changed(state, now), *_changed(params, apply_updates(params, changes))]
        del changes, now
        last.update({id(target): (target, value) for target, value in pairs if not target.ndim})
        write([pair for pair in pairs if pair[0].ndim])
        del pairs
    write(list(last.values()))


def _changed(old: Any, new: Any) -> Pairs:
    pairs = zip(tree.leaves(old), tree.leaves(new), strict=True)
    return [(was, now) for was, now in pairs if now is not was]


def _plan(split: Halves, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> list[list[int]]:
    """The positions of the leaves of each part; none if the whole step is to be taken at once."""
    share = _SHARES[split.head is not None or bool(extra)]
    sizes = {i: p.nbytes for i, p in enumerate(tree.flatten(params)[0]) if p is not None}
    parts, size, most = list[list[int]](), 0.0, sum(sizes.values()) / share
    kept = sum([x.nbytes for x in tree.leaves(state)]) / max(sum(sizes.values()), 1)
    if kept > _MUCH:  # what a part holds beside its parameters counts; small matrices of one shape go together
        most = min(most, max(sum(sizes.values()) / _SHARE_OF_MUCH, _STACK / kept))
    for i, own in sizes.items():
        size += own
        if not parts or size > most:
            parts.append([])
            size = own
        parts[-1].append(i)
    return parts if len(parts) > 1 and _succeeds(split, parts, params, state, grads, extra) else []


def _succeeds(
    split: Halves, parts: list[list[int]], params: Params, state: State, grads: Updates, extra: dict[str, Any]
) -> bool:
    """Whether tensors without values can be stepped like this, and nothing but numbers is written in two parts."""
    written: set[int] = set()
    fits = True

    def write(pairs: Pairs) -> None:
        nonlocal fits
        for target, value in pairs:
            fits &= target.shape == value.shape and target.dtype == value.dtype and id(target) not in written
            written.add(id(target))

    with without_modes(), torch.no_grad():
        try:
            own, past, given = (tree.map(_hollow, x) for x in (params, state, grads))
            others = {key: _hollow_extra(x) for key, x in extra.items()}
            _run(split, parts, own, past, given, others, lambda x: x, write)
        except Exception:  # whatever it is, the rule meets it again when all is computed before the first write
            return False
    return fits


def _kind(x: Tensor | None) -> Hashable:
    return None if x is None else (x.shape, x.dtype)


def _kind_of_extra(x: Any) -> Hashable:
    """What a rule of this package may look at of an argument; of numbers and of what holds others only their type."""
    return _kind(x) if isinstance(x, Tensor) else (type(x), x if isinstance(x, bool | str) else None)


def _hollow_extra(x: Any) -> Any:
    return _hollow(x) if isinstance(x, Tensor) else _refuse if callable(x) else x


def _refuse(*_: Any, **__: Any) -> Any:
    """Stands for a function among the arguments, which may be called once a step at most."""
    raise RuntimeError


def _hollow(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _are_ordinary(leaves: Iterable[Any]) -> bool:
    """Whether tensors lie densely, with their memory there."""
    for x in leaves:
        if x is None:
            continue
        if type(x) not in _PLAIN or x.layout != torch.strided or x.is_meta or x.is_inference():
            return False
        if x.numel() and not x.data_ptr():
            return False
    return True
