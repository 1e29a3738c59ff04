"""What a message says of a value that stands in the wrong place, and what to do about it.

Nothing here is on the way of a step: it is asked when something has gone wrong already.
"""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

_WIDTH = 100

# What other libraries call our arguments, those of torch.optim first.
_ARGUMENTS = {
    "lr": ("learning_rate",),
    "rate": ("learning_rate",),
    "step_size": ("learning_rate",),
    "betas": ("b1", "b2"),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "beta": ("b1", "decay"),
    "momentum": ("b1",),
    "epsilon": ("eps",),
    "wd": ("weight_decay",),
    "decay_rate": ("decay",),
    "gamma": ("decay_rate",),
    "max_grad_norm": ("max_norm",),
    "clip_norm": ("max_norm",),
    "clip_value": ("max_delta",),
    "total_steps": ("decay_steps", "transition_steps"),
    "T_max": ("decay_steps",),
    "num_warmup_steps": ("warmup_steps",),
}


def shown(value: object) -> str:
    """A value in one short line; functions and classes by their names."""
    if inspect.isfunction(value):
        return f"the function {value.__name__}"
    if inspect.isclass(value):
        return f"the class {value.__module__}.{value.__qualname__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.optim.Optimizer | torch.nn.Module) or inspect.isgenerator(value):
        return f"a {type(value).__name__}"
    line = " ".join(repr(value).split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def is_factory(value: object) -> bool:
    """Whether a value is a recorded factory, not called."""
    return inspect.isfunction(value) and hasattr(value, "__wrapped__") and hasattr(value, "init")


def call_of(make: Callable[..., Any]) -> str:
    """How to call a factory: its name with the arguments that it needs."""
    parameters = inspect.signature(make).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return f"{make.__name__}({', '.join(needed)})"


def for_transformation(value: Any) -> str:
    """What to give where a transformation belongs, in the place of a value; begins with a colon, or is empty."""
    if is_factory(value):
        return f": it was not called, call {call_of(value)}"
    if isinstance(value, list | tuple):
        return ": give the members one by one, chain(*members)"
    if isinstance(value, torch.optim.Optimizer) or _is_optimizer_class(value):
        if hasattr(value, "tx"):
            return ": it steps by itself; its transformation is its attribute tx"
        kind = value if isinstance(value, type) else type(value)
        return f": it steps by itself; the rule of it is optimfn.optim.{kind.__name__}.transform(...)"
    if isinstance(value, torch.nn.Module):
        return ": parameters go to tx.init(params), or to Optimizer(module, tx)"
    if isinstance(value, int | float):
        return f": a factor of the updates is scale({value!r})"
    if value is None:
        return ": leave it out, or give identity()"
    if callable(value) and hasattr(value, "recipe"):
        return ": a schedule goes into scale_by_learning_rate(schedule), or scale_by_schedule(schedule)"
    return ""


def for_number(name: str, value: Any) -> str:
    """What to give where a number belongs, in the place of a value; begins with a colon, or is empty."""
    if isinstance(value, str):
        try:
            return f": give the number itself, {float(value)!r}"
        except ValueError:
            return ""
    if isinstance(value, torch.nn.Module) or inspect.isgenerator(value):
        return ": parameters go to tx.init(params), or to Optimizer(params, tx)"
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return (
            ": it drives the groups of an Optimizer; in its place give a schedule, such as cosine_decay_schedule(...)"
        )
    if is_factory(value):
        return f": it was not called, call {call_of(value)}"
    if callable(value):
        return f": to have it follow a schedule, call inject_hyperparams(factory)({name}=schedule)"
    if isinstance(value, list | tuple | Tensor):
        return ": groups have numbers of their own with partition or in an Optimizer, stacked models with stacked"
    return ""


def misused(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a module in the place of parameters a schedule in that of a number: torch's constructors fail on them.

    Args:
        name: The class.
        args, kwargs: What its constructor is called with.
    """
    given: dict[str, Any] = dict(zip(["params", "lr"], args, strict=False)) | dict(kwargs)
    params = given.pop("params", None)
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a {type(params).__name__}, no tensors: call {name}(model.parameters(), ...)")
    for option, value in given.items():
        if callable(value) and not isinstance(value, Tensor | type):
            raise TypeError(
                f"{option} must be a number, got {shown(value)}: {name} takes the schedulers of "
                f"torch.optim.lr_scheduler; a schedule goes into a factory, Optimizer(params, adamw(schedule))"
            )


def misfit(make: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments of a call; `None` if they fit."""
    signature = inspect.signature(make)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        own = list(signature.parameters)
        unknown = [name for name in kwargs if name not in own]
        if unknown:
            said = "; ".join(f"no argument {name!r}{_renamed(name, own)}" for name in unknown)
            return f"{make.__name__} has {said}. It has {', '.join(own)}"
        return f"{make.__name__}: {error}. Call {call_of(make)}"
    return None


def absent(name: str, names: Iterable[str]) -> str:
    """What to say of a name that a module does not have."""
    if name in ELSEWHERE:
        advice = ELSEWHERE[name]
    elif name.endswith(_LOSSES) or "softmax" in name:
        advice = _LOSS
    elif name.startswith("tree_"):
        advice = f"verbs of trees have no prefix, optimfn.tree.{name[5:]}"
    else:
        close = difflib.get_close_matches(name, list(names), n=3)
        advice = f"did you mean {', '.join(close)}?" if close else ""
    return f"module 'optimfn' has no attribute {name!r}" + (f": {advice}" if advice else "")


def near(name: str, names: Iterable[str]) -> str | None:
    """The name that a name with a slip in it stands for, if there is one."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.85)
    return found[0] if found else None


def _renamed(name: str, own: list[str]) -> str:
    """What another name for an argument is here."""
    here = [new for new in _ARGUMENTS.get(name, ()) if new in own]
    if here:
        return f" (here {' and '.join(here)})"
    if name in ("weight_decay", "wd"):
        return " (decay is a transformation: chain(add_decayed_weights(...), ...), or adamw)"
    if name in ("maximize", "minimize"):
        return " (to go uphill, put scale(-1.0) first)"
    if name in ("foreach", "fused", "capturable", "differentiable"):
        return " (how a rule runs is said to make_step or Optimizer)"
    close = near(name, own)
    return f" (did you mean {close}?)" if close else ""


def _is_optimizer_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


_EXTRA = "not needed: every update accepts extra arguments"
_LOSS = "losses are in torch.nn.functional"
_LOSSES = ("_loss", "_entropy", "_divergence", "_error", "_similarity", "_distance", "_labels", "_focal_loss")
_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD", "SparseAdam"),
)
_RULES = {"LBFGS": "lbfgs", "Muon": "torch_muon"}

# Names of optax and torch that are something else here.
ELSEWHERE = {
    **dict.fromkeys(("multi_transform", "multitransform"), "it is called partition"),
    "MultiTransformState": "it is called PartitionState",
    "MultiSteps": "it is called multi_steps, and has_updated(state)",
    "inject_stateful_hyperparams": "it is called inject_hyperparams",
    "InjectStatefulHyperparamsState": "it is called InjectHyperparamsState",
    **dict.fromkeys(("GradientTransformationExtraArgs", "with_extra_args_support"), _EXTRA),
    "reduce_on_plateau": "it is called plateau",
    "ReduceLROnPlateauState": "it is called PlateauState",
    "OptState": "it is called State",
    "ArrayTree": "it is called Tree",
    "MaskOrFn": "it is called Mask",
    "TransformInitFn": "it is called InitFn",
    "TransformUpdateFn": "it is called UpdateFn",
    "contrib": "what optax has in contrib stands at the top level, optimfn.prodigy",
    "transforms": "what optax has in transforms stands at the top level, optimfn.masked",
    "schedules": "schedules stand at the top level, optimfn.cosine_decay_schedule",
    "projections": "projections stand at the top level, optimfn.projection_simplex",
    "second_order": "second-order products stand at the top level, optimfn.hvp",
    "losses": _LOSS,
    "tree_utils": "it is called tree, and its verbs have no prefix: optimfn.tree.add",
    "assignment": "it is no part of an optimizer; scipy.optimize.linear_sum_assignment",
    "perturbations": "it is no part of an optimizer",
    "nn": "models and layers are torch's",
    "lr_scheduler": "it is optimfn.optim.lr_scheduler, and schedules stand at the top level",
    "apply_update": "it is called apply_updates",
    "clip_grad_norm": "it is a transformation: clip_by_global_norm",
    "clip_grad_norm_": "it is a transformation: clip_by_global_norm",
    "clip_grad_value_": "it is a transformation: clip",
    "jit": "make_step runs a rule as one kernel; torch.compile takes the rest",
    **{
        name: f"torch's class is optimfn.optim.{name}, and its rule optimfn.{_RULES.get(name, name.lower())}"
        for name in _OPTIMIZERS
    },
}


def _say_what_is_missing(name: str) -> NoReturn:
    raise AttributeError(absent(name, vars(_PACKAGE)))


# Set from here, since type checkers take a `__getattr__` that they see for a promise that every name exists.
_PACKAGE = sys.modules[__name__.rpartition(".")[0]]
vars(_PACKAGE)["__getattr__"] = _say_what_is_missing
