"""A `torch.optim.Optimizer` around any transformation."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from inspect import isfunction
from textwrap import indent
from typing import Any, overload

from torch import Tensor, nn

from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative
from .._gate import look_for_unmatched
from .._hints import shown as say
from .._recipe import RecordedFunction, fingerprint, is_own
from ..distributed._means import flush_in_place
from ._factory_source import FactorySource
from ._groups import check_arguments, check_keys
from ._hyperparameters import complete_betas, make_members, show
from ._layout import Entries, ParamKey
from ._load import (
    LoadReport,
    by_name,
    check_form,
    compare,
    copy_state,
    fill_in,
    in_formats,
    restore_groups,
    with_common,
    without_reprs,
)
from ._members import Route, keep_slow, routes


class Optimizer(FactorySource):
    """Run a transformation behind the interface of `torch.optim`.

    Numbers that a rule finds elsewhere than in groups, as in `cfg.lr`, are constants of its trace, as for `make_step`:
    a later change is not seen, so hold a 0-dim tensor there.

    All parameters are one tree, so `clip_by_global_norm` clips the norm of all groups. Where a hyperparameter
    differs between groups, or a group was added later, the transformations that this concerns run group by
    group.

    Hyperparameters stand in `param_groups`, where schedulers and assignments change them from one step to the next
    without anything being traced or compiled again. There is always `lr`: the learning rate of the transformation,
    or a factor of the updates, 1.0, if it has none or several; what is assigned it leaves alone. If the learning
    rate is a schedule, `lr` is a tensor that shows the value of the last step, and cannot be set. Of a factory,
    given as `Optimizer(params, of.adamw, learning_rate=1e-3, weight_decay=0.1)`, every argument that is a number
    stands there, by its own name, and `b1` and `b2` also as `betas`. A `partition` makes a group of each label, with
    all the numbers of its optimizer. The parameters are the fast ones of a `lookahead`; the slow ones are in its
    state.

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
        self.tx = keep_slow(tx) if isinstance(tx, GradientTransformation) else _made(tx, hyperparameters)
        self._routes: dict[str, Route] = {}
        self._trained, self._evaluates = {}, False
        self._begin()
        defaults: dict[str, Any] = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        defaults.update(differentiable=differentiable, fused=fused)
        super().__init__(params.named_parameters() if isinstance(params, nn.Module) else params, defaults)
        self._step_supports_amp_scaling = fused is not False
        look_for_unmatched(self.tx.recipe, self._params())
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
        self._check_training()
        if closure is not None and not callable(closure):
            raise TypeError(f"closure must be a function, got {say(closure)}: a loss goes in by name, step(value=loss)")
        loss = self._step(closure, extra)
        if not self.state and not any(p.grad is not None for group in self.param_groups for p in group["params"]):
            warnings.warn("no gradient: step did nothing; was backward called on these parameters?", stacklevel=2)
        return loss

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
        if any(key == "ticket" or str(key).endswith(".ticket") for own in self.state.values() for key in own):
            flush_in_place(self.state_tree())
        return self._with_trained(copy_state(super().state_dict()))

    def load_state_dict(  # type: ignore[override]  # as nn.Module does, it says what it has found
        self, state_dict: dict[str, Any], *, strict: bool = True
    ) -> LoadReport:
        """Load what `state_dict` returned; values go into the tensors that are there, if they have the same dtype.

        Where both have names of parameters, a group is loaded by name, in whatever order it was saved.

        Args:
            state_dict: It is not changed, and nothing of it is kept.
            strict: Whether every entry of the state must have its counterpart. With `False` those that match are
                taken, and the rest stays as it is.

        Returns:
            Which entries match, are missing, and are left over, as pairs of parameter and entry.

        Raises:
            KeyError: if `strict` and entries are missing or left over; the message lists them.
            ValueError: if an entry has another shape, groups or parameters differ in number, or those of a group in
                their names. Nothing has been loaded then.
            RuntimeError: between `eval` and `train`, where the parameters are not those that the state belongs to.
        """
        self._check_training("load_state_dict")
        check_form(state_dict)
        found: list[tuple[LoadReport, dict[ParamKey, Entries], dict[str, Any]]] = []

        def check(_: Any, loaded: dict[str, Any]) -> dict[str, Any]:
            loaded, trained = self._without_trained(without_reprs(by_name(self.param_groups, loaded)))
            wanted, common = self._wanted(loaded, strict)
            loaded = with_common(wanted, common, list(self._params()), loaded)
            loaded = in_formats(wanted, list(self._params()), loaded)
            found.append((compare(wanted, list(self._params()), loaded, strict), wanted, loaded))
            aside.update(trained)
            return loaded

        aside: dict[int, Tensor] = {}  # trained parameters, in whose place the state dict was saved with others
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
        self._set_aside(aside)
        return report

    def entries_for(self, state_dict: Mapping[str, Any]) -> list[Entries]:
        """The entries, on no device, that parameters need which have some in a state dict; in the order of groups."""
        wanted, _ = self._wanted(state_dict, True)
        return [wanted.get(name, {}) for name in self._params()]

    def numbers_of(self, group: dict[str, Any]) -> set[str]:
        """The keys of a group that are hyperparameters of the transformation."""
        own = {key for key, (one, _) in self._found(group).items() if one.argument != "factor"}
        return own | ({"betas"} if "betas" in group else set())

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"(\n{indent(repr(self.tx), '    ')}", 1)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("tx", "_whole", "_routes", "_step_supports_amp_scaling", "_trained", "_evaluates")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _complete(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Fill in the hyperparameters that a new group was not given, and check those that it was."""
        if "lr" in group:
            check_nonnegative(lr=group["lr"])
        found = self._found(group)
        check_keys(group, found, self.tx)
        complete_betas(group, {key: value for key, (_, value) in found.items()})
        numbers, is_changed = {}, False
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
            is_changed = is_changed or numbers[one] is not value
        if is_changed:
            make_members(self.tx, self._routes[group.get("label", "")], numbers)  # which judges them


_MOST = 64
_known: OrderedDict[tuple[Any, Hashable], GradientTransformation] = OrderedDict()


def _made(make: Any, hyperparameters: dict[str, Any]) -> GradientTransformation:
    """What a factory makes, with slow parameters in its state; being a value, made once by those of this package."""
    given = fingerprint(hyperparameters) if isfunction(make) else None
    made = None if given is None else _known.get((make, given))
    if made is None:
        made = keep_slow(_make(make, hyperparameters))
        if given is not None and is_own(made):
            _known[make, given] = made
            if len(_known) > _MOST:
                _known.popitem(last=False)
    return made


def _make(make: Any, hyperparameters: dict[str, Any]) -> GradientTransformation:
    tx = make(**hyperparameters) if callable(make) and type(make) is not RecordedFunction else make
    check_transformation(tx=tx)
    made: GradientTransformation = tx
    if made.recipe is None:
        raise TypeError(f"{make!r} keeps no record of its arguments; decorate it with optimfn.factory")
    return made
