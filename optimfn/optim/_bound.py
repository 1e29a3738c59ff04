"""A step bound to the parameters and the state of an optimizer, as long as nobody changes what that holds."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain as concatenated
from operator import attrgetter, is_, itemgetter
from typing import Any

from torch import Tensor

from .._base import GradientTransformation, apply_updates
from ..fused import Step
from ._layout import ParamKey
from ._pipeline import Stored

_params, _grad = itemgetter("params"), attrgetter("grad")


class Bound:
    """A transformation with the parameters and the state that it steps, which stay the same tensors.

    Args:
        tx: The transformation.
        step: A donating step of it.
        params: The parameters, by name.
        state: Its state.
    """

    def __init__(self, tx: GradientTransformation, step: Step, params: Mapping[ParamKey, Tensor], state: Any) -> None:
        self.tx, self.params, self.state = tx, params, state
        self.take = step.bind(params, state)

    def watch(self, groups: Iterable[Iterable[Tensor]], stored: Stored) -> None:
        """Take note of the parameters and the entries that the optimizer holds."""
        self._groups = [list(params) for params in groups]
        self._keys, self._dicts = list(stored), list(stored.values())
        self._views = [entries.values() for entries in self._dicts if isinstance(entries, dict)]
        self._sizes = list(map(len, self._views))
        self._leaves = list(concatenated.from_iterable(self._views))

    def fits(self, groups: Sequence[Mapping[str, Any]], stored: Stored) -> bool:
        """Whether the optimizer holds what it held when it was watched."""
        return (
            len(groups) == len(self._groups)
            and all(map(same, map(_params, groups), self._groups))
            and same(stored, self._keys)
            and same(stored.values(), self._dicts)
            and list(map(len, self._views)) == self._sizes
            and all(map(is_, concatenated.from_iterable(self._views), self._leaves))
        )

    def gradients(self) -> dict[ParamKey, Tensor | None]:
        """The gradient of each parameter, which may be sparse."""
        return dict(zip(self.params, map(_grad, self.params.values()), strict=True))

    def take_differentiable(self, grads: Mapping[ParamKey, Tensor | None], **extra: Any) -> None:
        """A step through which gradients flow; its state is a new one."""
        # Writing in place must not change what autograd has kept of the parameters.
        params = {name: p.clone() for name, p in self.params.items()}
        updates, self.state = self.tx.update(grads, self.state, params, **extra)
        for name, new in apply_updates(params, updates).items():
            self.params[name].copy_(new)


def same(now: Collection[Any], then: Collection[Any]) -> bool:
    """Whether two collections hold the very same objects, in the same order."""
    return len(now) == len(then) and all(map(is_, now, then))
