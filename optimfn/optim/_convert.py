"""Checkpoints of torch's classes as those of `Optimizer`, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._hints import shown
from . import _classes
from ._contract import every
from ._dropin import DropIn
from ._layout import Entries
from ._load import check_form
from ._optimizer import Optimizer

_CLASSES = {cls.__name__: cls for cls in vars(_classes).values() if isinstance(cls, type) and issubclass(cls, DropIn)}


def convert(state_dict: Mapping[str, Any], like: torch.optim.Optimizer) -> dict[str, Any]:
    """A checkpoint of torch's optimizer for an `Optimizer` of the same rule, or the other way round.

    What torch calls `exp_avg` is the field `mu` of the transformation here, wherever in a chain it stands, and so on
    for every class of `torch.optim` but LBFGS; `step` becomes every count, since all of them have counted the same
    steps. Parameters are paired by position, and groups must be the same. An `Optimizer` takes over the learning rate
    and the other numbers of torch's groups that it has too; to a class of torch only the state goes, since the `lr`
    here may be a factor, and the options are those of `like`. Where one side does not count, as torch's SGD and Muon
    do not, the counts of the other begin at 0.

    Args:
        state_dict: What `state_dict` returned: of a class of torch, or of the drop-in with its name, where `like` is an
            `Optimizer`; of an `Optimizer` where `like` is one of those. It is not changed.
        like: The optimizer that is to load it; nothing is written to it.

    Returns:
        A state dict for `like.load_state_dict`, with the tensors of the given one.

    Raises:
        TypeError: if `like` is neither.
        ValueError: if the groups differ in number or size; if two transformations of a chain keep what torch has once.
        KeyError: if a parameter lacks an entry that torch keeps, or what is given is no state dict.

    Example:
        >>> import torch, optimfn as of
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> old, p.grad = torch.optim.AdamW([p], lr=0.1), torch.ones(2)
        >>> old.step()
        >>> opt = of.Optimizer([p], of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3)))
        >>> _ = opt.load_state_dict(of.optim.convert(old.state_dict(), opt))
        >>> opt.param_groups[0]["lr"], of.tree.get(opt, "ScaleByAdamState").mu["0"]
        (0.1, tensor([0.1000, 0.1000]))
    """
    check_form(state_dict)
    own = like.state_dict()["param_groups"]
    given, sizes = ([len(group["params"]) for group in groups] for groups in (state_dict["param_groups"], own))
    if given != sizes:
        raise ValueError(f"the state dict has groups of {given} parameters and like of {sizes}")
    if isinstance(like, Optimizer):
        state = _from_torch(state_dict, like)
    elif type(like).__name__ in _CLASSES:
        state = _to_torch(state_dict, _CLASSES[type(like).__name__], like)
    else:
        raise TypeError(f"like must be an Optimizer or one of {', '.join(_CLASSES)}, got {shown(like)}")
    live = [like.numbers_of(group) if isinstance(like, Optimizer) else set() for group in like.param_groups]
    groups = [
        {**mine, **{key: value for key, value in theirs.items() if key in taken or key in ("params", "param_names")}}
        for mine, theirs, taken in zip(own, state_dict["param_groups"], live, strict=True)
    ]
    return {"state": state, "param_groups": groups}


def _from_torch(state_dict: Mapping[str, Any], like: Optimizer) -> dict[Any, Entries]:
    wanted = like.entries_for(state_dict)
    numbers = every(state_dict["param_groups"])
    state: dict[Any, Entries] = {}
    for number, entries in zip(numbers, wanted, strict=True):
        theirs = state_dict["state"].get(number, {})
        found = ((key, _counterpart(key, mine, theirs)) for key, mine in entries.items())
        state[number] = {key: value for key, value in found if value is not None}
    return {number: entries for number, entries in state.items() if entries}


def _counterpart(key: str, mine: Any, theirs: Entries) -> Any:
    """Torch's entry for one of ours; `None` if there is none."""
    field = key.rpartition(".")[2]
    if mine.numel() == 0:
        return torch.zeros(mine.shape, dtype=mine.dtype)  # where torch has no entry
    if field == "count":
        return torch.as_tensor(theirs.get("step", 0)).to(mine.dtype)
    names = (cls.fields.get(field, field) for cls in _CLASSES.values() if field in (*cls.fields, *cls.scalars))
    return next((theirs[name] for name in names if isinstance(theirs.get(name), Tensor)), None)


def _to_torch(state_dict: Mapping[str, Any], cls: type[DropIn], like: torch.optim.Optimizer) -> dict[Any, Entries]:
    needed = {torch_name: field for field, torch_name in cls.fields.items()}
    absent = {name for name, option in _OPTIONAL.items() if not any(group.get(option) for group in like.param_groups)}
    state: dict[Any, Entries] = {}
    for number, entries in state_dict["state"].items():
        found = {name: list(_under(field, entries)) for name, field in needed.items() if name not in absent}
        if cls.counts_steps:
            counts = list(_under("count", entries))
            found["step"] = [torch.as_tensor(counts[0] if counts else 0, dtype=torch.float32)]
        for name, values in found.items():
            if len(values) > 1:
                raise ValueError(f"parameter {number} has {len(values)} entries that could be torch's {name}")
            if not values and name not in cls.optional:
                raise KeyError(f"parameter {number} has no entry for torch's {name}, only {', '.join(entries)}")
        state[number] = {name: values[0] for name, values in found.items() if values}
    return state


# Entries of torch that an option asks for.
_OPTIONAL = {"max_exp_avg_sq": "amsgrad", "momentum_buffer": "momentum", "grad_avg": "centered"}


def _under(field: str, entries: Entries) -> Iterator[Any]:
    return (value for key, value in entries.items() if key.rpartition(".")[2] == field)
