"""The rule of a parameter group of a drop-in class, with the numbers in it that change from step to step."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import tree
from .._base import GradientTransformation
from .._wrappers._complex import split_real_and_imaginary
from ._layout import Layout, ParamKey

_DRIVEN = ("lr", "betas", "momentum", "weight_decay")  # what schedules change
_NOT_OPTIONS = ("params", "param_names")


class Rule:
    """A transformation made from the options of a group, and the layouts of its states.

    The learning rate is a tensor that is written anew for every step. So are, from their first change on, the other
    numbers that schedules change: were they constants, each step would be traced again.

    Args:
        make: Makes the transformation from the options.
        group: The group.
        before: The rule that this one replaces.
    """

    def __init__(
        self,
        make: Callable[[Mapping[str, Any]], GradientTransformation],
        group: Mapping[str, Any],
        before: "Rule | None",
    ) -> None:
        self.options = _options(group)
        self.is_complex = any(p.is_complex() for p in group["params"])
        self.layouts: dict[tuple[ParamKey, ...], Layout] = {}
        self._written: dict[str, Any] = {}
        self._live: dict[str, tuple[Tensor, ...]] = {}
        for key, value in self.options.items():
            if _can_be_live(key, value) and (key == "lr" or (before is not None and before.varies(key, value))):
                self._live[key] = tuple(tree.wide(tree.count(group["params"])) for _ in _numbers(value))
        self.write(group)
        own: dict[str, Any] = {key: live if key == "betas" else live[0] for key, live in self._live.items()}
        if isinstance(group["lr"], Tensor):
            own["lr"] = group["lr"].reshape(())
        made = make({**self.options, **own})
        self.tx = split_real_and_imaginary(made) if self.is_complex else made

    def fits(self, group: Mapping[str, Any]) -> bool:
        """Whether it is the rule of the group, once its live numbers are written."""
        options = _options(group)
        return options.keys() == self.options.keys() and all(
            _can_be_live(key, value) if key in self._live else _same(value, self.options[key])
            for key, value in options.items()
        )

    def write(self, group: Mapping[str, Any]) -> None:
        """Put the numbers of the group where the transformation reads them."""
        for key, tensors in self._live.items():
            values = _numbers(group[key])
            if values != self._written.get(key):
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.fill_(value)
                self._written[key] = values

    def varies(self, key: str, value: Any) -> bool:
        """Whether an option is a live number here, or another value of it a change."""
        return key in self._live or not _same(self.options.get(key), value)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group; lists, which checkpoints make of tuples and which may change in place, as tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in group.items()
        if key not in _NOT_OPTIONS
    }


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _can_be_live(key: str, value: Any) -> bool:
    """Whether a tensor can stand for an option; a momentum of zero is a rule without momentum."""
    if key == "lr":
        return not isinstance(value, Tensor)
    return key in _DRIVEN and all(isinstance(x, float | int) and x != 0 for x in _numbers(value))


def _same(a: Any, b: Any) -> bool:
    """Whether two options are equal; tensors are told apart without being read."""
    return a is b or not (_has_tensor(a) or _has_tensor(b) or a != b)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(x, Tensor) for x in value))
