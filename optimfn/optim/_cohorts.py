"""The parameters of a drop-in optimizer by their past, bound to one step."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple

from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._torch import foreach_add_
from .._typing import Params, State, Updates
from ..fused import Step
from ._bound import Bound, same
from ._layout import Entries, ParamKey
from ._pipeline import PipelineState, Run, Stored, pipeline

_grad, _is_sparse, _version = attrgetter("grad"), attrgetter("is_sparse"), attrgetter("_version")


class Past(NamedTuple):
    """What is known of the steps of one parameter.

    Parameters with the same past form a cohort and step as one tree. A parameter that misses a gradient falls
    behind, into another cohort; so each has the step count that it has in torch.
    """

    cohort: Hashable
    values: Mapping[str, Tensor]  # the leaves of the state that have no parameter, such as counts
    shown: Sequence[Any] = ()  # what torch shows of them, and its versions when these values were true
    versions: Sequence[int] = ()

    def holds(self, shown: Sequence[Any]) -> bool:
        """Whether nobody has edited what torch shows."""
        return same(shown, self.shown) and versions(shown) == self.versions


@dataclass
class Cohort:
    """Parameters of one group that have the same past, and a gradient."""

    group: dict[str, Any]
    run: Run
    label: Hashable
    members: dict[ParamKey, Tensor]
    grads: dict[ParamKey, Tensor]
    state: State
    shown: dict[ParamKey, Entries]  # the numbers that torch shows with each parameter

    def label_after(self, steps: int, values: Mapping[str, Tensor]) -> Hashable:
        """What tells the cohort from others after more steps: how many it has made, if they share nothing else."""
        if not steps:
            return self.label
        if set(values) - {"count"}:
            return object()
        before = self.label[0] if isinstance(self.label, tuple) else 0
        return (before + steps if values else 1,)


class CountedState(NamedTuple):
    """The states of the cohorts, and the numbers that torch shows with each parameter."""

    inner: PipelineState
    shown: tuple[dict[ParamKey, Entries], ...]


def counted(runs: Sequence[Run]) -> GradientTransformation:
    """The runs one after the other, which also writes the numbers that torch shows with each parameter."""
    tx = pipeline(runs, {})

    def init(params: Params) -> CountedState:
        return CountedState(tx.init(params), tuple({} for _ in runs))

    def update(
        updates: Updates, state: CountedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, CountedState]:
        updates, inner = tx.update(updates, state.inner, params, **extra)
        shown = tuple(map(_next, runs, inner.runs, state.shown))
        return updates, CountedState(inner, shown)

    return GradientTransformation(init, update)


def _next(run: Run, state: State, shown: Mapping[ParamKey, Entries]) -> dict[ParamKey, Entries]:
    """The numbers after a step: one more step, and the scalars of the state."""
    _, values = run.layout.scatter(state)
    return {
        name: {key: x + 1 if key == "step" else tree.cast_leaf(values[key], x.dtype) for key, x in own.items()}
        for name, own in shown.items()
    }


class Joint(Bound):
    """All cohorts of an optimizer, bound to one step.

    Args:
        cohorts: The cohorts.
        rules: What the rules of the groups were made from.
        tx: The rules of the cohorts as one transformation: `counted`, or one that leaves what is shown as it is.
        step: A donating step of it.
        is_counted: Whether it is `counted`.
    """

    def __init__(
        self,
        cohorts: Sequence[Cohort],
        rules: Sequence[Any],
        tx: GradientTransformation,
        step: Step,
        is_counted: bool,
    ) -> None:
        params = {name: p for cohort in cohorts for name, p in cohort.members.items()}
        state: Any = PipelineState(tuple(cohort.state for cohort in cohorts), {})
        if is_counted:
            state = CountedState(state, tuple(cohort.shown for cohort in cohorts))
        super().__init__(tx, step, params, state)
        self.cohorts, self.rules, self._is_counted = cohorts, rules, is_counted
        self._sparse = [g.is_sparse for cohort in cohorts for g in cohort.grads.values()]
        self._taken, self.is_shown = 0, False

    @property
    def states(self) -> Sequence[State]:
        """The state of each cohort."""
        state = self.state.inner if self._is_counted else self.state
        runs: Sequence[State] = state.runs
        return runs

    @property
    def any_sparse(self) -> bool:
        """Whether there are sparse gradients."""
        return any(self._sparse)

    def watch(self, groups: Iterable[Iterable[Tensor]], stored: Stored) -> None:
        """Take note of the parameters, of those without a gradient, and of the entries that the optimizer holds."""
        super().watch(groups, stored)
        members = set(map(id, self.params.values()))
        self._idle = [p for params in self._groups for p in params if id(p) not in members]
        self._shown = [x for cohort in self.cohorts for own in cohort.shown.values() for x in own.values()]
        self._versions = versions(self._shown)
        # The state holds views of these, which stay behind where `.data` is set.
        viewed = [stored.get(p, {}) for p in self.params.values() if p.is_complex()]
        self._viewed = [x for entries in viewed for x in entries.values() if isinstance(x, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._viewed))

    def fits(self, groups: Sequence[Mapping[str, Any]], stored: Stored) -> bool:
        """Whether the optimizer holds what it held when it was watched, as the last step has left it."""
        return (
            super().fits(groups, stored)
            and versions(self._shown) == self._versions
            and list(map(Tensor.data_ptr, self._viewed)) == self._addresses
        )

    def same_gradients(self) -> dict[ParamKey, Tensor] | None:
        """The gradients as they are; `None` if other parameters have one than before, or other ones are sparse."""
        grads = list(map(_grad, self.params.values()))
        try:
            are_sparse = list(map(_is_sparse, grads))
        except AttributeError:  # one is `None`
            return None
        if are_sparse != self._sparse or not all(map(is_, map(_grad, self._idle), repeat(None))):
            return None
        return dict(zip(self.params, grads, strict=True))

    def count(self) -> None:
        """After a step, bring the numbers that are shown up to date."""
        self._taken += 1
        if self._shown and not self._is_counted:
            for cohort, state in zip(self.cohorts, self.states, strict=True):
                _advance(cohort, state)
        self._versions = versions(self._shown)

    def pasts(self) -> Iterator[tuple[Tensor, Past]]:
        """What the parameters have been through by now."""
        seen = iter(zip(self._shown, self._versions, strict=True))
        for cohort, state in zip(self.cohorts, self.states, strict=True):
            _, values = cohort.run.layout.scatter(state)
            label = cohort.label_after(self._taken, values)
            for name, p in cohort.members.items():
                shown = [next(seen) for _ in cohort.shown[name]]
                yield p, Past(label, values, [x for x, _ in shown], [version for _, version in shown])


def can_be_counted(cohort: Cohort) -> bool:
    """Whether the kernels for the parameters can write what is shown with them: tensors on the CPU, each its own."""
    shown = [x for own in cohort.shown.values() for x in own.values()]
    near = all(isinstance(x, Tensor) and x.is_cpu for x in (*shown, *cohort.members.values()))
    return near and 0 < len(shown) == len(set(map(id, shown)))


def versions(shown: Sequence[Any]) -> list[int]:
    """The versions of tensors; 0 for what has none."""
    try:
        return list(map(_version, shown))
    except (AttributeError, RuntimeError):  # numbers, and tensors made in inference mode
        return [x._version if isinstance(x, Tensor) and not x.is_inference() else 0 for x in shown]


def _advance(cohort: Cohort, state: State) -> None:
    """What `counted` does, for numbers that lie elsewhere or are Python's."""
    _, values = cohort.run.layout.scatter(state)
    steps = []
    for own in cohort.shown.values():
        for key, x in own.items():
            if key != "step":
                x.copy_(values[key])
            elif isinstance(x, Tensor):
                steps.append(x)
            else:
                own[key] = x + 1
    if steps:
        foreach_add_(steps, 1)
