"""Loading state dicts: what fits, without losing dtypes."""

import functools
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._hints import misused, shown
from .._quantize import fitted
from ._contract import FiresHooksOnce, every
from ._layout import Entries, ParamKey


class LoadReport(NamedTuple):
    """What became of the entries of a state dict, as pairs of the name of a parameter and the key of an entry."""

    matching: list[tuple[str, str]]
    missing: list[tuple[str, str]]
    left_over: list[tuple[str, str]]


def check_form(loaded: Any) -> None:
    """Accept what may be the state dict of an optimizer.

    Raises:
        TypeError: if it is no dict.
        KeyError: naming the part that it lacks, and those that it has.
    """
    if not isinstance(loaded, Mapping):
        raise TypeError(f"a state dict must be a dict, as state_dict() returns it, got {shown(loaded)}")
    for part in ("state", "param_groups"):
        if part not in loaded:
            has = ", ".join(map(repr, list(loaded)[:5])) or "nothing"
            raise KeyError(f"the state dict of an optimizer has {part!r}, this one has {has}")


def by_name(groups: Sequence[Mapping[str, Any]], loaded: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with the parameters of each group in the order of this optimizer, where both have names.

    Raises:
        ValueError: if a parameter of a group has no fellow of its name.
    """
    ordered = []
    for own, theirs in zip(groups, loaded["param_groups"], strict=False):  # of other numbers of groups, torch speaks
        names, saved = own.get("param_names"), theirs.get("param_names")
        if names is not None and saved is not None and len(names) == len(saved) and list(names) != list(saved):
            numbers = dict(zip(saved, theirs["params"], strict=True))
            if set(names) != set(saved):
                raise ValueError(
                    f"the state dict has parameters named {sorted(set(saved) - set(names))} where this optimizer has "
                    f"{sorted(set(names) - set(saved))}; rename param_names in its param_groups, or delete them there "
                    "to load by position"
                )
            theirs = {**theirs, "param_names": list(names), "params": [numbers[name] for name in names]}
        ordered.append(theirs)
    return {**loaded, "param_groups": ordered + loaded["param_groups"][len(ordered) :]}


def without_reprs(loaded: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with today's keys where 0.1.0 had the `repr` of what `inject_hyperparams` made."""
    return {**loaded, "state": {number: _without_reprs(entries) for number, entries in loaded["state"].items()}}


def _without_reprs(entries: Entries) -> Entries:
    renamed: Entries = {}
    seen: dict[str, list[str]] = {}  # under each prefix, in the order of the members
    for key, value in entries.items():
        start = key.find(_OLD)
        if start < 0 or (start > 0 and key[start - 1] != "."):
            renamed[key] = value
            continue
        depths = accumulate((c == "(") - (c == ")") for c in key[start + len(_OLD) :])
        end = start + len(_OLD) + next((i for i, depth in enumerate(depths) if depth < 0), 0) + 1
        own, _, rest = key[end:].partition(".")  # which is `_2` for the second of equal ones
        names = seen.setdefault(key[:start], [])
        if (name := key[start:end] + own) not in names:
            names.append(name)
        number = names.index(name) + 1
        renamed[f"{key[:start]}inject_hyperparams{f'_{number}' if number > 1 else ''}.{rest}"] = value
    return renamed


_OLD = "inject_hyperparams("
_OF_TORCH = {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "prev", "acc_delta", "exp_inf"}


def with_common(
    wanted: Mapping[ParamKey, Entries], common: Collection[str], names: Sequence[ParamKey], loaded: dict[str, Any]
) -> dict[str, Any]:
    """The same state dict with what parameters have in common under the ones that an optimizer wants it under.

    It stands under the first of those that step together, which depends on their order, and on what groups differ in.
    """
    numbers = [number for group in loaded["param_groups"] for number in group["params"]]
    state = {number: dict(entries) for number, entries in loaded["state"].items()}
    for key in common:
        holders = [entries for entries in state.values() if key in entries]
        takers = {n: key in wanted.get(name, {}) for n, name in zip(numbers, names, strict=False) if n in state}
        if not holders or not any(takers.values()):
            continue
        for number, takes in takers.items():
            if takes:
                state[number].setdefault(key, holders[0][key])
            else:
                state[number].pop(key, None)
    return {**loaded, "state": state}


def in_formats(wanted: Mapping[ParamKey, Entries], names: Sequence[ParamKey], loaded: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with what is quantised, or is to be, in the formats that an optimizer wants."""
    numbers = every(loaded["param_groups"])
    own = dict(zip(numbers, names, strict=False))
    state = {n: fitted(x, wanted.get(own[n], {})) if n in own else x for n, x in loaded["state"].items()}
    return {**loaded, "state": state}


def compare(
    wanted: Mapping[ParamKey, Entries], names: Sequence[ParamKey], loaded: Mapping[str, Any], strict: bool
) -> LoadReport:
    """Compare the entries that an optimizer wants with those of a state dict.

    A state dict without any state is that of an optimizer that has not made a step; it always fits.

    Raises:
        KeyError: if `strict` and entries are missing or left over.
        ValueError: if an entry that matches has another shape.
    """
    numbers = every(loaded["param_groups"])
    if not loaded["state"] or len(numbers) != len(names):  # of the latter, torch speaks
        return LoadReport([], [], [])
    report = LoadReport([], [], [])
    for number, name in zip(numbers, names, strict=True):
        mine, theirs = wanted.get(name, {}), loaded["state"].get(number, {})
        for key, value in theirs.items():
            (report.matching if key in mine else report.left_over).append((name, key))
            if key in mine and isinstance(value, Tensor) and value.shape != mine[key].shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(mine[key].shape)}"
                raise ValueError(f"{key} of parameter {name} has shape {shapes}")
        report.missing.extend((name, key) for key in mine if key not in theirs)
    if strict and (report.missing or report.left_over):
        said: tuple[str, ...] = (f"missing: {_list(report.missing)}", f"left over: {_list(report.left_over)}")
        if any(key in _OF_TORCH for _, key in report.left_over):
            said = (*said, "it looks like one of torch.optim, which optim.convert(state_dict, optimizer) makes fit")
        raise KeyError(f"the state dict does not fit; {'; '.join(said)}; matching: {_list(report.matching)}")
    return report


def fill_in(
    state: MutableMapping[Tensor, Entries],
    kept: Mapping[Tensor, Entries],
    params: Mapping[ParamKey, Tensor],
    wanted: Mapping[ParamKey, Entries],
    loaded: Mapping[str, Any],
) -> None:
    """Put what was loaded into the tensors that were there, and those into the state.

    Tensors stay where they are, so that a CUDA graph sees what was loaded; only one of another dtype gives way.
    """
    state.clear()
    numbers = every(loaded["param_groups"])
    written: set[int] = set()
    for number, (name, p) in zip(numbers, params.items(), strict=True):
        theirs, old = loaded["state"].get(number, {}), kept.get(p, {})
        entries = {}
        for key, made in wanted.get(name, {}).items():
            mine = old.get(key, None if made.is_meta else made)
            value = torch.as_tensor(theirs.get(key, mine))
            shared = id(mine) in written  # another parameter, which may have a past of its own, has it too
            if mine is None or value.dtype != mine.dtype or (shared and not torch.equal(mine, value.to(mine.device))):
                mine = value.detach().to(p.device if mine is None else mine.device, copy=True)
            elif value is not mine:
                mine.copy_(value.detach())
            written.add(id(mine))
            entries[key] = mine
        if entries:
            state[p] = entries


def restore_groups(groups: Sequence[dict[str, Any]], old: Sequence[Mapping[str, Any]]) -> None:
    """Give loaded groups back what belongs to the optimizer: names, labels, tensors, and keys that were not saved."""
    for group, before in zip(groups, old, strict=True):
        for key, value in before.items():
            if key in ("param_names", "label"):
                group[key] = value
            elif isinstance(value, Tensor) and isinstance(group.get(key), Tensor | int | float):
                value.detach().copy_(torch.as_tensor(group[key]))
                group[key] = value
            else:
                group.setdefault(key, value)
        if "betas" in group:
            group["betas"] = tuple(group["betas"])  # some checkpoints make lists of tuples


def copy_state(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with copies of its tensors."""

    def copy(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, Tensor) else value

    state = {name: {key: copy(x) for key, x in entries.items()} for name, entries in state_dict["state"].items()}
    groups = [{key: copy(value) for key, value in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "state": state, "param_groups": groups}


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    """Each key once, with the parameters if they are few."""
    keys: dict[str, list[str]] = {}
    for name, key in pairs:
        keys.setdefault(key, []).append(name)
    most = 3
    shown = [
        f"{key} of {', '.join(names) if len(names) <= most else f'{len(names)} parameters'}"
        for key, names in keys.items()
    ]
    return ", ".join(shown) or "nothing"


def _speaking(constructor: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(constructor)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        misused(type(self).__name__, args, kwargs)
        constructor(self, *args, **kwargs)

    return init


class KeepsDtypes(FiresHooksOnce):
    """A `load_state_dict` that takes tensors as they were saved.

    torch casts every entry but `step` to the dtype of its parameter, which makes a float32 moment of a
    bfloat16 parameter bfloat16, and a count too.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the constructor, which is torch's, first say what torch's would fail on without a word to the point."""
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if base.__module__.startswith("torch.optim") and base is not torch.optim.Optimizer:
                type.__setattr__(cls, "__init__", _speaking(vars(base)["__init__"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, by this class or by torch's, dtypes included."""
        check_form(state_dict)
        seen: list[dict[str, Any]] = []
        # Registered last, so it sees what the user's own hooks made of the dict.
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        loaded = seen[-1]
        numbers = every(loaded["param_groups"])
        params = every(self.param_groups)
        for number, p in zip(numbers, params, strict=True):
            for key, value in loaded["state"].get(number, {}).items():
                if key in self.state[p]:
                    self.state[p][key] = _as_saved(value, self.state[p][key])


def _as_saved(value: Any, kept: Any) -> Any:
    """What was saved, on the device that torch chose: `step` may belong on the CPU."""
    if isinstance(value, Tensor) and isinstance(kept, Tensor):
        # torch cast it to the dtype of the parameter; what is wider stays, so that nothing is lost either way.
        both_float = value.is_floating_point() and kept.is_floating_point() and value.ndim > 0
        dtype = torch.promote_types(value.dtype, kept.dtype) if both_float else value.dtype
        return value.detach().to(kept.device, dtype, copy=True)
    if isinstance(value, list) and isinstance(kept, list):
        return [_as_saved(one, its) for one, its in zip(value, kept, strict=True)]
    return kept
