"""A `torch.optim.Optimizer` around any transformation."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative
from .._torch import disable_dynamo
from ._closure import extras_of
from ._contract import FiresHooksOnce, is_capturing, is_watched, refuse_absent, report_step
from ._hyperparameters import (
    Found,
    Hyperparameter,
    Live,
    complete_betas,
    find_hyperparameters,
    follow_betas,
    make_members,
    show,
)
from ._layout import ParamKey
from ._load import LoadReport, compare, copy_state, fill_in, restore_groups
from ._members import Route, routes
from ._pipeline import scatter
from ._program import Group, Program

_BACKENDS = {None: "auto", True: "fused", False: "eager"}  # what `fused` stands for


class Optimizer(FiresHooksOnce):
    """Run a transformation behind the interface of `torch.optim`.

    All parameters are one tree, so `clip_by_global_norm` clips the norm of all groups. Where a hyperparameter
    differs between groups, or a group was added later, the transformations that this concerns run group by
    group.

    Hyperparameters stand in `param_groups`, where schedulers and assignments change them from one step to the
    next without anything being traced or compiled again. There is always `lr`: the learning rate of the
    transformation, or a factor of the updates, 1.0, if it has none or several. If the learning rate is a
    schedule, `lr` is a tensor that shows the value of the last step, and cannot be set. Of a factory, given as
    `Optimizer(params, of.adamw, learning_rate=1e-3, weight_decay=0.1)`, every argument that is a number stands
    there, by its own name, and `b1` and `b2` also as `betas`. A `partition` makes a group of each label, with
    all the numbers of its optimizer.

    Args:
        params: Parameters, `(name, parameter)` pairs, dicts of either with hyperparameters of their own, or a
            module. With names, masks and labels by path see them; else parameters are called `0`, `1`, ...
        tx: The transformation, or a factory that makes one.
        maximize: Go uphill.
        foreach: Accepted for the sake of torch; without effect.
        capturable: Accepted for the sake of torch; a step can always be captured in a CUDA graph.
        differentiable: Let gradients flow through the step, to the parameters (clones, not leaves), their
            gradients, the state, and hyperparameters that are tensors.
        fused: `None` runs generated kernels where that can be, as `make_step` does; `True` raises where it
            cannot; `False` runs the operations of the rule, and leaves it to a GradScaler to unscale the gradients
            and to skip steps, for trainers that clip in between.
        **hyperparameters: Arguments of the factory.

    Shapes:
        state: per parameter a flat dict of tensors named by transformation and field, such as
            `scale_by_adam.mu`; made on the first step. A number that all parameters share, such as a count,
            stands under each of them; a larger shared tensor under the first.

    Raises:
        TypeError: if `tx` is neither a `GradientTransformation` nor a recorded factory of one, or as
            torch.optim.Optimizer raises.
        ValueError: in `step`, if an `lr` that a schedule drives was set, or if `betas` and `b1` or `b2` were
            set to different values. A step that raises has changed nothing.

    Example:
        >>> import torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.Optimizer(model.parameters(), of.adamw(1e-3, weight_decay=0.1))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> opt.step()
        >>> opt.param_groups[0]["lr"]
        0.001
    """

    _step_supports_amp_scaling: bool  # whether GradScaler leaves unscaling and skipping to the step
    _program: Program | None
    _hyperparameters: dict[str, dict[str, Found]]  # by label
    _seen: list[tuple[Any, Any, Any]]  # lr, b1 and b2 of each group at the last step

    def __init__(
        self,
        params: Any,
        tx: GradientTransformation | Callable[..., GradientTransformation],
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = True,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyperparameters: Any,
    ) -> None:
        self._whole = not isinstance(tx, GradientTransformation)
        if isinstance(tx, GradientTransformation) and hyperparameters:
            raise TypeError(f"{', '.join(hyperparameters)}: hyperparameters go with a factory, not with {tx!r}")
        self.tx = tx if isinstance(tx, GradientTransformation) else _make(tx, hyperparameters)
        self._routes: dict[str, Route] = {}
        self._reset()
        defaults: dict[str, Any] = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        defaults.update(differentiable=differentiable, fused=fused)
        super().__init__(params.named_parameters() if isinstance(params, nn.Module) else params, defaults)
        self._step_supports_amp_scaling = fused is not False
        # Schedulers look into the defaults for what they may cycle.
        first, *others = self.param_groups
        for key in ("betas", *self._found(first)):
            if key in first and all(key in group for group in others):
                self.defaults[key] = first[key]

    @overload
    def step(self, closure: None = None, **extra: Any) -> None: ...

    @overload
    def step(self, closure: Callable[[], Any], **extra: Any) -> Any: ...

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Take one step with the gradients in `.grad`.

        Args:
            closure: Evaluated first, with gradients enabled; its value is returned. Rules that look at the loss
                receive it as `value`, and rules that evaluate it `value_and_grad_fn`.
            **extra: What else the transformation takes, such as `value=loss`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step(closure, loss, extra)
        return loss

    def write_hyperparameters(self) -> None:
        """Put the hyperparameters of the groups into the tensors that the rule reads.

        A step does it by itself. It is for a CUDA graph captured by hand: call it before a replay, and changed
        numbers in `param_groups` take effect in it.
        """
        self._current_program()

    def addresses(self) -> tuple[int, ...]:
        """Where parameters, state and hyperparameters lie; a captured graph holds as long as that stays so."""
        program = self._current_program()
        held = [*program.params.values(), *tree.leaves(program.state), *self._live.tensors()]
        return tuple(x.data_ptr() for x in held)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, a dict with `params` and, if it is to have its own, hyperparameters.

        If there is a `partition`, it becomes a group for each label.
        """
        if type(param_group) is not dict or isinstance(param_group.get("params"), set | None):
            super().add_param_group(param_group)  # which says what is wrong
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        start = sum(len(group["params"]) for group in self.param_groups)
        pairs = [one if isinstance(one, tuple) else (str(start + i), one) for i, one in enumerate(given)]
        for route, names in routes(self.tx, {ParamKey(name): p for name, p in pairs}):
            label, chosen = ".".join(route.values()), set(names)
            own = {
                **param_group,
                "params": [one for one, (name, _) in zip(given, pairs, strict=True) if name in chosen],
            }
            if label:
                own["label"] = label
            self._routes[label] = route
            self._complete(own, [p for name, p in pairs if name in chosen])
            super().add_param_group(own)
            self._seen.append(_rates(own))
        self._program = None

    def state_dict(self) -> dict[str, Any]:
        """What `torch.save` and the like store: flat, plain tensors, which are copies."""
        return copy_state(super().state_dict())

    def load_state_dict(  # type: ignore[override]  # as nn.Module does, it says what it has found
        self, state_dict: dict[str, Any], *, strict: bool = True
    ) -> LoadReport:
        """Load what `state_dict` returned; values go into the tensors that are there, if they have the same dtype.

        Args:
            state_dict: It is not changed, and nothing of it is kept.
            strict: Whether every entry of the state must have its counterpart. With `False` those that match are
                taken, and the rest stays as it is.

        Returns:
            Which entries match, are missing, and are left over, as pairs of parameter and entry.

        Raises:
            KeyError: if `strict` and entries are missing or left over; the message lists them.
            ValueError: if an entry has another shape, or groups or parameters differ in number. Nothing has been
                loaded then.
        """
        program = self._make_program(self._values())
        wanted = {name: dict(entries) for name, entries in scatter(program.runs, program.state.runs).items()}
        reports: list[LoadReport] = []
        seen: list[dict[str, Any]] = []

        def check(_: Any, loaded: dict[str, Any]) -> None:
            reports.append(compare(wanted, list(program.params), loaded, strict))
            seen.append(loaded)

        old_groups = self.param_groups
        handle = self.register_load_state_dict_pre_hook(check)  # the last one, so it sees what the others made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        restore_groups(self.param_groups, old_groups)
        fill_in(self.state, program.params, wanted, seen[-1])
        self._reset(self._live)
        return reports[-1]

    def __getstate__(self) -> dict[str, Any]:
        kept = ("tx", "_whole", "_routes", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset(self.__dict__.get("_live"))

    def _reset(self, live: Live | None = None) -> None:
        """Forget what is derived from groups and state."""
        self._live = Live() if live is None else live
        self._program = None
        self._hyperparameters = {}
        self._seen = [_rates(group) for group in self.__dict__.get("param_groups", ())]

    def _step(self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]) -> None:
        program = self._prepare()
        if program is None:
            return
        grads = program.gradients()
        if closure is not None:
            extra = {**extras_of(closure, loss, program.params), **extra}
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            extra = dict(extra, found_inf=found_inf, grad_scale=getattr(self, "grad_scale", None))
        if self.defaults["differentiable"]:
            program.take_differentiable(grads, **extra)
        else:
            program.take(grads, **extra)
        self._finish(program)

    @disable_dynamo  # of a compiled step this is bookkeeping, and would be compiled again for every number
    def _prepare(self) -> Program | None:
        """The program for this step; none if there is no step to take."""
        if not self.state and self._is_rehearsal():
            self._rehearse()
            return None
        program = self._current_program()
        if is_capturing(self.param_groups):
            refuse_absent(program.params)
        return program

    @disable_dynamo
    def _finish(self, program: Program) -> None:
        program.publish(self.state)
        report_step(self)

    def _is_rehearsal(self) -> bool:
        """Whether this is no step but torch.distributed.checkpoint's way of having the state made."""
        return all(_is_zero(group["lr"]) for group in self.param_groups) and not any(
            p.grad.any() for group in self.param_groups for p in group["params"] if p.grad is not None
        )

    def _rehearse(self) -> None:
        """Make the state. Some rules put the learning rate into it, so that must be the last true one."""
        zeros = [group["lr"] for group in self.param_groups]
        for group, (rate, _, _) in zip(self.param_groups, self._seen, strict=True):
            group["lr"] = rate
        try:
            self._make_program(self._values()).publish(self.state)
        finally:
            for group, zero in zip(self.param_groups, zeros, strict=True):
                group["lr"] = zero

    def _current_program(self) -> Program:
        """The program for groups and state as they are, its hyperparameters written."""
        capturing = is_capturing(self.param_groups)
        values = self._values()
        program = self._program
        separated = self._live.separate(values)
        differentiable = self.defaults["differentiable"]  # then tensors are used as they are, and may be new ones
        if program is None or separated or differentiable or not program.fits(self.param_groups, self.state):
            if capturing:
                raise RuntimeError("take a step before capturing one, so that the state is there, and lies still")
            program = self._program = self._make_program(values, differentiable)
        for group in self.param_groups:
            label = group.get("label", "")
            if label in program.schedules and program.was_overruled(label, group["lr"]):
                value, group["lr"] = group["lr"], program.state.rates[label]
                schedule = program.schedules[label].schedule
                program.publish(self.state)
                raise ValueError(
                    f"lr was set to {value!r}, but the schedule {schedule!r} of the transformation drives it"
                )
        if not (capturing and is_watched()):
            self._live.write(values, capturing)
        return program

    def _make_program(self, values: Sequence[dict[Hyperparameter, Any]], differentiable: bool = False) -> Program:
        groups: list[Group] = []
        rates: dict[str, Tensor] = {}
        start = 0
        for group in self.param_groups:
            params, label = group["params"], group.get("label", "")
            names = group.get("param_names", range(start, start + len(params)))
            start += len(params)
            found = self._found(group)
            if callable(found["lr"].value):
                rates.setdefault(label, group["lr"])
            # Two groups may use the same names, as those of two modules do.
            taken = {name for other in groups for name in other.names}
            keys = [ParamKey(f"{len(groups)}.{name}" if name in taken else name) for name in names]
            groups.append(Group(params, keys, label, self._routes[label], found, group["maximize"]))
        backend = _BACKENDS[self.defaults["fused"]]
        return Program(self.tx, groups, self._live, rates, self.state, values, differentiable, backend)

    def _values(self) -> list[dict[Hyperparameter, Any]]:
        """What the groups say of each hyperparameter, except those that a schedule drives."""
        for number, group in enumerate(self.param_groups):
            if "betas" in group:
                follow_betas(group, self._seen[number][1:])
            self._seen[number] = _rates(group)
        return [
            {one: group[key] for key, (one, value) in self._found(group).items() if not callable(value)}
            for group in self.param_groups
        ]

    def _found(self, group: dict[str, Any]) -> dict[str, Found]:
        """The hyperparameters of a group, by their keys in it."""
        label = group.get("label", "")
        if label not in self._hyperparameters:
            self._hyperparameters[label] = find_hyperparameters(self.tx, self._routes[label], self._whole)
        return self._hyperparameters[label]

    def _complete(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Fill in the hyperparameters that a new group was not given, and check those that it was."""
        if "lr" in group:
            check_nonnegative(lr=group["lr"])
        found = self._found(group)
        complete_betas(group, {key: value for key, (_, value) in found.items()})
        numbers = {}
        for key, (one, value) in found.items():
            peers = [other for other in self.param_groups if other.get("label", "") == group.get("label", "")]
            if callable(value):
                if key in group:
                    raise ValueError(f"a group has {key}={group[key]!r}, but the schedule {value!r} drives it")
                group[key] = peers[0][key] if peers else show(value, params)
                continue
            # A scheduler writes into tensors, so each group needs one of its own.
            own = value.clone() if isinstance(value, Tensor) and peers else value
            numbers[one] = group.setdefault(key, own)
        make_members(self.tx, self._routes[group.get("label", "")], numbers)


def _make(make: Any, hyperparameters: dict[str, Any]) -> GradientTransformation:
    tx = make(**hyperparameters) if callable(make) else make
    check_transformation(tx=tx)
    made: GradientTransformation = tx
    if made.recipe is None:
        raise TypeError(f"{make!r} keeps no record of its arguments; decorate it with optimfn.factory")
    return made


def _rates(group: dict[str, Any]) -> tuple[Any, Any, Any]:
    return group["lr"], group.get("b1"), group.get("b2")


def _is_zero(rate: Any) -> bool:
    """Whether a learning rate is zero, without waiting for a device."""
    if isinstance(rate, Tensor):
        return rate.device.type == "cpu" and not rate.any()
    return bool(rate == 0)
