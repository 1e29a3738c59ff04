"""A `torch.optim.Optimizer` around any transformation."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from traceback import walk_stack
from typing import Any, overload

import torch
from torch import Tensor, nn

from .._algorithms.adam._sparse_adam import scale_by_sparse_adam
from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative
from .._recipe import uses_factory
from ._bound import Bound, copied
from ._contract import is_capturing
from ._engine import Engine, Said
from ._groups import check_arguments, check_keys
from ._hyperparameters import (
    FactoryRules,
    Found,
    complete_betas,
    find_hyperparameters,
    follow_betas,
    make_members,
    show,
)
from ._layout import Entries, ParamKey
from ._load import LoadReport, compare, copy_state, fill_in, restore_groups
from ._members import Route, routes
from ._pipeline import make_members as make_part_members
from ._runs import common_places, template


class Optimizer(Engine):
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

    _rules: dict[tuple[str, bool], FactoryRules]  # by label, and whether it goes uphill
    _live_rates: dict[str, Tensor]  # the values of schedules at the last step, by label
    _step_supports_amp_scaling: bool  # whether GradScaler leaves unscaling and skipping to the step

    def __init__(
        self,
        params: Any,
        tx: GradientTransformation | Callable[..., GradientTransformation] | None = None,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = True,
        differentiable: bool = False,
        fused: bool | None = None,
        **hyperparameters: Any,
    ) -> None:
        check_arguments(params, tx)
        self._whole = not isinstance(tx, GradientTransformation)
        if isinstance(tx, GradientTransformation) and hyperparameters:
            raise TypeError(f"{', '.join(hyperparameters)}: hyperparameters go with a factory, not with {tx!r}")
        self.tx = tx if isinstance(tx, GradientTransformation) else _make(tx, hyperparameters)
        self._routes: dict[str, Route] = {}
        self._begin()
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
        """Take one step with the gradients in `.grad`; without any it is no step.

        Args:
            closure: Evaluated first, with gradients enabled; its value is returned. Rules that look at the loss
                receive it as `value`, and rules that evaluate it `value_and_grad_fn`.
            **extra: What else the transformation takes, such as `value=loss`.
        """
        return self._step(closure, extra)

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
            label, chosen = ".".join(map(str, route.values())), set(names)
            own = {
                **param_group,
                "params": [one for one, (name, _) in zip(given, pairs, strict=True) if name in chosen],
            }
            if label:
                own["label"] = label
            self._routes[label] = route
            self._complete(own, [p for name, p in pairs if name in chosen])
            super().add_param_group(own)
            self._note(self.param_groups[-1])

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
        found: list[tuple[LoadReport, dict[ParamKey, Entries], dict[str, Any]]] = []

        def check(_: Any, loaded: dict[str, Any]) -> None:
            wanted = self._wanted(loaded, strict)
            found.append((compare(wanted, list(self._params()), loaded, strict), wanted, loaded))

        old_groups, kept = self.param_groups, {p: dict(entries) for p, entries in self.state.items()}
        handle = self.register_load_state_dict_pre_hook(check)  # the last one, so it sees what the others made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        restore_groups(self.param_groups, old_groups)
        report, wanted, loaded = found[-1]
        fill_in(self.state, kept, self._params(), wanted, loaded)
        self._begin()
        return report

    def __getstate__(self) -> dict[str, Any]:
        kept = ("tx", "_whole", "_routes", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        """Begin anew with the groups as they are, as after a checkpoint was loaded."""
        self._bound = None
        self._own("_rules", dict)
        self._hyperparameters: dict[str, dict[str, Found]] = {}
        self._keys: dict[int, set[str]] = {}  # of each group, that were found to be right
        self._seen: dict[int, tuple[Any, ...]] = {}  # each group, its lr, b1 and b2 at the last step
        self._shown_rates: dict[str, tuple[Tensor, int]] = {}  # what shows the value of a schedule, by label
        live = self._own("_live_rates", dict)
        for group in self.__dict__.get("param_groups", ()):
            self._note(group)
            label = group.get("label", "")
            if any(callable(value) for _, value in self._found(group).values()):
                live.setdefault(label, group["lr"].clone()).copy_(group["lr"])
                self._shown_rates[label] = group["lr"], group["lr"]._version

    def _check_keys(self, group: dict[str, Any]) -> None:
        check_keys(group, self._found(group), self.tx)
        self._keys[id(group)] = set(group)

    def _note(self, group: dict[str, Any]) -> None:
        self._seen[id(group)] = group, group["lr"], group.get("b1"), group.get("b2")

    # What the engine asks

    def _say(self, capturing: bool) -> list[Said]:
        said: list[Said] = []
        for group in self.param_groups:
            if self._keys.get(id(group)) != group.keys():
                self._check_keys(group)
            if "betas" in group:
                follow_betas(group, self._seen.get(id(group), (None,) * 4)[2:])
            self._note(group)
            found, label = self._found(group), group.get("label", "")
            values = {one: group[key] for key, (one, value) in found.items() if not callable(value)}
            said.append((self._rules_of(label, group["maximize"]), values))
            if label in self._shown_rates:
                self._check_shown(label, group)
        return said

    def _rules_of(self, label: str, maximize: bool) -> FactoryRules:
        if (label, maximize) not in self._rules:
            self._rules[label, maximize] = FactoryRules(self.tx, tuple(self._routes[label].items()), maximize)
        return self._rules[label, maximize]

    def _names(self) -> list[list[ParamKey]]:
        taken: set[str] = set()
        named: list[list[ParamKey]] = []
        for number, group in enumerate(self.param_groups):
            start = sum(len(names) for names in named)
            names = group.get("param_names") or range(start, start + len(group["params"]))
            # Two groups may use the same names, as those of two modules do.
            named.append([ParamKey(f"{number}.{name}" if str(name) in taken else str(name)) for name in names])
            taken.update(map(str, names))
        return named

    def _schedules(self, group: dict[str, Any]) -> tuple[tuple[Hashable, str, Callable[[Any], Any]], ...]:
        found = self._found(group).values()
        return tuple((one, group.get("label", ""), value) for one, value in found if callable(value))

    def _rates(self) -> dict[str, Tensor]:
        return self._live_rates

    def _takes_sparse(self) -> bool:
        return uses_factory(self.tx, scale_by_sparse_adam)

    def past(self, p: Tensor, keys: Sequence[str]) -> Hashable:
        """The numbers that a parameter shares with others, such as how many steps it has made."""
        entries = self.state[p]
        return tuple(entries[key].item() if key in entries and entries[key].ndim == 0 else None for key in keys)

    def _publish(self, bound: Bound) -> None:
        if bound.state.rates:
            self._show_rates(bound)
        self._publish_entries(bound)

    def _publish_entries(self, bound: Bound) -> None:
        if not bound.is_published:
            for name, entries in bound.entries().items():
                own = self.state[bound.params[name]]
                own.clear()
                own.update(entries)
            self._watch(bound)
            bound.is_published = True

    def _show_rates(self, bound: Bound) -> None:
        """Let the groups show the values of the schedules, in tensors that a user may keep."""
        with torch.no_grad():
            for label, rate in bound.state.rates.items():
                self._live_rates[label].copy_(rate)
        bound.state = bound.state._replace(rates=self._live_rates)
        # A graph can write only where it has written.
        shown = self._live_rates if is_capturing(self.param_groups) else copied(self._live_rates)
        self._shown_rates = {label: (rate, rate._version) for label, rate in shown.items()}
        for group in self.param_groups:
            if group.get("label", "") in shown:
                group["lr"] = shown[group.get("label", "")]

    def _check_shown(self, label: str, group: dict[str, Any]) -> None:
        shown, version = self._shown_rates[label]
        value = group["lr"]
        if value is shown and version == shown._version:
            return
        shown = self._live_rates[label].clone()
        self._shown_rates[label] = shown, shown._version
        for other in self.param_groups:
            if other.get("label", "") == label:
                other["lr"] = shown
        schedule = next(one for _, one in self._found(group).values() if callable(one))
        raise ValueError(f"lr was set to {value!r}, but the schedule {schedule!r} of the transformation drives it")

    def _is_rehearsal(self) -> bool:
        """Whether this is no step but torch.distributed.checkpoint's way of having the state made."""
        frames = (frame for frame, _ in walk_stack(None))
        called = any(frame.f_globals.get("__name__") == "torch.distributed.checkpoint.state_dict" for frame in frames)
        return (
            called
            and all(_is_zero(group["lr"]) for group in self.param_groups)
            and not any(p.grad.any() for group in self.param_groups for p in group["params"] if p.grad is not None)
        )

    def _rehearse(self) -> None:
        """Make the state. Some rules put the learning rate into it, so that must be the last true one."""
        zeros = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self._seen[id(group)][1]
        try:
            self._publish_entries(self._join(self._say(False)))
        finally:
            for group, zero in zip(self.param_groups, zeros, strict=True):
                group["lr"] = zero

    def _wanted(self, loaded: Mapping[str, Any], strict: bool) -> dict[ParamKey, Entries]:
        """What entries those parameters need that have some in a state dict."""
        numbers = [number for group in loaded["param_groups"] for number in group["params"]]
        params = self._params()
        if len(numbers) != len(params):
            return {}  # of this, torch speaks
        begun = {name for name, number in zip(params, numbers, strict=True) if loaded["state"].get(number)}
        parts, tensors = self._parts(self._say(False), False)
        made, _ = make_part_members(parts, tensors, self._live_rates)
        used = [
            part.rules.uses(own, {id(x): i for i, x in enumerate(tensors)})
            for part, own in zip(parts, made, strict=True)
        ]
        wanted: dict[ParamKey, Entries] = {}
        for place in common_places(made, used, [[n for n in names if n in begun] for names in self._names()]):
            each = template(place, params, self, has_memory=not strict)
            for name, entries in each.scatter(each.state).items():
                wanted.setdefault(name, {}).update(entries)
        return wanted

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
        check_keys(group, found, self.tx)
        complete_betas(group, {key: value for key, (_, value) in found.items()})
        numbers = {}
        for key, (one, value) in found.items():
            peers = [other for other in self.param_groups if other.get("label", "") == group.get("label", "")]
            if callable(value):
                if key in group:
                    raise ValueError(f"a group has {key}={group[key]!r}, but the schedule {value!r} drives it")
                group[key] = peers[0][key] if peers else show(value, params)
                self._live_rates.setdefault(group.get("label", ""), group[key].clone())
                self._shown_rates[group.get("label", "")] = group[key], group[key]._version
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


def _is_zero(rate: Any) -> bool:
    """Whether a learning rate is zero, without waiting for a device."""
    if isinstance(rate, Tensor):
        return rate.device.type == "cpu" and not rate.any()
    return bool(rate == 0)
