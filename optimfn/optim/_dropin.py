"""What every drop-in class of `torch.optim` shares: running a pure rule on the state that torch lays out.

A class inherits its constructor, with all checks, defaults and messages, from the class of torch that it
replaces. It adds the rule, as a transformation made from the options of a group, and the names that torch
gives to the fields of its state. Everything else is here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._recipe import factory, show
from .._wrappers._complex import through_pairs
from ._bound import Bound, Grads
from ._contract import every
from ._engine import Engine
from ._layout import Entries, ParamKey, Slot
from ._load import KeepsDtypes
from ._rules import TorchRules, directed
from ._runs import Placed
from ._source import Said

Params = Mapping[ParamKey, Tensor]


class DropIn(KeepsDtypes, Engine):
    """The part of a drop-in class that is not the class of torch."""

    fields: ClassVar[Mapping[str, str]] = {}
    """Torch's name for each field of the pure state."""

    optional: ClassVar[Sequence[str]] = ()
    """Torch's names of entries that not every parameter has; the rule has an empty tensor instead."""

    counts_steps: ClassVar[bool] = True
    """Whether torch keeps a `step` for each parameter."""

    refuses_sparse: ClassVar[str] = "{} does not support sparse gradients"
    """What is wrong with a sparse gradient; empty where nothing is."""

    refuses_complex: ClassVar[bool] = False
    """Whether parameters must be real."""

    step_is_int: ClassVar[bool] = False
    """Whether `step` is a Python number."""

    step_on_device: ClassVar[bool] = False
    """Whether `step` lies with the parameter rather than on the CPU."""

    scalars: ClassVar[Sequence[str]] = ()
    """Torch's names of further scalars, shared among parameters in the pure state."""

    wants_sparse: ClassVar[bool] = False
    """Whether gradients must be sparse."""

    counts_alone = True  # in torch every parameter does

    # Whether GradScaler leaves unscaling and skipping to the step: where torch's class says so, for its fused kernel.
    _step_supports_amp_scaling = False

    @staticmethod
    def rule(group: Mapping[str, Any]) -> GradientTransformation:
        """The pure rule for the options of a group, in the words of torch."""
        raise NotImplementedError

    @classmethod
    def transform(cls, *args: Any, **options: Any) -> GradientTransformation:
        """The pure transformation with exactly the rule of this class.

        Args:
            **options: Arguments of the constructor, without `params`; those that choose an execution are ignored.

        Raises:
            TypeError, ValueError: as the constructor does.
        """
        if args:
            raise TypeError(
                f"{cls.__name__}.transform takes options by name, lr=..., and no parameters; got {args[0]!r}"
            )
        return rule_of(cls, **options)

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients in `.grad`; a parameter without one is left as it is.

        Args:
            closure: Evaluated first, with gradients enabled; its value is returned.
        """
        return self._step(closure, {})

    def _check_sparse(self, group: Mapping[str, Any]) -> None:
        """Raise as torch does for a sparse gradient that the rule does not take."""
        if self.refuses_sparse:
            raise RuntimeError(self.refuses_sparse.format(type(self).__name__))

    # What the engine asks

    def _say(self, capturing: bool) -> list[Said]:
        rules: dict[int, tuple[Any, TorchRules]] = self._own("_rules", dict)
        said: list[Said] = []
        for number, group in enumerate(self.param_groups):
            known = rules.get(id(group), (None, None))[1]
            values = None if known is None or known.number != number else known.values(group)
            if known is None or values is None:
                known = TorchRules.of(
                    type(self).rule, type(self).__name__, number, self._options(), group, not self.refuses_sparse
                )
                rules[id(group)], values = (group, known), known.values(group) or {}
            said.append((known, values))
        return said

    def _join(self, said: Sequence[Said]) -> Bound:
        """Bind the parameters that have had gradients."""
        if self.refuses_complex and any(p.is_complex() and p.grad is not None for p in every(self.param_groups)):
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")  # in the words of torch
        return super()._join(said)

    def _group_of(self) -> dict[int, Mapping[str, Any]]:
        return {id(p): group for group in self.param_groups for p in group["params"]}

    def _options(self) -> Sequence[str]:
        return list(self.defaults)

    def _names(self) -> list[list[ParamKey]]:
        sizes = [len(group["params"]) for group in self.param_groups]
        return [[ParamKey(sum(sizes[:i]) + k) for k in range(size)] for i, size in enumerate(sizes)]

    def _named(self, bound: Bound, grads: Sequence[Tensor | None]) -> Grads:
        named, sparse = super()._named(bound, grads), [g for g in grads if g is not None and g.is_sparse]
        if self.wants_sparse and len(sparse) < sum(g is not None for g in grads):
            raise RuntimeError(f"{type(self).__name__} does not support dense gradients, please consider Adam instead")
        if sparse:
            groups = self._group_of()
            for p in bound.params.values():
                if p.grad is not None and p.grad.is_sparse:
                    self._check_sparse(groups[id(p)])
        return named

    def _check_capture(self) -> None:
        for group in self.param_groups:
            if self.counts_steps and not (group.get("capturable") or group.get("fused")):
                raise RuntimeError(  # in the words of torch
                    f"Attempting CUDA graph capture of step() for an instance of {type(self).__name__} but "
                    "param_groups' capturable is False."
                )
        super()._check_capture()

    def rename(self, member: str, path: str) -> str:
        """Torch's name for a path in the pure state. All counts of a rule count the same steps, so they share one."""
        last = path.rsplit(".", 1)[-1]
        return self.fields.get(last, last)

    def entries(self, p: Tensor) -> Entries:
        """The entries of a parameter by the keys of the layout."""
        entries = self.state[p]
        entries.update({key: x.to_dense() for key, x in entries.items() if isinstance(x, Tensor) and x.is_sparse})
        count = int(entries["step"]) if self.counts_steps else 1
        values = {key: entries[key].to(p.device, copy=True) for key in self.scalars}
        values["count"] = torch.full((), count, dtype=torch.int64, device=p.device)
        return {**{key: p.new_empty(0) for key in self.optional}, **_as_reals(entries), **values}

    def kept(self, slots: Sequence[Slot | None], leaves: Sequence[Any], params: Params) -> Sequence[Any]:
        """The leaves of a fresh state in the dtypes of the parameters, as torch makes it."""

        def like(slot: Slot | None, leaf: Any) -> Any:
            if (
                slot is None
                or slot.owner is None
                or slot.key in (*self.scalars, "count")
                or not leaf.is_floating_point()
            ):
                return leaf
            return tree.cast_leaf(leaf, params[slot.owner].dtype.to_real())

        return [like(slot, leaf) for slot, leaf in zip(slots, leaves, strict=True)]

    # What torch shows of the counts

    def _number_keys(self) -> list[str]:
        return [*(["step"] if self.counts_steps else []), *self.scalars]

    def _shown(self, params: Params, placed: Sequence[Placed]) -> dict[ParamKey, Entries]:
        if not self._number_keys():
            return {}
        groups = self._group_of()
        shown: dict[ParamKey, Entries] = {}
        for each in placed:
            own, shared = each.layout.scatter(each.state)
            for name in each.names:
                p = params[name]
                shown[name] = self._numbers_of(groups[id(p)], p, {**shared, **own.get(name, {})})
        return shown

    def _numbers_of(self, group: Mapping[str, Any], p: Tensor, values: Mapping[str, Tensor]) -> Entries:
        """The numbers that torch shows with a parameter: those in its entries, or new ones."""
        entries, numbers = self.state.get(p, {}), {}
        if self.counts_steps:
            step = entries.get("step", 0)
            if not (self.step_is_int or isinstance(step, Tensor)):
                step = self._zero_step(group, p).fill_(step)
            numbers["step"] = step
        for key in self.scalars:
            near = p.device if self.step_on_device else numbers["step"].device
            numbers[key] = entries[key] if key in entries else torch.empty_like(values[key], device=near)
        return numbers

    def _zero_step(self, group: Mapping[str, Any], p: Tensor) -> Tensor:
        dtype = torch.float32 if group.get("fused") else tree.scalar_dtype()
        near = self.step_on_device or group.get("capturable") or group.get("fused")
        return torch.zeros((), dtype=dtype, device=p.device if near else "cpu")

    def _count(self, bound: Bound, grads: Grads, extra: Mapping[str, Any]) -> None:
        found_inf = extra.get("found_inf")
        gate = 1 if found_inf is None else found_inf.reshape(()) == 0
        bound.counts.take(grads, bound.state, bound.entries, gate)

    def _publish(self, bound: Bound) -> None:
        """Put entries where torch keeps them, in its order."""
        if bound.is_published and not self.step_is_int:
            return
        for name, found in bound.entries().items():
            numbers, p = bound.counts.shown.get(name, {}), bound.params[name]
            shown = {key: x for key, x in found.items() if key != "count" and key not in self.scalars}
            if not numbers and not shown:
                continue
            entries = self.state[p]
            is_new = not entries or torch.is_grad_enabled()  # else what there is has been written in place
            entries.update(numbers)
            if is_new:
                self._fill(entries, p, as_torch(shown, p))
        self._watch(bound)
        bound.is_published = True

    def _fill(self, entries: Entries, p: Tensor, shown: Entries) -> None:
        order = [key for key in self.fields.values() if key in shown]
        for key in order + [key for key in shown if key not in order]:
            if key not in self.optional or shown[key].shape != (0,) or p.shape == (0,):
                entries[key] = shown[key]

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.pop("_rules", None)
        super().__setstate__(state)


@factory
def rule_of(optimizer: type[DropIn], **options: Any) -> GradientTransformation:
    """The pure rule of a drop-in class, recorded as such, so that it prints, compares and pickles."""
    probe: Any = optimizer([torch.zeros(1, 1, requires_grad=True)], **options)
    return through_pairs(directed(optimizer.rule, probe.param_groups[0]))


def _as_transform(optimizer: type[DropIn], **options: Any) -> str:
    """The call by which users make it."""
    return f"{optimizer.__name__}.transform({', '.join(f'{key}={show(value)}' for key, value in options.items())})"


vars(rule_of)["shown_as"] = _as_transform


def _as_reals(entries: Entries) -> Entries:
    def real(x: Any) -> Any:
        return tree.as_real(x) if isinstance(x, Tensor) else x

    return {key: real(x) for key, x in entries.items()}


def as_torch(entries: Entries, p: Tensor) -> Entries:
    """Entries of the pure rule as torch has them: complex where the parameter is."""
    if not p.is_complex():
        return entries
    pairs = {k for k, x in entries.items() if x.shape == (*p.shape, 2)}
    return {k: torch.view_as_complex(x) if k in pairs else x for k, x in entries.items()}
