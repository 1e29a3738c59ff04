"""The rule of a parameter group of a drop-in class, without the numbers in it that change from step to step."""

import enum
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from .._base import GradientTransformation, chain
from .._recipe import is_own
from .._transforms._rate import scale
from .._wrappers._complex import through_pairs
from ._members import Member
from ._numbers import same_number

_EXECUTIONS = ("foreach", "capturable", "differentiable", "fused")  # options that no rule reads

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
    is_complex: bool

    @staticmethod
    def of(rule: Rule, name: str, number: int, keys: Sequence[str], group: Mapping[str, Any]) -> "TorchRules":
        """Read the options of a group.

        Args:
            rule: Makes the transformation from the options.
            name: The name of the class.
            number: Which group it is.
            keys: What it has for options.
            group: The group.
        """
        options = [(key, _static(key, group[key])) for key in keys if key in group and key not in _EXECUTIONS]
        return TorchRules(rule, name, number, tuple(options), any(p.is_complex() for p in group["params"]))

    def fits(self, group: Mapping[str, Any]) -> bool:
        """Whether these are the rules of the group, whatever its live numbers are."""
        return all(group[key] is value or _fits(_static(key, group[key]), value) for key, value in self.options)

    def values(self, group: Mapping[str, Any]) -> dict[Hashable, Any]:
        """The live numbers of the group."""
        found: dict[Hashable, Any] = {}
        for key, static in self.options:
            if static is _Live.NUMBER:
                found[key, 0] = group[key]
            elif type(static) is tuple:
                found.update({(key, i): group[key][i] for i, x in enumerate(static) if x is _Live.NUMBER})
        return found

    def members(self, numbers: Mapping[Any, Any]) -> list[Member]:
        """The rule, as the only member."""
        options = {}
        for key, static in self.options:
            several = static if type(static) is tuple else (static,)
            made = tuple([numbers[key, i] if x is _Live.NUMBER else x for i, x in enumerate(several)])
            options[key] = made if type(static) is tuple else made[0]
        tx = directed(self.rule, options)
        return [Member((self.number,), (), "", through_pairs(tx) if self.is_complex else tx)]

    def uses(self, members: Sequence[Member], numbers: Mapping[int, int]) -> list[Hashable]:
        """Nothing that another group could have too."""
        return [None for _ in members]

    def is_own(self) -> bool:
        """Whether the class is of this package."""
        return is_own(self.rule)

    def takes_sparse(self) -> bool:
        """Yes: classes whose rules do not, see to it themselves."""
        return True

    def __repr__(self) -> str:
        return f"the rule of {self.name}"


def directed(rule: Rule, options: Mapping[str, Any]) -> GradientTransformation:
    """The rule for these options, uphill if they say so."""
    made = rule(options)
    return chain(scale(-1.0), made) if options.get("maximize") else made


def _static(key: str, value: Any) -> Any:
    """An option without its live numbers; lists, which checkpoints make of tuples and which may change, as tuples."""
    if key == "lr":
        return _Live.NUMBER
    if isinstance(value, list | tuple):
        return tuple([_static(key, x) for x in value])
    # A tensor cannot stand for a momentum of zero, which is a rule without momentum.
    return _Live.NUMBER if key in _DRIVEN and type(value) in (float, int) and value != 0 else value


_DRIVEN = (
    "betas",
    "momentum",
    "weight_decay",
    "eps",
    "alpha",
    "rho",
    "lambd",
    "lr_decay",
    "momentum_decay",
    "dampening",
    "t0",
    "beta2_decay",
    "d",
    "etas",
    "step_sizes",
)


def _fits(now: Any, then: Any) -> bool:
    if isinstance(now, tuple) and isinstance(then, tuple):
        return len(now) == len(then) and all(map(_fits, now, then))
    return now is then or (now is not _Live.NUMBER and then is not _Live.NUMBER and same_number(now, then))
