"""What an `Optimizer` and its groups may be given, and what to do instead."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .._base import GradientTransformation
from .._hints import for_transformation, near, shown
from .._in_place._spans import share_elements, span
from .._recipe import Recorded

# What the classes of torch, and the factories here, have for hyperparameters: a group that sets one means something.
_WORDS = {
    *("learning_rate", "lr", "betas", "b1", "b2", "eps", "weight_decay", "momentum", "dampening", "nesterov", "mask"),
    *("amsgrad", "alpha", "rho", "lambd", "t0", "lr_decay", "momentum_decay", "etas", "step_sizes", "centered"),
}
_ALWAYS = {"params", "param_names", "label", "lr", "maximize", "foreach", "capturable", "differentiable", "fused"}


def check_arguments(params: Any, tx: Any) -> None:
    """Say what is wrong with the two arguments of `Optimizer` that are most easily mistaken.

    Raises:
        TypeError: if they are swapped, if there is no transformation, or a class of torch in its place.
    """
    if isinstance(params, GradientTransformation) or (inspect.isfunction(params) and hasattr(params, "__wrapped__")):
        raise TypeError(f"params and tx are swapped: Optimizer(params, tx), got {params!r} first")
    if isinstance(params, str | bytes):
        raise TypeError(f"params must be parameters, pairs of names and parameters, or a module, got {shown(params)}")
    if isinstance(params, Mapping):
        raise TypeError(
            f"params is a dict, of {shown(list(params))}: give the module, module.named_parameters(), or its items()"
        )
    groups = [one for one in params if isinstance(one, Mapping)] if isinstance(params, list | tuple) else []
    if any("params" not in group for group in groups):
        raise ValueError(f"a group is a dict with 'params', got one with {shown([*map(list, groups)])}")
    if isinstance(params, list | tuple) and any(isinstance(one, torch.nn.Module) for one in params):
        raise TypeError("params holds modules: give torch.nn.ModuleList(modules), or the parameters of all")
    if isinstance(tx, Recorded) and not hasattr(tx, "init"):  # a schedule, or a mask
        raise TypeError(f"tx must be a GradientTransformation, got {shown(tx)}{for_transformation(tx)}")
    if tx is None:
        raise TypeError(
            "Optimizer needs tx, the transformation or its factory: Optimizer(params, of.adamw, learning_rate=1e-3). "
            "One that is made again from `defaults` alone, which hold only numbers, has lost it; use functools.partial"
        )
    if inspect.isclass(tx) and issubclass(tx, torch.optim.Optimizer):
        own = f"of.optim.{tx.__name__}.transform(...)"
        raise TypeError(f"tx is {tx.__module__}.{tx.__name__}, an optimizer of torch.optim; give {own} or a factory")


Memory = dict[int, list[tuple[tuple[int, int], str, Tensor]]]  # by storage: where each parameter lies, and its name


def check_memory(groups: Sequence[Mapping[str, Any]], known: Memory) -> None:
    """Refuse parameters that share elements, of which a step could keep one value only.

    Args:
        groups: The groups, of which the last is new.
        known: What the groups before it held when they were new; its parameters are added.

    Raises:
        ValueError: naming both.
    """
    number, group = len(groups) - 1, groups[-1]
    for i, (name, p) in enumerate(zip_longest(group.get("param_names", ()), group["params"])):
        if type(p) not in (Tensor, torch.nn.Parameter) or p.layout != torch.strided or p.device.type not in _MACHINES:
            continue
        here, label = span(p), f"{i} of group {number}" if name is None else str(name)
        others = known.setdefault(p.untyped_storage().data_ptr(), [])
        for there, other, q in others:
            near = max(here[0], there[0]) < min(here[1], there[1])
            if near and _holds(groups[:-1], group["params"][:i], q) and share_elements(p, q):
                raise ValueError(
                    f"parameters {other} and {label} share memory, so only one value could be kept; give one of them"
                )
        others.append((here, label, p))


def _holds(groups: Sequence[Mapping[str, Any]], others: Sequence[Tensor], p: Tensor) -> bool:
    """Whether a parameter is still there: groups may have been taken away by hand."""
    return any(p is one for one in others) or any(p is one for group in groups for one in group["params"])


_MACHINES = ("cpu", "cuda")


def common_fused(groups: Sequence[Mapping[str, Any]]) -> bool | None:
    """What `fused` is for the step, which all groups take together; those that say `None` follow the others."""
    return next((group["fused"] for group in groups if group.get("fused") is not None), None)


def check_runs(groups: Sequence[Mapping[str, Any]], differentiable: bool) -> None:
    """Refuse groups that want a step that the others do not take.

    Raises:
        ValueError: naming the group and the key.
    """
    fused = common_fused(groups)
    for number, group in enumerate(groups):
        if group.get("fused") not in (None, fused):
            raise ValueError(
                f"group {number} has fused={group['fused']!r} and another {fused!r}; all take one step, so give all "
                "the same, or None"
            )
        if group.get("differentiable") and not differentiable:
            raise ValueError(
                f"group {number} has differentiable={group['differentiable']!r}; all groups take one step, so give it "
                "to the optimizer: differentiable=True"
            )


def check_keys(group: Mapping[str, Any], found: Mapping[str, Any], tx: GradientTransformation) -> None:
    """Refuse hyperparameters of a group that nothing would read; keys of a user's own are left alone.

    Raises:
        ValueError: naming the key, and what stands in a group.
    """
    known = {*found, *_ALWAYS, *(("betas",) if {"b1", "b2"} <= found.keys() else ())}
    for key in group:
        if key in known:
            continue
        if isinstance(group[key], GradientTransformation):
            raise ValueError(
                f"a group has {key}={shown(group[key])}: all groups have the transformation of the optimizer; other "
                "rules for some parameters are partition(transforms, param_labels)"
            )
        if key == "learning_rate":
            raise ValueError("a group has learning_rate; its key is lr")
        if key in _WORDS or key in _arguments(tx):
            live = ", ".join(found)
            raise ValueError(
                f"a group has {key}={group[key]!r}, which is no hyperparameter of groups here; those are {live}. Give "
                "Optimizer the factory, and its numbers are: Optimizer(params, of.adamw, learning_rate=1e-3)"
            )
        meant = near(key, {*known, "learning_rate"})
        meant = "lr" if meant == "learning_rate" else meant
        if meant is not None:
            warnings.warn(f"a group has {key}={group[key]!r}, which nothing reads; did you mean {meant}?", stacklevel=4)


def _arguments(value: Any) -> Iterator[str]:
    """The names of the arguments of all calls that made a transformation."""
    if isinstance(value, Recorded):
        yield from value.arguments
        value = list(value.arguments.values())
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for member in value:
            yield from _arguments(member)
