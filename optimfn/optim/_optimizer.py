"""A `torch.optim.Optimizer` around any transformation."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn

from .._base import GradientTransformation, check_transformation
from .._checks import check_nonnegative
from ..fused import overwrite
from ._load import KeepsDtypes
from ._rule import GroupRule, learning_rate


class Optimizer(KeepsDtypes):
    """Run a transformation behind the interface of `torch.optim`.

    Each parameter group is one tree of parameters with its own state, so a transformation that couples
    parameters, such as `clip_by_global_norm`, sees the gradients of one group. The learning rate stands in
    `param_groups` as `lr`: schedulers and assignments change it from one step to the next. If the learning
    rate of the transformation is a schedule, `lr` shows the value of the last step and cannot be set; if the
    transformation has no learning rate, or several, the groups have no `lr`.

    Args:
        params: Parameters, `(name, parameter)` pairs, dicts of either with an `lr` of their own, or a
            module. With names, masks by path see them; else parameters are called `0`, `1`, ...
        tx: The transformation; its learning rate is the default `lr` of the groups.

    Shapes:
        state: per parameter a flat dict of tensors named by their path in the pure state, such as
            `0.mu`; made on the first step. Shared leaves, such as counts, stand under every parameter.

    Raises:
        TypeError: if `tx` is not a `GradientTransformation`, or as torch.optim.Optimizer raises.
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

    def __init__(self, params: Any, tx: GradientTransformation) -> None:
        check_transformation(tx=tx)
        self.tx = tx
        self._rules: list[GroupRule] = []
        defaults: dict[str, Any] = {"differentiable": False}
        rate = learning_rate(tx)
        if rate is not None:
            defaults["lr"] = rate(0).item() if callable(rate) else rate
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
        return {**super().__getstate__(), "tx": self.tx}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rules = []
        super().__setstate__(state)

    def _step_groups(self) -> None:
        """Compute the step of every group, then write them all."""
        for group in self.param_groups[len(self._rules) :]:
            self._rules.append(GroupRule(self.tx, group))
        steps = [rule.compute(group, self.state) for rule, group in zip(self._rules, self.param_groups, strict=True)]
        overwrite([step.old for step in steps], [step.new for step in steps])
        for rule, group, step in zip(self._rules, self.param_groups, steps, strict=True):
            rule.store(group, self.state, step.old[1])
