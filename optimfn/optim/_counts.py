"""The numbers that torch shows with each parameter, such as how many steps it has made."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .. import tree
from .._torch import foreach_add_
from .._typing import Updates
from ._bound import Bound, Grads
from ._layout import Entries, ParamKey
from ._pipeline import EngineState, Run


def count_within(updates: Updates, runs: Sequence[Run], state: EngineState) -> dict[ParamKey, Entries]:
    """The numbers after a step, as part of it: one more step, and the scalars of the state."""
    names, counted = list(updates), dict(state.shown)
    for run, own in zip(runs, state.runs, strict=True):
        for position in run.positions:
            name = names[position]
            if updates[name] is not None and name in counted:
                part = own[name] if run.alone else own
                counted[name] = {
                    key: x + 1 if key == "step" else tree.cast_leaf(scalar(part, key), x.dtype)
                    for key, x in counted[name].items()
                }
    return counted


def count_beside(bound: Bound, grads: Grads, extra: Mapping[str, Any], scalars: Sequence[str]) -> None:
    """What `count_within` does, for numbers that lie elsewhere or are Python's."""
    values = bound.entries() if scalars else {}
    steps = []
    for name, own in bound.shown.items():
        if grads[name] is None:
            continue
        for key, x in own.items():
            if key != "step":
                x.copy_(values[name][key])
            elif isinstance(x, Tensor):
                steps.append(x)
            else:
                own[key] = x + 1
    if steps:
        found_inf = extra.get("found_inf")
        foreach_add_(steps, 1 if found_inf is None else (found_inf.reshape(()) == 0).to(steps[0].dtype))


def can_count_within(bound_params: Mapping[ParamKey, Tensor], shown: Mapping[ParamKey, Entries]) -> bool:
    """Whether kernels can write what is shown: tensors beside their parameters, each its own."""
    every = [(x, bound_params[name]) for name, own in shown.items() for x in own.values()]
    near = all(isinstance(x, Tensor) and x.device == p.device for x, p in every)
    return near and 0 < len(every) == len({id(x) for x, _ in every})


def scalar(state: Any, key: str) -> Tensor:
    """The leaf of a state that is called so."""
    found: Tensor = next(x for path, x in tree.leaves_with_path(state) if path[-1] == key)
    return found
