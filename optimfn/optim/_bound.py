"""A step bound to the parameters and the state of an optimizer, as long as nobody changes what that holds."""

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from itertools import chain as concatenated
from itertools import repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import Any

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._evaluation import eval_params
from ..fused import make_step
from ._counts import Counts
from ._layout import Entries, ParamKey
from ._pipeline import EngineState
from ._runs import Placed

Stored = MutableMapping[Tensor, Entries]
Grads = dict[ParamKey, Tensor | None]

_params, _grad, _version = itemgetter("params"), attrgetter("grad"), attrgetter("_version")


class Bound:
    """A transformation with the parameters and the state that it steps, which stay the same tensors.

    Args:
        rules: What the rules of the groups were made from.
        tx: The transformation.
        fixed: Makes the same with the numbers as they are, for steps that run its operators.
        placed: Its runs.
        params: The parameters, by name.
        state: Its state.
        counts: What torch shows of the counts of each parameter.
        backend: How steps run, as for `make_step`; `None` for those through which gradients flow.
    """

    def __init__(
        self,
        rules: Sequence[Any],
        tx: GradientTransformation,
        fixed: Callable[[], GradientTransformation],
        placed: Sequence[Placed],
        params: Mapping[ParamKey, Tensor],
        state: EngineState,
        counts: Counts,
        backend: str | None,
    ) -> None:
        self.rules, self.placed, self.params, self.state, self.counts = rules, placed, params, state, counts
        self.is_eager, self._fixed = backend in (None, "eager"), fixed
        step = make_step(fixed() if self.is_eager else tx, donate=True, backend=backend or "eager")
        changing = state._replace(numbers=()) if self.is_eager else state  # the fixed one has them in itself
        self.take = step.bind(params, changing) if backend else self.take_differentiable
        together = {name for each in placed if each.is_together for name in each.names}
        self._required = [i for i, name in enumerate(params) if name in together]
        self.is_published = False

    def entries(self) -> dict[ParamKey, Entries]:
        """The state of each parameter, by the keys of the layouts."""
        found: dict[ParamKey, Entries] = {}
        for each, state in zip(self.placed, self.state.runs, strict=True):
            for name, entries in each.scatter(state).items():
                found.setdefault(name, {}).update(entries)
        return found

    def eval_params(self) -> Mapping[ParamKey, Tensor]:
        """The parameters to evaluate, by name; those that are the trained ones are these themselves."""
        found: Mapping[ParamKey, Tensor] = eval_params(self._fixed(), self.state, self.params)
        return found

    def watch(self, groups: Iterable[Iterable[Tensor]], stored: Stored, waiting: Collection[ParamKey] | None) -> None:
        """Take note of what the optimizer holds.

        Args:
            groups: The parameters of each group.
            stored: The entries.
            waiting: Those of the parameters here that begin with their first gradient, as all do that are not here;
                `None` if they are the same as before.
        """
        if waiting is not None:
            self._waiting = waiting
        self._groups = [list(params) for params in groups]
        here = {id(p) for name, p in self.params.items() if name not in self._waiting}
        self._idle = [p for params in self._groups for p in params if id(p) not in here]
        self._keys, self._dicts = list(stored), list(stored.values())
        self._views = [entries.values() for entries in self._dicts if isinstance(entries, dict)]
        self._sizes = list(map(len, self._views))
        self._leaves = list(concatenated.from_iterable(self._views))
        self._lying: list[Tensor] | None = None  # all of it, each once
        self.counts.settle()
        # The state holds views of these, which stay behind where `.data` is set.
        viewed = [stored.get(p, {}) for p in self.params.values() if p.is_complex()]
        self._viewed = [x for entries in viewed for x in entries.values() if isinstance(x, Tensor) and not x.is_sparse]
        self._addresses = list(map(Tensor.data_ptr, self._viewed))

    def addresses(self) -> list[int]:
        """Where parameters and state lie."""
        if self._lying is None:
            every = [*self.params.values(), *tree.leaves(self.state), *self._leaves]
            self._lying = list({id(x): x for x in every if isinstance(x, Tensor) and not x.is_sparse}.values())
        return list(map(Tensor.data_ptr, self._lying))

    def fits(self, rules: Sequence[Any], groups: Sequence[Mapping[str, Any]], stored: Stored) -> bool:
        """Whether the optimizer holds what it held when it was watched, as the last step has left it."""
        return (
            same(rules, self.rules)
            and all(map(same, map(_params, groups), self._groups))
            and same(stored, self._keys)
            and same(stored.values(), self._dicts)
            and list(map(len, self._views)) == self._sizes
            and all(map(is_, concatenated.from_iterable(self._views), self._leaves))
            and self.counts.are_settled()
            and list(map(Tensor.data_ptr, self._viewed)) == self._addresses
        )

    def gradients(self) -> list[Tensor | None] | None:
        """The gradients; `None` if a parameter has begun, or has parted from those that it stepped with."""
        grads = list(map(_grad, self.params.values()))
        if not all(map(is_not, grads, repeat(None))) and any(grads[i] is None for i in self._required):
            return None
        return grads if all(map(is_, map(_grad, self._idle), repeat(None))) else None

    def take_differentiable(self, grads: Mapping[ParamKey, Tensor | None], **extra: Any) -> None:
        """A step through which gradients flow; its state is a new one."""
        # Writing in place must not change what autograd has kept of the parameters.
        params = {name: p.clone() for name, p in self.params.items()}
        updates, self.state = self._fixed().update(grads, self.state, params, **extra)
        for name, new in apply_updates(params, updates).items():
            self.params[name].copy_(new)
        self.is_published = False


def same(now: Collection[Any], then: Collection[Any]) -> bool:
    """Whether two collections hold the very same objects, in the same order."""
    return len(now) == len(then) and all(map(is_, now, then))


def versions(shown: Sequence[Any]) -> list[int]:
    """The versions of tensors; 0 for what has none."""
    try:
        return list(map(_version, shown))
    except (AttributeError, RuntimeError):  # numbers, and tensors made in inference mode
        return [x._version if isinstance(x, Tensor) and not x.is_inference() else 0 for x in shown]


def is_all_absent(grads: Sequence[Tensor | None]) -> bool:
    """Whether there is no gradient at all."""
    return all(map(is_, grads, repeat(None)))


def copied(rates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, which keep their values."""
    with torch.no_grad():
        return {label: rate.clone() for label, rate in rates.items()}
