"""What every drop-in class of `torch.optim` shares: running a pure rule on the state that torch lays out.

A class inherits its constructor, with all checks, defaults and messages, from the class of torch that it
replaces. It adds the rule, as a transformation made from the options of a group, and the names that torch
gives to the fields of its state. Everything else is here.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, chain
from .._recipe import factory
from .._transforms._rate import scale
from .._typing import State
from .._wrappers._complex import split_real_and_imaginary
from ..fused import Step, make_step
from ._bound import same
from ._cohorts import Cohort, Joint, Past, can_be_counted, counted
from ._contract import is_capturing, refuse_absent, report_step
from ._layout import Entries, Layout, ParamKey
from ._load import KeepsDtypes
from ._pipeline import Run, pipeline
from ._rule import Rule

_KEPT_LAYOUTS = 64  # one for every set of parameters that have had gradients together


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

    _joint: Joint | None = None

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
        differentiable = self.defaults.get("differentiable", False)
        joint, grads = self._ready()
        if grads:
            (joint.take_differentiable if differentiable else joint.take)(grads)
            joint.count()
            if differentiable or self.step_is_int or not joint.is_shown:
                self._show(joint)
        report_step(self)

    def _ready(self: Any) -> tuple[Joint, Mapping[ParamKey, Tensor]]:
        """The step of all parameters that have gradients, and those."""
        rules = [self._rule(group) for group in self.param_groups]
        joint, grads = self._joint, None
        if joint is not None and same(rules, joint.rules) and joint.fits(self.param_groups, self.state):
            grads = joint.same_gradients()
        if grads is None:
            if is_capturing(self.param_groups):
                raise RuntimeError("take a step before capturing one, so that the state is there, and lies still")
            joint = self._joint = self._join(rules)
        elif not joint.any_sparse:
            return joint, grads
        return joint, {
            name: self._gradient(p, cohort.group) for cohort in joint.cohorts for name, p in cohort.members.items()
        }

    def _join(self: Any, rules: list[Rule]) -> Joint:
        """Bind all parameters that have gradients, with their state, to one donating step."""
        known: dict[Tensor, Past] = self.__dict__.get("_known", {})
        if self._joint is not None:
            known.update(self._joint.pasts())
        every = [p for group in self.param_groups for p in group["params"]]
        self._known = {p: known[p] for p in every if p in known}  # also of those that stay behind
        cohorts, start = [], 0
        for number, group in enumerate(self.param_groups):
            if rules[number].is_complex != any(p.is_complex() for p in group["params"]):
                del self._rules[id(group)]
                rules[number] = self._rule(group)
            cohorts += self._cohorts(group, rules[number], start)
            start += len(group["params"])
        joint = Joint(cohorts, rules, *self._step_of(cohorts))
        joint.watch([group["params"] for group in self.param_groups], self.state)
        return joint

    def _step_of(self: Any, cohorts: list[Cohort]) -> tuple[GradientTransformation, Step, bool]:
        """One donating step for these cohorts; the same one whenever the same parameters step together."""
        steps: dict[Any, tuple[GradientTransformation, Step, bool]] = self.__dict__.setdefault("_steps", {})
        backend = "eager" if self.defaults.get("fused") is False else "auto"
        differentiable = self.defaults.get("differentiable", False)
        is_counted = backend == "auto" and not differentiable and all(map(can_be_counted, cohorts))
        key = (is_counted, *((id(cohort.run.tx), cohort.run.names) for cohort in cohorts))
        if key not in steps:
            if len(steps) >= _KEPT_LAYOUTS:
                steps.clear()
            runs = [cohort.run for cohort in cohorts]
            tx = counted(runs) if is_counted else pipeline(runs, {})
            steps[key] = tx, make_step(tx, donate=True, backend=backend), is_counted
        return steps[key]

    def write_hyperparameters(self: Any) -> None:
        """Put the learning rates of the groups where the rule reads them; for CUDA graphs, as `Optimizer` says."""
        for group in self.param_groups:
            self._rule(group)

    def addresses(self: Any) -> tuple[int, ...]:
        """What a captured graph holds on to: rules, parameters, state."""
        held = [p for group in self.param_groups for p in group["params"]]
        held += [x for entries in self.state.values() for x in entries.values() if isinstance(x, Tensor)]
        held += [] if self._joint is None else tree.leaves(self._joint.state)
        return (*(id(self._rule(group)) for group in self.param_groups), *(x.data_ptr() for x in held))

    def _check_capturable(self: Any) -> None:
        for group in self.param_groups:
            if self.counts_steps and not (group.get("capturable") or group.get("fused")):
                raise RuntimeError(  # in the words of torch
                    f"Attempting CUDA graph capture of step() for an instance of {type(self).__name__} but "
                    "param_groups' capturable is False."
                )
            refuse_absent(dict(enumerate(group["params"])))

    def _cohorts(self: Any, group: dict[str, Any], rule: Rule, start: int) -> list[Cohort]:
        """The parameters of a group that have gradients, those with the same past together."""
        cohorts: dict[Hashable, tuple[Past, dict[ParamKey, Tensor]]] = {}
        for number, p in enumerate(group["params"], start):
            if p.grad is not None:
                past = self._recall(p)
                cohorts.setdefault(past.cohort, (past, {}))[1][ParamKey(number)] = p
        return [self._cohort(group, rule, past, members) for past, members in cohorts.values()]

    def _cohort(self: Any, group: dict[str, Any], rule: Rule, past: Past, members: dict[ParamKey, Tensor]) -> Cohort:
        names, first = tuple(members), next(iter(members.values()))
        grads = {name: self._gradient(p, group) for name, p in members.items()}
        layout = rule.layouts.get(names)
        if layout is None:
            if len(rule.layouts) >= _KEPT_LAYOUTS:
                rule.layouts.clear()
            layout = rule.layouts[names] = Layout.of(rule.tx, members, self._key)
        if self.state.get(first):
            stored = {name: self.state[p] for name, p in members.items()}
            if self.optional or rule.is_complex:
                empty = {key: first.new_empty(0) for key in self.optional}
                stored = {name: {**empty, **_as_reals(entries)} for name, entries in stored.items()}
            # Others may share these values, and stay behind.
            state = layout.gather(stored, {key: value.clone() for key, value in past.values.items()})
        else:
            state = _init_like(rule.tx, members)
        _, values = layout.scatter(state)
        shown = {name: self._numbers(group, p, values) for name, p in members.items()}
        return Cohort(
            group, Run(type(self).__name__, rule.tx, names, layout), past.cohort, members, grads, state, shown
        )

    def _numbers(self: Any, group: dict[str, Any], p: Tensor, values: Mapping[str, Tensor]) -> Entries:
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

    def _rule(self: Any, group: dict[str, Any]) -> Rule:
        rules: dict[int, Rule] = self.__dict__.setdefault("_rules", {})
        rule = rules.get(id(group))
        if rule is None or not rule.fits(group):
            rule = rules[id(group)] = Rule(lambda options: _directed(type(self).rule, options), group, rule)
        if not is_capturing(self.param_groups):
            rule.write(group)
        return rule

    def _key(self, path: str) -> str:
        """Torch's name for a path in the pure state. All counts of a rule count the same steps, so they share one."""
        last = path.rsplit(".", 1)[-1]
        return self.fields.get(last, last)

    def _recall(self: Any, p: Tensor) -> Past:
        """What is known of a parameter; read from its entries if they were loaded, or edited by hand."""
        entries = self.state.get(p)
        if not entries:
            return Past("new", {})
        past: Past | None = self._known.get(p)
        shown = [entries[key] for key in (*(["step"] if self.counts_steps else []), *self.scalars)]
        if past is not None and past.holds(shown):
            return past
        count = int(entries["step"]) if self.counts_steps else 1
        values = {key: entries[key].to(p.device) for key in self.scalars}
        values["count"] = torch.full((), count, dtype=torch.int64, device=p.device)
        return Past((count, *map(float, (entries[key] for key in self.scalars))), values)

    def _show(self: Any, joint: Joint) -> None:
        """Put entries where torch keeps them, in its order."""
        for cohort, state in zip(joint.cohorts, joint.states, strict=True):
            stored, _ = cohort.run.layout.scatter(state)
            for name, p in cohort.members.items():
                numbers, shown = cohort.shown[name], stored.get(name, {})
                if not numbers and not shown:
                    continue
                entries = self.state[p]
                is_new = not entries or torch.is_grad_enabled()  # else what there is has been written in place
                entries.update(numbers)
                if is_new:
                    self._fill(entries, p, _as_torch(shown, p))
        joint.watch([group["params"] for group in self.param_groups], self.state)
        joint.is_shown = True

    def _fill(self, entries: Entries, p: Tensor, shown: Entries) -> None:
        order = [key for key in self.fields.values() if key in shown]
        for key in order + [key for key in shown if key not in order]:
            if key not in self.optional or shown[key].shape != (0,) or p.shape == (0,):
                entries[key] = shown[key]

    def _zero_step(self, group: Mapping[str, Any], p: Tensor) -> Tensor:
        dtype = torch.float32 if group.get("fused") else tree.scalar_dtype()
        near = self.step_on_device or group.get("capturable") or group.get("fused")
        return torch.zeros((), dtype=dtype, device=p.device if near else "cpu")

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        for name in ("_rules", "_steps", "_known", "_joint"):
            self.__dict__.pop(name, None)
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
