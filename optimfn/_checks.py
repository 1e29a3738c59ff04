"""Argument checks, made once at construction; every message names the argument and its value.

Only numbers are judged, also those of NumPy. A tensor is a live value that may change after construction, so
nothing but its shape is looked at and its contents are never read.
"""

import inspect
import itertools
import math
import numbers
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from . import _hints
from ._typing import Params

_PLAIN = (float, int, bool, str, type(None))


def plain(value: Any) -> Any:
    """A scalar of another library, such as NumPy's or a 0-dim array, as a Python number; all else as it is."""
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if hasattr(value, "__array__") and hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def check_number(**values: object) -> None:
    """Accept any finite-or-not real number except NaN, and 0-dim tensors."""
    _check("a number", -math.inf, math.inf, values)


def check_nonnegative(**values: object) -> None:
    """Accept numbers in [0, inf)."""
    _check("a number >= 0", 0.0, math.inf, values, open_high=True)


def check_nonpositive(**values: object) -> None:
    """Accept numbers in (-inf, 0]."""
    _check("a number <= 0", -math.inf, 0.0, values, open_low=True)


def check_positive(**values: object) -> None:
    """Accept numbers in (0, inf]."""
    _check("a number > 0", 0.0, math.inf, values, open_low=True)


def check_decay(**values: object) -> None:
    """Accept numbers in [0, 1), the decay of an exponential moving average."""
    _check("in [0, 1)", 0.0, 1.0, values, open_high=True)


def check_fraction(**values: object) -> None:
    """Accept numbers in [0, 1]."""
    _check("in [0, 1]", 0.0, 1.0, values)


def check_growth(**values: object) -> None:
    """Accept numbers in [1, inf)."""
    _check("a number >= 1", 1.0, math.inf, values, open_high=True)


def check_at_least(least: int, /, **values: object) -> None:
    """Accept numbers from a bound on, infinity among them."""
    _check(f"a number >= {least}", least, math.inf, values)


def check_rising(**values: object) -> None:
    """Accept numbers none of which is above the next; tensors among them are passed over."""
    given = [(name, plain(value)) for name, value in values.items() if not isinstance(value, Tensor)]
    for (name, low), (next_name, high) in itertools.pairwise(given):
        if low > high:
            raise ValueError(f"{name} must be at most {next_name}, got {low!r} and {high!r}")


def check_rate(**values: object) -> None:
    """Accept what a learning rate or a weight decay may be: a number >= 0 or a schedule."""
    schedules = {name: value for name, value in values.items() if _may_be_schedule(value)}
    check_nonnegative(**{name: value for name, value in values.items() if name not in schedules})
    check_schedule(**schedules)


def check_schedule(**values: Any) -> None:
    """Accept functions that can be called with a count."""
    for name, value in values.items():
        check_callable(**{name: value})
        if _hints.is_factory(value):
            raise TypeError(f"{name} is {_hints.shown(value)}, not called: call {_hints.call_of(value)}")
        if type(value) is FunctionType:
            try:
                inspect.signature(value).bind(0)
            except TypeError as error:
                said = f"{name} must be a function of the count alone, got {_hints.shown(value)}: {error}"
                raise TypeError(said) from error


def check_value(schedule: object, value: Any) -> Any:
    """Accept what a schedule may return, and return it."""
    if value is None or isinstance(value, str):
        said = f"a schedule must return a number or a 0-dim tensor, got {value!r} of {_hints.shown(schedule)}"
        raise TypeError(said + ": has it a return?" * (value is None))
    return value


def check_momentum(momentum: object, nesterov: bool) -> None:
    """Accept `None`, or a number in [0, 1]; Nesterov's form needs one."""
    if momentum is not None:
        check_fraction(momentum=momentum)
    elif nesterov:
        raise ValueError("nesterov needs a momentum, got momentum=None")


def check_steps(*, at_least: int | None = 0, **values: object) -> None:
    """Accept whole numbers of steps, of any sign if `at_least` is `None`."""
    for name, given in values.items():
        value = plain(given)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number of steps, got {value!r}")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} must be >= {at_least}, got {value!r}")


def check_seed(**values: object) -> None:
    """Accept whole numbers of 64 bits, and 0-dim integer tensors."""
    for name, given in values.items():
        value = plain(given)
        if isinstance(value, Tensor) and (value.ndim or value.is_floating_point() or value.is_complex()):
            raise ValueError(f"{name} must be a whole number or a 0-dim integer tensor, got {value!r}")
        if not isinstance(value, Tensor) and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be a whole number or a 0-dim integer tensor, got {value!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} must fit into 64 bits, got {value!r}")


def check_flag(**values: Any) -> None:
    """Accept `True` and `False`."""
    for name, value in values.items():
        if isinstance(value, str):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Accept one of a few values."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_dtype(**values: object) -> None:
    """Accept `None` or a floating or complex dtype."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, torch.dtype):
            raise TypeError(f"{name} must be a torch.dtype or None, got {value!r}")
        if not (value.is_floating_point or value.is_complex):
            raise ValueError(f"{name} must be a floating or complex dtype, got {value!r}")


def check_device(**values: object) -> None:
    """Accept a device or its name."""
    for name, value in values.items():
        if not isinstance(value, str | torch.device):
            raise TypeError(f"{name} must be a torch.device or the name of one, got {value!r}")
        try:
            torch.device(value)
        except RuntimeError as error:
            raise ValueError(f"{name} must be a device such as 'cpu' or 'cuda:0', got {value!r}") from error


def check_callable(**values: object) -> None:
    """Accept functions."""
    for name, value in values.items():
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {_hints.shown(value)}")


def need_params(rule: str, params: Params | None) -> None:
    """Say which rule missed the parameters and how to hand them over."""
    if params is None:
        raise ValueError(f"{rule} needs the parameters: call tx.update(updates, state, params)")


def _check(
    wanted: str, low: float, high: float, values: dict[str, object], *, open_low: bool = False, open_high: bool = False
) -> None:
    for name, given in values.items():
        value = plain(given)
        if isinstance(value, Tensor):
            if value.ndim:
                raise ValueError(_no_number(name, value))
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(_no_number(name, value))
        inside = low <= value <= high and not (open_low and value == low) and not (open_high and value == high)
        if not inside:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _no_number(name: str, value: object) -> str:
    return f"{name} must be a number or a 0-dim tensor, got {_hints.shown(value)}{_hints.for_number(name, value)}"


def _may_be_schedule(value: object) -> bool:
    """Whether it is a function of the count, and not a model or a factory that was not called."""
    return callable(value) and not isinstance(value, torch.nn.Module | type) and not _hints.is_factory(value)
