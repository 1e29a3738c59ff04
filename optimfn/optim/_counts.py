"""The numbers that torch shows with each parameter, such as how many steps it has made."""

from collections.abc import Callable, Collection, Mapping
from itertools import repeat
from operator import is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._layout import Entries, ParamKey


class Block(NamedTuple):
    """One number of several parameters, in one tensor, of which each of them shows an element."""

    key: str
    names: Collection[ParamKey]
    tensor: Tensor


class Counts:
    """What is shown, by parameter, and written at once for all.

    Args:
        shown: The numbers as they are.
    """

    def __init__(self, shown: Mapping[ParamKey, Entries]) -> None:
        self.shown = {name: dict(own) for name, own in shown.items()}
        kinds: dict[Any, dict[ParamKey, Tensor]] = {}
        for name, own in shown.items():
            for key, x in own.items():
                if isinstance(x, Tensor):
                    kinds.setdefault((key, x.device, x.dtype), {})[name] = x
        self._blocks = [Block(kind[0], own, torch.stack([*own.values()])) for kind, own in kinds.items()]
        for key, names, block in self._blocks:
            for name, x in zip(names, block.unbind(), strict=True):
                self.shown[name][key] = x
        self._plain = [(name, own) for name, own in self.shown.items() if type(own.get("step")) is int]
        self._state: Any = None  # in which the scalars lie
        self._scalars: list[list[Tensor]] = []
        self.settle()

    def settle(self) -> None:
        """Take note of what is shown as a step has left it."""
        self._versions = self._now()

    def are_settled(self) -> bool:
        """Whether nobody has written there since."""
        return self._now() == self._versions

    def take(
        self, grads: Mapping[ParamKey, Any], state: Any, entries: Callable[[], Mapping[ParamKey, Entries]], gate: Any
    ) -> None:
        """Count one more step of those that have a gradient, and show the scalars of a state.

        Args:
            grads: The gradients.
            state: What holds the scalars.
            entries: Finds them in it.
            gate: What a step counts: 1, or a tensor that is 0 for one that was skipped.
        """
        if state is not self._state:
            self._state, self._scalars = state, self._find_scalars(entries)
        are_all = all(map(is_not, grads.values(), repeat(None)))
        for (key, names, block), scalars in zip(self._blocks, self._scalars, strict=True):
            if key != "step":
                block.copy_(scalars[0] if len(scalars) == 1 else torch.stack(scalars))
                continue
            one = gate.to(block) if isinstance(gate, Tensor) else gate
            if not are_all:
                one = one * torch.tensor([grads[name] is not None for name in names], device=block.device)
            block.add_(one)
        for name, own in self._plain:
            own["step"] += grads[name] is not None
        self.settle()

    def _find_scalars(self, entries: Callable[[], Mapping[ParamKey, Entries]]) -> list[list[Tensor]]:
        """What each block shows of the state; one tensor where that is the same for all."""
        found = entries() if any(block.key != "step" for block in self._blocks) else {}
        each = [[found[name][key] for name in names if key != "step"] for key, names, _ in self._blocks]
        return [own if len({id(x) for x in own}) > 1 else own[:1] for own in each]

    def _now(self) -> list[int]:
        return [0 if block.is_inference() else block._version for *_, block in self._blocks]
