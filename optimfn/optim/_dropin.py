"""What every drop-in class of `torch.optim` shares: running a pure rule on the state that torch lays out.

A class inherits its constructor, with all checks, defaults and messages, from the class of torch that it
replaces. It adds the rule, as a transformation made from the options of a group, and the names that torch
gives to the fields of its state. Everything else is here.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates, chain
from .._recipe import factory
from .._transforms._rate import scale
from .._typing import State
from .._wrappers._complex import split_real_and_imaginary
from ..fused import Step, make_step
from ._contract import is_capturing, refuse_absent, report_step
from ._layout import Entries, Layout, ParamKey
from ._load import KeepsDtypes
from ._pipeline import PipelineState, Run, pipeline

_NOT_OPTIONS = ("params", "param_names", "lr")
_KEPT_LAYOUTS = 64  # one for every set of parameters that have had gradients together


class Shared(NamedTuple):
    """What one parameter knows of the leaves of a state that have no parameter, such as counts.

    Parameters with the same past form a cohort and step as one tree. A parameter that misses a gradient falls
    behind, into another cohort; so each has the step count that it has in torch.
    """

    cohort: Hashable
    values: dict[str, Tensor]
    step: Tensor | int | None  # what torch shows, and its version when these values were true
    version: int
    size: int = 0  # how many parameters share these very values


@dataclass
class Part:
    """One cohort of a group in one step."""

    group: dict[str, Any]
    rule: "Rule"
    layout: Layout
    members: dict[ParamKey, Tensor]
    shared: Shared
    grads: dict[ParamKey, Tensor]
    state: State


@dataclass
class Rule:
    """A transformation made from the options of a group, and the layouts of its states."""

    tx: GradientTransformation
    options: dict[str, Any]
    live: Tensor | None  # the learning rate of this step, unless the group holds a tensor
    layouts: dict[tuple[ParamKey, ...], Layout] = field(default_factory=dict)


class DropIn(KeepsDtypes):
    """The part of a drop-in class that is not the class of torch."""

    fields: ClassVar[Mapping[str, str]] = {}
    """Torch's name for each field of the pure state."""

    optional: ClassVar[Sequence[str]] = ()
    """Torch's names of entries that not every parameter has; the rule has an empty tensor instead."""

    counts_steps: ClassVar[bool] = True
    """Whether torch keeps a `step` for each parameter."""

    takes_sparse: ClassVar[bool] = False
    """Whether gradients may be sparse."""

    step_is_int: ClassVar[bool] = False
    """Whether `step` is a Python number."""

    step_on_device: ClassVar[bool] = False
    """Whether `step` lies with the parameter rather than on the CPU."""

    scalars: ClassVar[Sequence[str]] = ()
    """Torch's names of further scalars, shared among parameters in the pure state."""

    # GradScaler is to unscale and skip by itself, also where torch's class has set this for its fused kernel.
    _step_supports_amp_scaling = property(lambda self: False, lambda self, value: None)

    @staticmethod
    def rule(group: Mapping[str, Any]) -> GradientTransformation:
        """The pure rule for the options of a group, in the words of torch."""
        raise NotImplementedError

    @classmethod
    def transform(cls, **options: Any) -> GradientTransformation:
        """The pure transformation with exactly the rule of this class.

        Args:
            **options: Arguments of the constructor, without `params`; those that choose an execution are ignored.

        Raises:
            TypeError, ValueError: as the constructor does.
        """
        return rule_of(cls, **options)

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients in `.grad`; a parameter without one is left as it is.

        Args:
            closure: Evaluated first, with gradients enabled; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            self._step_groups()
        return loss

    def _gradient(self, p: Tensor, group: Mapping[str, Any]) -> Tensor:
        """The gradient of a parameter as the rule takes it; raises as torch does for those it does not take.

        Where a rule takes sparse gradients, rows that are not there count as zeros. That gives torch's numbers,
        with the work and the memory of a dense step.
        """
        grad = p.grad
        assert grad is not None
        if grad.is_sparse and not self.takes_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        return grad.to_dense() if grad.is_sparse else grad

    def _step_groups(self: Any) -> None:
        """Take the step of all cohorts, in one call of what `make_step` makes of their rules."""
        if is_capturing(self.param_groups):
            self._check_capturable()
        parts, start = [], 0
        for group in self.param_groups:
            parts += self._cohorts(group, start)
            start += len(group["params"])
        if self.defaults.get("differentiable", False):
            for part in parts:
                # Writing in place must not change what autograd has kept of the parameters.
                params = {name: p.clone() for name, p in part.members.items()}
                updates, part.state = part.rule.tx.update(part.grads, part.state, params)
                for name, new in apply_updates(params, updates).items():
                    part.members[name].copy_(new)
        elif parts:
            step = self._joint_step(parts)
            params = {name: p for part in parts for name, p in part.members.items()}
            grads = {name: g for part in parts for name, g in part.grads.items()}
            step(params, PipelineState(tuple(part.state for part in parts), {}), grads)
        for part in parts:
            self._show(part)
        report_step(self)

    def _joint_step(self: Any, parts: list[Part]) -> Step:
        """One donating step for these cohorts; the same one whenever the same parameters step together."""
        steps: dict[Any, tuple[Step, list[Rule]]] = self.__dict__.setdefault("_steps", {})
        key = tuple((id(part.rule), tuple(part.members)) for part in parts)
        if key not in steps:
            if is_capturing(self.param_groups):
                raise RuntimeError("take a step before capturing one, so that the state is there, and lies still")
            if len(steps) >= _KEPT_LAYOUTS:
                steps.clear()
            runs = [Run(type(self).__name__, part.rule.tx, tuple(part.members), part.layout) for part in parts]
            backend = "eager" if self.defaults.get("fused") is False else "auto"
            # The rules are kept so that no other can get the identity of one.
            steps[key] = (
                make_step(pipeline(runs, {}), donate=True, backend=backend),
                [part.rule for part in parts],
            )
        return steps[key][0]

    def write_hyperparameters(self: Any) -> None:
        """Put the learning rates of the groups where the rule reads them; for CUDA graphs, as `Optimizer` says."""
        for group in self.param_groups:
            self._rule(group)

    def addresses(self: Any) -> tuple[int, ...]:
        """What a captured graph holds on to: rules, parameters, state."""
        held = [p for group in self.param_groups for p in group["params"]]
        held += [x for entries in self.state.values() for x in entries.values() if isinstance(x, Tensor)]
        held += [x for shared in self.__dict__.get("_known", {}).values() for x in shared.values.values()]
        return (*(id(self._rule(group)) for group in self.param_groups), *(x.data_ptr() for x in held))

    def _check_capturable(self: Any) -> None:
        for group in self.param_groups:
            if self.counts_steps and not (group.get("capturable") or group.get("fused")):
                raise RuntimeError(  # in the words of torch
                    f"Attempting CUDA graph capture of step() for an instance of {type(self).__name__} but "
                    "param_groups' capturable is False."
                )
            refuse_absent(dict(enumerate(group["params"])))

    def _cohorts(self: Any, group: dict[str, Any], start: int) -> list[Part]:
        """The parameters of a group that have gradients, those with the same past together."""
        cohorts: dict[Hashable, tuple[Shared, dict[ParamKey, Tensor], list[bool]]] = {}
        for number, p in enumerate(group["params"], start):
            if p.grad is not None:
                shared = self._recall(p)
                first, members, alike = cohorts.setdefault(shared.cohort, (shared, {}, []))
                members[ParamKey(number)] = p
                alike.append(shared.values is first.values)
        rule = self._rule(group) if cohorts else None
        parts = []
        for shared, members, alike in cohorts.values():
            if sum(alike) < shared.size:  # some of them stay behind, and keep these values
                shared = shared._replace(values={key: value.clone() for key, value in shared.values.items()})
            parts.append(self._part(group, rule, shared, members))
        return parts

    def _part(self: Any, group: dict[str, Any], rule: Rule, shared: Shared, members: dict[ParamKey, Tensor]) -> Part:
        names = tuple(members)
        layout = rule.layouts.get(names)
        if layout is None:
            if len(rule.layouts) >= _KEPT_LAYOUTS:
                rule.layouts.clear()
            layout = rule.layouts[names] = Layout.of(rule.tx, members, self._key)
        first = next(iter(members.values()))
        if self.state.get(first):
            stored = {name: self.state[p] for name, p in members.items()}
            if self.optional or rule.options["complex"]:
                empty = {key: first.new_empty(0) for key in self.optional}
                stored = {name: {**empty, **_as_reals(entries)} for name, entries in stored.items()}
            state = layout.gather(stored, self._shared_values(shared, first))
        else:
            state = _init_like(rule.tx, members)
        grads = {name: self._gradient(p, group) for name, p in members.items()}
        return Part(group, rule, layout, members, shared, grads, state)

    def _rule(self: Any, group: dict[str, Any]) -> Rule:
        rules: dict[int, Rule] = self.__dict__.setdefault("_rules", {})
        options = {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
        options["complex"] = any(p.is_complex() for p in group["params"])
        rate = group["lr"]
        if isinstance(rate, Tensor):
            options["lr"] = rate
        rule = rules.get(id(group))
        if rule is None or not _same(rule.options, options):
            live = None if "lr" in options else tree.wide(tree.count(group["params"]))
            made = _directed(type(self).rule, {**group, "lr": rate.reshape(()) if live is None else live})
            if options["complex"]:
                made = split_real_and_imaginary(made)
            rule = rules[id(group)] = Rule(made, options, live)
        if rule.live is not None and not is_capturing(self.param_groups):
            rule.live.fill_(rate)
        return rule

    def _key(self, path: str) -> str:
        """Torch's name for a path in the pure state. All counts of a rule count the same steps, so they share one."""
        last = path.rsplit(".", 1)[-1]
        return self.fields.get(last, last)

    def _recall(self: Any, p: Tensor) -> Shared:
        """What is known of a parameter; read from its entries if they were loaded, or edited by hand."""
        known: dict[Tensor, Shared] = self.__dict__.setdefault("_known", {})
        entries = self.state.get(p)
        if not entries:
            return Shared("new", {}, None, 0)
        step, shared = entries.get("step"), known.get(p)
        if shared is None or shared.step is not step or shared.version != _version(step):
            count = 1 if step is None else int(step)
            scalars = [float(entries[key]) for key in self.scalars]
            shared = known[p] = Shared((count, *scalars), {}, step, _version(step))
        return shared

    def _shared_values(self: Any, shared: Shared, p: Tensor) -> dict[str, Tensor]:
        """The shared leaves of a cohort, from what one of its parameters was loaded with if they are not known."""
        if shared.values or not isinstance(shared.cohort, tuple):
            return shared.values
        count = torch.full((), shared.cohort[0], dtype=torch.int64, device=p.device)
        return {"count": count, **{key: self.state[p][key].to(p.device, copy=True) for key in self.scalars}}

    def _show(self: Any, part: Part) -> None:
        """Put entries, already written, where torch keeps them, and take a step in the counts."""
        stored, values = part.layout.scatter(part.state)
        cohort: Hashable = object()  # members of a cohort stay together
        if not self.scalars:  # then all that count as much are in one cohort
            cohort = (part.shared.cohort[0] + 1 if isinstance(part.shared.cohort, tuple) else 1,)
        if not stored and not self.counts_steps:
            return
        for name, p in part.members.items():
            entries = self.state[p]
            if not entries or torch.is_grad_enabled():  # else the entries there are have been written in place
                self._fill(entries, part.group, values, p, _as_torch(stored.get(name, {}), p))
            for key in self.scalars:
                entries[key].copy_(values[key])
        if self.step_is_int:
            for p in part.members.values():
                self.state[p]["step"] += 1
        elif self.counts_steps:
            torch._foreach_add_([self.state[p]["step"] for p in part.members.values()], 1)
        for p in part.members.values():
            step = self.state[p].get("step")
            self._known[p] = Shared(cohort, values, step, _version(step), len(part.members))

    def _fill(self, entries: Entries, group: dict[str, Any], values: Entries, p: Tensor, shown: Entries) -> None:
        """Make the entries of a parameter, in torch's order."""
        if self.counts_steps and "step" not in entries:
            entries["step"] = 0 if self.step_is_int else self._zero_step(group, p)
        for key in self.scalars:
            near = p.device if self.step_on_device else entries["step"].device
            entries.setdefault(key, torch.empty_like(values[key], device=near))
        order = [key for key in self.fields.values() if key in shown]
        for key in order + [key for key in shown if key not in order]:
            if key not in self.optional or shown[key].shape != (0,) or p.shape == (0,):
                entries[key] = shown[key]

    def _zero_step(self, group: Mapping[str, Any], p: Tensor) -> Tensor:
        dtype = torch.float32 if group.get("fused") else tree.scalar_dtype()
        near = self.step_on_device or group.get("capturable") or group.get("fused")
        return torch.zeros((), dtype=dtype, device=p.device if near else "cpu")

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.pop("_rules", None)
        self.__dict__.pop("_steps", None)
        self.__dict__.pop("_known", None)
        super().__setstate__(state)


@factory
def rule_of(optimizer: type[DropIn], **options: Any) -> GradientTransformation:
    """The pure rule of a drop-in class, recorded as such, so that it prints, compares and pickles."""
    probe: Any = optimizer([torch.zeros(1, 1, requires_grad=True)], **options)
    return split_real_and_imaginary(_directed(optimizer.rule, probe.param_groups[0]))


def _directed(
    rule: Callable[[Mapping[str, Any]], GradientTransformation], group: Mapping[str, Any]
) -> GradientTransformation:
    made = rule(group)
    return chain(scale(-1.0), made) if group.get("maximize") else made


def _version(step: Tensor | int | None) -> int:
    return step._version if isinstance(step, Tensor) else 0


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(x is b[key] or (not _has_tensor(x) and x == b[key]) for key, x in a.items())


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(x, Tensor) for x in value))


def _init_like(tx: GradientTransformation, members: dict[ParamKey, Tensor]) -> State:
    """A fresh state in the dtypes of the parameters, as torch makes it."""

    def like(path: tuple[Any, ...], leaf: Any) -> tuple[bool, Any]:
        owner = next((members[entry] for entry in path if isinstance(entry, ParamKey)), None)
        if not isinstance(leaf, Tensor) or owner is None or not leaf.is_floating_point():
            return False, None
        return True, tree.cast_leaf(leaf, owner.dtype.to_real())

    return tree.map_nodes(like, tx.init({name: p.detach() for name, p in members.items()}))


def _as_reals(entries: Entries) -> Entries:
    return {key: tree.as_real(x) if isinstance(x, Tensor) else x for key, x in entries.items()}


def _as_torch(entries: Entries, p: Tensor) -> Entries:
    if not p.is_complex():
        return entries
    pairs = {k for k, x in entries.items() if x.shape == (*p.shape, 2)}
    return {k: torch.view_as_complex(x) if k in pairs else x for k, x in entries.items()}
