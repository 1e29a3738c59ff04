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
    if isinstance(value, str):
        return f": give the factory, optimfn.{value}" if is_factory(vars(_PACKAGE).get(value)) else ""
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
    other = next((option for option in given if option in _OF_TORCH), None)
    if other is not None:
        raise TypeError(f"{name} has no argument {other!r}: here it is torch's, {_OF_TORCH[other]}")
    if isinstance(given.get("betas"), int | float):
        raise TypeError(f"betas must be a pair of numbers, got {given['betas']!r}: give betas=(0.9, 0.999)")
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a {type(params).__name__}, no tensors: call {name}(model.parameters(), ...)")
    for option, value in given.items():
        if callable(value) and not isinstance(value, Tensor | type):
            raise TypeError(
                f"{option} must be a number, got {shown(value)}: {name} takes the schedulers of "
                f"torch.optim.lr_scheduler; a schedule goes into a factory, Optimizer(params, adamw(schedule))"
            )


_OF_TORCH = {"learning_rate": "lr", "b1": "betas=(b1, b2)", "b2": "betas=(b1, b2)", "mask": "groups of parameters"}


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


def absent(name: str, names: Iterable[str], module: str = "optimfn") -> str:
    """What to say of a name that a module does not have."""
    here = list(names)
    renamed = _VERBS.get(name.removeprefix("tree_"), name.removeprefix("tree_"))
    if module.endswith(".tree") and renamed in here:
        advice = f"it is called tree.{renamed}"
    elif module.endswith(".optim") and name in vars(_PACKAGE) and not name.startswith("_"):
        advice = f"rules and transformations stand at the top level, optimfn.{name}; here are classes, such as AdamW"
    elif name in ELSEWHERE and module == "optimfn":
        advice = ELSEWHERE[name]
    elif name.endswith(_LOSSES) or "softmax" in name:
        advice = _LOSS
    elif name.startswith("tree_") and module == "optimfn":
        advice = f"verbs of trees have no prefix, optimfn.tree.{name[5:]}"
    else:
        close = difflib.get_close_matches(name, here, n=3)
        advice = f"did you mean {', '.join(close)}?" if close else ""
    return f"module {module!r} has no attribute {name!r}" + (f": {advice}" if advice else "")


def not_here(value: Any, name: str) -> str:
    """What to say of an attribute that a transformation or a schedule does not have."""
    said = f"{type(value).__name__!r} object has no attribute {name!r}"
    if name.startswith("__"):
        return said
    recipe = vars(value).get("recipe")
    own = () if recipe is None else recipe.arguments
    found = name if name in own else next((new for new in _ARGUMENTS.get(name, ()) if new in own), None)
    if found is not None:
        return f"{said}: read arguments[{found!r}], change it with replace({found}=...)"
    if name in _STATEFUL and hasattr(value, "init"):
        return f"{said}: it is a pair of pure functions, init and update; Optimizer(params, tx) has {name}"
    if name == "step":
        return f"{said}: it is a function of the number of steps, schedule(count)"
    return f"{said}: apply_updates(params, updates) is a function" if name in ("apply", "apply_updates") else said


_STATEFUL = (
    "step",
    "zero_grad",
    "state_dict",
    "load_state_dict",
    "param_groups",
    "add_param_group",
    "state",
    "defaults",
)


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


# Verbs of optax.tree, jax.tree and others.
_VERBS = {
    "tree_map": "map",
    "multimap": "map",
    "multiply": "mul",
    "divide": "div",
    "subtract": "sub",
    "l2_norm": "norm",
    "global_norm": "norm",
    "add_scalar_mul": "add_scale",
    "add_scaled": "add_scale",
    "scalar_mul": "scale",
    "flatten_with_path": "leaves_with_path",
    "map_with_path": "map",
    "treedef": "structure",
    "zeros": "zeros_like",
    "ones": "ones_like",
    "dot": "vdot",
    "get_all": "get_all_with_path",
    "inner": "vdot",
    "real_part": "real",
    "map_params": "map_params",
    "random": "random_like",
    "stack": "batched",
    "astype": "cast",
    "select": "where",
}


def say_what_is_missing(module: Any) -> None:
    """Let a module say what a name that it does not have is called.

    Set from here, since type checkers take a `__getattr__` that they see for a promise that every name exists.
    """

    def missing(name: str) -> NoReturn:
        raise AttributeError(absent(name, vars(module), module.__name__))

    vars(module)["__getattr__"] = missing


_PACKAGE = sys.modules[__name__.rpartition(".")[0]]
say_what_is_missing(_PACKAGE)
