"""The rule of a parameter group of a drop-in class, without the numbers in it that change from step to step."""

import enum
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import repeat
from numbers import Real
from typing import Any, NamedTuple

from .._base import GradientTransformation, chain
from .._transforms._rate import scale
from .._wrappers._by_rows import rows
from .._wrappers._complex import through_pairs
from ._members import Member
from ._numbers import same_number

_EXECUTIONS = ("foreach", "capturable", "differentiable", "fused")  # options that no rule reads
# Numbers that schedules drive.
_DRIVEN = {
    *("betas", "momentum", "weight_decay", "eps", "alpha", "rho", "lambd", "lr_decay", "momentum_decay", "dampening"),
    *("t0", "beta2_decay", "d", "etas", "step_sizes"),
}

Rule = Callable[[Mapping[str, Any]], GradientTransformation]


class _Live(enum.Enum):
    NUMBER = "in the state"


class TorchRules(NamedTuple):
    """What makes the rule of a group from the numbers in it.

    Numbers may change in every step: were they constants, each step would be traced again.
    """

    rule: Rule
    name: str
    number: int  # of the group
    options: tuple[tuple[str, Any], ...]  # with `_Live.NUMBER` for each number
    live: tuple[Hashable, ...]  # the keys of those numbers, in order
    is_complex: bool
    by_rows: bool  # whether it steps the rows of sparse gradients

    @staticmethod
    def of(
        rule: Rule, name: str, number: int, keys: Sequence[str], group: Mapping[str, Any], by_rows: bool = False
    ) -> "TorchRules":
        """Read the options of a group.

        Args:
            rule: Makes the transformation from the options.
            name: The name of the class.
            number: Which group it is.
            keys: What it has for options.
            group: The group.
            by_rows: Whether it steps the rows of sparse gradients.
        """
        options = [(key, _static(key, group[key])) for key in keys if key in group and key not in _EXECUTIONS]
        several = [(key, x if type(x) is tuple else (x,)) for key, x in options]
        live = tuple([(key, i) for key, own in several for i, x in enumerate(own) if x is _Live.NUMBER])
        return TorchRules(
            rule, name, number, tuple(options), live, any(p.is_complex() for p in group["params"]), by_rows
        )

    def values(self, group: Mapping[str, Any]) -> dict[Hashable, Any] | None:
        """The live numbers of the group; `None` if these are not its rules, whatever those numbers are."""
        found: list[Any] = []
        for key, static in self.options:
            value = group[key]
            if value is not static and not _read(key, value, static, found):
                return None
        return dict(zip(self.live, found, strict=True))

    def members(self, numbers: Mapping[Any, Any]) -> list[Member]:
        """The rule, as the only member."""
        options = {}
        for key, static in self.options:
            several = static if type(static) is tuple else (static,)
            made = tuple([numbers[key, i] if x is _Live.NUMBER else x for i, x in enumerate(several)])
            options[key] = made if type(static) is tuple else made[0]
        tx = directed(self.rule, options)
        tx = through_pairs(tx) if self.is_complex else tx
        return [Member((self.number,), (), "", rows(tx) if self.by_rows else tx)]

    def uses(self, members: Sequence[Member], numbers: Mapping[int, int]) -> list[Hashable]:
        """Nothing that another group could have too."""
        return [None for _ in members]

    def __repr__(self) -> str:
        return f"the rule of {self.name}"


def directed(rule: Rule, options: Mapping[str, Any]) -> GradientTransformation:
    """The rule for these options, uphill if they say so."""
    made = rule(options)
    return chain(scale(-1.0), made) if options.get("maximize") else made


def _static(key: str, value: Any) -> Any:
    """An option without its live numbers; lists, which checkpoints make of tuples and which may change, as tuples."""
    if isinstance(value, list | tuple):
        return tuple([_static(key, x) for x in value])
    return _Live.NUMBER if _is_live(key, value) else value


def _is_live(key: str, value: Any) -> bool:
    # A tensor cannot stand for a momentum of zero, which is a rule without momentum.
    if key == "lr" or key not in _DRIVEN:
        return key == "lr"
    # Schedules may be made with NumPy, the scalars of which are real numbers too.
    is_number = type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))
    return is_number and bool(value != 0)


def _read(key: str, value: Any, static: Any, found: list[Any]) -> bool:
    """Whether an option is as it was but for its live numbers, which are found."""
    if type(static) is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(static)
        return fits and all(map(_read, repeat(key), value, static, repeat(found)))
    if static is _Live.NUMBER:
        found.append(value)
        return _is_live(key, value)
    return value is static or (not _is_live(key, value) and same_number(value, static))
