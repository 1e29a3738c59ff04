"""A `torch.optim.Optimizer` around any transformation."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn

from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative
from ..fused import overwrite
from ._load import KeepsDtypes
from ._rule import GroupRule, one_learning_rate, own_hyperparameters


class Optimizer(KeepsDtypes):
    """Run a transformation behind the interface of `torch.optim`.

    Each parameter group is one tree of parameters with its own state, so a transformation that couples
    parameters, such as `clip_by_global_norm`, sees the gradients of one group.

    Hyperparameters stand in `param_groups`, where schedulers and assignments change them from one step to the
    next. Of a ready-made transformation it is the learning rate, as `lr`. Of a factory, given as
    `Optimizer(params, of.adamw, learning_rate=1e-3, weight_decay=0.1)`, it is every argument that is a number, by
    its own name, and each group may have its own. If the learning rate is a schedule, `lr` shows the value of
    the last step and cannot be set; if a ready-made transformation has none, or several, there is no `lr`.

    Args:
        params: Parameters, `(name, parameter)` pairs, dicts of either with hyperparameters of their own, or a
            module. With names, masks by path see them; else parameters are called `0`, `1`, ...
        tx: The transformation, or a factory that makes one.
        **hyperparameters: Arguments of the factory.

    Shapes:
        state: per parameter a flat dict of tensors named by their path in the pure state, such as
            `0.mu`; made on the first step. Shared leaves, such as counts, stand under every parameter.

    Raises:
        TypeError: if `tx` is neither a `GradientTransformation` nor a recorded factory of one, or as
            torch.optim.Optimizer raises.
        ValueError: in `step`, if an `lr` that a schedule drives was set. A step that raises has changed
            nothing.

    Example:
        >>> import torch, optimfn as of
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = of.Optimizer(model.parameters(), of.adamw(1e-3, weight_decay=0.1))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> opt.step()
        >>> opt.param_groups[0]["lr"]
        0.001
    """

    def __init__(
        self, params: Any, tx: GradientTransformation | Callable[..., GradientTransformation], **hyperparameters: Any
    ) -> None:
        if isinstance(tx, GradientTransformation):
            if hyperparameters:
                raise TypeError(f"{', '.join(hyperparameters)}: hyperparameters go with a factory, not with {tx!r}")
            live = one_learning_rate(tx)
        else:
            tx = _make(tx, hyperparameters)
            live = own_hyperparameters(tx)
        self.tx = tx
        self._names = {"lr" if name == "learning_rate" else name: name for name in live}
        self._rules: list[GroupRule] = []
        defaults: dict[str, Any] = {"differentiable": False}
        for key, name in self._names.items():
            defaults[key] = live[name](0).item() if callable(live[name]) else live[name]
        super().__init__(params.named_parameters() if isinstance(params, nn.Module) else params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients in `.grad`.

        Args:
            closure: Evaluated first, with gradients enabled; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step_groups()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, a dict with `params` and, if it is to have its own, `lr`."""
        if isinstance(param_group, dict) and "lr" in param_group:
            check_nonnegative(lr=param_group["lr"])
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "tx": self.tx, "_names": self._names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rules = []
        super().__setstate__(state)

    def _step_groups(self) -> None:
        """Compute the step of every group, then write them all."""
        for group in self.param_groups[len(self._rules) :]:
            self._rules.append(GroupRule(self.tx, group, self._names))
        steps = [rule.compute(group, self.state) for rule, group in zip(self._rules, self.param_groups, strict=True)]
        overwrite([step.old for step in steps], [step.new for step in steps])
        for rule, group, step in zip(self._rules, self.param_groups, steps, strict=True):
            rule.store(group, self.state, step.old[1])


def _make(make: Any, hyperparameters: dict[str, Any]) -> GradientTransformation:
    tx = make(**hyperparameters) if callable(make) else make
    check_transformation(tx=tx)
    made: GradientTransformation = tx
    if made.recipe is None:
        raise TypeError(f"{make!r} keeps no record of its arguments; decorate it with optimfn.factory")
    return made
