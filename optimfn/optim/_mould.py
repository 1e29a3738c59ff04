"""What optimizers with equal rules have in common, whatever their tensors and numbers are; made once a thread."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._recipe import fingerprint
from .._typing import State
from .._wrappers._per_leaf import per_leaf
from ._layout import Layout
from ._members import Member, Place
from ._pipeline import Part, Run, make_members, stepping

_MOST, _MOST_LAYOUTS = 64, 8  # moulds that are kept, and layouts of a member, which depend on names and masks


class Mould:
    """The members of all groups, the layouts of their states, and transformations of the whole.

    Args:
        parts: What each group contributes.
        numbers: Their numbers.
        rates: The values of the schedules, by label.
    """

    def __init__(self, parts: Sequence[Part], numbers: Sequence[Tensor], rates: Mapping[str, Tensor]) -> None:
        self.parts, self.numbers = tuple(parts), tuple(numbers)
        self.made, _ = make_members(parts, numbers, rates)
        self._layouts: dict[tuple[Place, bool], list[Layout]] = {}
        self._wholes: dict[tuple[Run, ...], GradientTransformation] = {}

    def fresh(self, member: Member, alone: bool, init: Callable[[Any], State], rename: Any) -> tuple[Layout, list[Any]]:
        """The layout of a fresh state of a member, and its leaves.

        Args:
            member: The member.
            alone: Whether each parameter has a state of its own.
            init: Makes the state for the transformation that it is given.
            rename: Gives the key for the name of the member and a path.
        """
        state = init(per_leaf(member.tx) if alone else member.tx)
        known = self._layouts.setdefault((member.place, alone), [])
        for layout in known:
            leaves = layout.read(state)
            if leaves is not None:
                return layout, leaves
        layout = Layout.of(state, lambda path: rename(member.name, path))
        known[:] = [*known, layout][-_MOST_LAYOUTS:]
        return layout, layout.read(state) or []

    def whole(self, runs: tuple[Run, ...]) -> GradientTransformation:
        """The transformation that takes these runs."""
        if runs not in self._wholes:
            self._wholes[runs] = stepping(self.parts, runs)
            if len(self._wholes) > _MOST_LAYOUTS:
                del self._wholes[next(iter(self._wholes))]
        return self._wholes[runs]


class _Moulds(threading.local):
    def __init__(self) -> None:
        self.known: OrderedDict[Hashable, Mould] = OrderedDict()


_moulds = _Moulds()


def mould_for(kind: Any, parts: Sequence[Part], numbers: Sequence[Tensor], rates: Mapping[str, Tensor]) -> Mould:
    """The mould of these groups, with the values of their numbers; one of its own where rules may hold anything.

    Args:
        kind: What else tells layouts apart.
        parts: What each group contributes.
        numbers: Their numbers; those of a mould that is shared only have their values.
        rates: The values of the schedules, by label.
    """
    shares = not any(part.schedules for part in parts) and all(
        type(x) is Tensor and not (x.requires_grad or x.is_inference()) for x in numbers
    )
    alike = [fingerprint(part.rules) for part in parts] if shares else [None]
    if None in alike:
        return Mould(parts, numbers, rates)
    of_parts, of_numbers = [part.numbers for part in parts], [(x.dtype, x.device) for x in numbers]
    key, known = (kind, tuple(alike), tuple(of_parts), tuple(of_numbers)), _moulds.known
    if key not in known:
        with torch.inference_mode(False):
            known[key] = Mould(parts, [torch.empty_like(x) for x in numbers], {})
        if len(known) > _MOST:
            known.popitem(last=False)
    known.move_to_end(key)
    for mine, theirs in zip(known[key].numbers, numbers, strict=True):
        mine.copy_(theirs)
    return known[key]
