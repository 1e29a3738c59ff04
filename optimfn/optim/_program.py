"""What a step of an `Optimizer` needs, made once and used as long as its groups and its state stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._typing import Params, State, Updates
from ..fused import make_step
from ._amp import skip_overflow
from ._bound import Bound
from ._hyperparameters import Found, Hyperparameter, Live, Shown, make_members, uses
from ._layout import ParamKey
from ._members import Route, members
from ._pipeline import PipelineState, Stored, gather, merge, pipeline, scatter


class Group(NamedTuple):
    """One parameter group, as a program sees it."""

    params: Sequence[Tensor]
    names: Sequence[ParamKey]
    label: str
    route: Route
    found: Mapping[str, Found]
    maximize: bool


class Program(Bound):
    """All groups of an optimizer as one transformation, bound to its state, and where that stands in the optimizer.

    Args:
        tx: The transformation of the optimizer.
        groups: Its groups.
        live: The tensors for the hyperparameters.
        rates: The tensors that show the values of schedules, by label.
        stored: The state of the optimizer.
        values: The hyperparameters of each group, without those that a schedule drives.
        differentiable: Whether values that are tensors are used as they are, rather than live tensors.
        backend: How steps run, as for `make_step`.
    """

    def __init__(
        self,
        tx: GradientTransformation,
        groups: Sequence[Group],
        live: Live,
        rates: Mapping[str, Tensor],
        stored: Stored,
        values: Sequence[Mapping[Hyperparameter, Any]],
        differentiable: bool = False,
        backend: str = "auto",
    ) -> None:
        params = {name: p for group in groups for name, p in zip(group.names, group.params, strict=True)}
        self.schedules = _schedules(groups, rates)
        tensors, made = [], []
        for number, group in enumerate(groups):
            own: dict[Hyperparameter, Any] = {}
            for one, given in group.found.values():
                if callable(given):
                    own[one] = self.schedules[group.label]
                elif differentiable and isinstance(values[number][one], Tensor):
                    own[one] = values[number][one]
                else:
                    own[one] = live.tensor(one, number, group.params, values[number][one])
            tensors.append({id(value): value for value in own.values() if isinstance(value, Tensor)})
            made.append((make_members(tx, group.route, own, group.maximize), group.names))
        originals = [{member.place: member.tx for member in members(tx, group.route)} for group in groups]

        def used(number: int, member: Any) -> frozenset[int]:
            untouched = originals[number].get(member.place) is member.tx
            return frozenset() if untouched else uses(member.tx, tensors[number])

        self.runs = merge(made, used, params, stored)
        # The recipe is for messages: it prints as the transformation that the user has made.
        tx = replace(_takes_sparse(skip_overflow(pipeline(self.runs, self.schedules))), recipe=tx.recipe)
        state = PipelineState(gather(self.runs, params, stored), dict(rates))
        super().__init__(tx, make_step(tx, donate=True, backend=backend), params, state)
        self._versions, self._published = self._seen(), False
        self.watch([group.params for group in groups], stored)
        if any(stored.get(p) for p in params.values()):
            self.publish(stored)

    def was_overruled(self, label: str, value: Any) -> bool:
        """Whether the learning rate that a group shows was changed, in the group or in place."""
        shown = self.state.rates[label]
        return value is not shown or self._versions[label] != shown._version

    def take_differentiable(self, grads: Mapping[ParamKey, Tensor | None], **extra: Any) -> None:
        """A step through which gradients flow."""
        rates = self.state.rates
        super().take_differentiable(grads, **extra)
        with torch.no_grad():
            for label, rate in self.state.rates.items():
                rates[label].copy_(rate)
        self.state = PipelineState(self.state.runs, rates)
        self._published = False

    def publish(self, stored: Stored) -> None:
        """Show the state in the dicts of the parameters, if it is not there already."""
        self._versions = self._seen()
        if self._published:
            return
        for name, entries in scatter(self.runs, self.state.runs).items():
            own = stored[self.params[name]]
            own.clear()
            own.update(entries)
        self.watch(self._groups, stored)
        self._published = True

    def _seen(self) -> dict[str, int]:
        return {label: shown._version for label, shown in self.state.rates.items()}


def _schedules(groups: Sequence[Group], rates: Mapping[str, Tensor]) -> dict[str, Shown]:
    """The schedule of each label that has one."""
    return {
        group.label: Shown(value, rates[group.label])
        for group in groups
        for _, value in group.found.values()
        if callable(value)
    }


def _takes_sparse(tx: GradientTransformation) -> GradientTransformation:
    """Make sparse gradients dense. Kernels refuse them, so this is only asked where the rule itself runs."""

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        dense = tree.map(lambda g: g.to_dense() if g.is_sparse else g, updates)
        return tx.update(dense, state, params, **extra)

    return replace(tx, update=update)
