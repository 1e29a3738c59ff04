"""The rule of a parameter group of a drop-in class, without the numbers in it that change from step to step."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from .._base import GradientTransformation, chain
from .._transforms._rate import scale
from .._wrappers._complex import through_pairs
from ._members import Member
from ._numbers import same_number

_EXECUTIONS = ("foreach", "capturable", "differentiable", "fused")  # options that no rule reads

Rule = Callable[[Mapping[str, Any]], GradientTransformation]


class TorchRules(NamedTuple):
    """What makes the rule of a group from the numbers in it.

    The learning rate is a number that may change in every step. So are, from their first change on, all others: were
    they constants, each step would be traced again.
    """

    rule: Rule
    name: str
    number: int  # of the group
    options: tuple[tuple[str, Any], ...]  # those that are live are `None`
    live: tuple[str, ...]
    is_complex: bool

    @staticmethod
    def of(
        rule: Rule, name: str, number: int, keys: Sequence[str], group: Mapping[str, Any], before: "TorchRules | None"
    ) -> "TorchRules":
        """Read the options of a group.

        Args:
            rule: Makes the transformation from the options.
            name: The name of the class.
            number: Which group it is.
            keys: What it has for options.
            group: The group.
            before: What it was, whose live numbers stay so.
        """
        options = {key: _as_tuple(group[key]) for key in keys if key in group and key not in _EXECUTIONS}
        was = {} if before is None else dict(before.options)
        live = [
            key
            for key, value in options.items()
            if _can_be_live(key, value)
            and (key == "lr" or (before is not None and (key in before.live or not _same(was.get(key), value))))
        ]
        static = tuple((key, None if key in live else value) for key, value in options.items())
        is_complex = any(p.is_complex() for p in group["params"])
        return TorchRules(rule, name, number, static, tuple(live), is_complex)

    def fits(self, group: Mapping[str, Any]) -> bool:
        """Whether these are the rules of the group, whatever its live numbers are."""
        for key, value in self.options:
            now = group[key]
            if not (_can_be_live(key, now) if key in self.live else now is value or _same(_as_tuple(now), value)):
                return False
        return True

    def values(self, group: Mapping[str, Any]) -> dict[Hashable, Any]:
        """The live numbers of the group."""
        found: dict[Hashable, Any] = {}
        for key in self.live:
            value = group[key]
            if isinstance(value, list | tuple):
                found.update({(key, i): x for i, x in enumerate(value)})
            else:
                found[key, 0] = value
        return found

    def members(self, numbers: Mapping[Any, Any]) -> list[Member]:
        """The rule, as the only member."""
        options = dict(self.options)
        for key in self.live:
            own = [numbers[each] for each in sorted(each for each in numbers if each[0] == key)]
            options[key] = tuple(own) if (key, 1) in numbers else own[0]
        made = directed(self.rule, options)
        return [Member((self.number,), (), "", through_pairs(made) if self.is_complex else made)]

    def uses(self, members: Sequence[Member], numbers: Mapping[int, int]) -> list[Hashable]:
        """Nothing that another group could have too."""
        return [None for _ in members]

    def __repr__(self) -> str:
        return f"the rule of {self.name}"


def directed(rule: Rule, options: Mapping[str, Any]) -> GradientTransformation:
    """The rule for these options, uphill if they say so."""
    made = rule(options)
    return chain(scale(-1.0), made) if options.get("maximize") else made


def _as_tuple(value: Any) -> Any:
    """Lists, which checkpoints make of tuples and which may change in place, as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _can_be_live(key: str, value: Any) -> bool:
    """Whether a tensor can stand for an option; a momentum of zero is a rule without momentum."""
    if key == "lr":
        return True
    several = value if isinstance(value, list | tuple) else (value,)
    return key in _DRIVEN and all(type(x) in (float, int) and x != 0 for x in several)


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
)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_number, a, b))
    return same_number(a, b)
