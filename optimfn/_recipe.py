"""Values that remember how they were made.

Rules are written as closures, which are a pleasure to read and opaque to everyone else. The
`factory` decorator keeps the call that made a closure beside it; from that one fact follow a telling
`repr`, equality by value, pickling, deep copies and `replace`.
"""

import enum
import functools
import inspect
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor

from ._checks import check_flag, plain
from ._hints import call_of, misfit, not_here
from ._torch import brief, is_batched
from ._typing import Schedule, ScheduleFn

P = ParamSpec("P")
R = TypeVar("R")

_APART = ("outer",)  # arguments with numbers of their own: the rule of meetings has another rate than that of steps
_NUMBERS = 8  # of a tensor that is longer, a repr has dtype and shape
_LINE = 88  # a repr that holds other recorded values is broken over lines beyond this width


@dataclass(frozen=True)
class Recipe:
    """The call that made a value: the public factory, and the arguments as they were given."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @functools.cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments sorted to the factory's parameters, defaults filled in."""
        bound = signature_of(self.factory).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def bind(self) -> inspect.BoundArguments:
        """The same, for changes."""
        return inspect.BoundArguments(signature_of(self.factory), OrderedDict(self.arguments))

    def remake(self, bound: inspect.BoundArguments) -> Any:
        """Call the factory again."""
        return self.factory(*bound.args, **bound.kwargs)


@dataclass(frozen=True, eq=False, repr=False)
class Recorded:
    """An immutable value that remembers its `recipe`, when a `factory` made it."""

    recipe: Recipe | None = field(default=None, kw_only=True)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments this value was made with, defaults included; empty if no factory made it."""
        return {} if self.recipe is None else dict(self.recipe.arguments)

    def replace(self, **changes: Any) -> Self:
        """Make this value again with some arguments changed.

        Args:
            **changes: New values for arguments of the factory, by name.

        Raises:
            TypeError: if no factory made this value, or the factory has no argument of that name.

        Example:
            >>> import optimfn as of
            >>> of.adam(1e-3).replace(b1=0.95).arguments["b1"]
            0.95
        """
        if self.recipe is None:
            raise TypeError(f"{type(self).__name__} was not made by a factory, so it has no arguments to replace")
        bound = self.recipe.bind()
        for name in changes:
            if name not in bound.signature.parameters:
                known = ", ".join(bound.signature.parameters)
                raise TypeError(f"{self.recipe.factory.__name__} has no argument {name!r}; it has {known}")
        bound.arguments.update(changes)
        made: Self = self.recipe.remake(bound)
        return made

    if not TYPE_CHECKING:  # type checkers would take it for a promise that every attribute exists

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(not_here(self, name))

    def __add__(self, other: object) -> Any:
        raise TypeError(f"chain(first, second) puts transformations one after the other, got {self!r} + {other!r}")

    def __repr__(self) -> str:
        if self.recipe is None:
            return f"<{type(self).__name__} at {id(self):#x}>"
        return _call(self.recipe)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Recorded) or self.recipe is None or other.recipe is None:
            return NotImplemented
        same = self.recipe.factory == other.recipe.factory
        return same and _equal(dict(self.arguments), dict(other.arguments))

    def __hash__(self) -> int:
        return id(self) if self.recipe is None else hash(self.recipe.factory)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.recipe is None:
            return super().__reduce_ex__(protocol)
        return _remake, (self.recipe.factory, self.recipe.args, self.recipe.kwargs)


@dataclass(frozen=True, eq=False, repr=False)
class RecordedFunction(Recorded):
    """A function, such as a schedule or a mask maker, that remembers its recipe."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], str):  # what takes a path takes a leaf as well
            raise TypeError(f"a count must be a number or a 0-dim tensor, got {args[0]!r}")
        return self.function(*args, **kwargs)


def factory(make: Callable[P, R]) -> Callable[P, R]:
    """Record the arguments of a function that returns a transformation, a schedule or a mask maker.

    What it returns gains a `repr` that names every argument, compares equal by value, pickles (if the
    function can be imported), deep-copies, and is made again by `replace`.

    Args:
        make: A function that returns a `GradientTransformation` or another function.

    Raises:
        TypeError: when called, if `make` returned neither.

    Example:
        >>> import optimfn as of
        >>> @of.factory
        ... def half():
        ...     return of.stateless(lambda updates, params: of.tree.scale(0.5, updates))
        >>> half()
        half()
    """
    flags = frozenset(name for name, kind in make.__annotations__.items() if kind is bool)

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        args = own(args)
        kwargs = own(kwargs)
        for name in kwargs:
            if name in flags:
                check_flag(**{f"{name} of {make.__name__}": kwargs[name]})
        try:
            value: Any = make(*args, **kwargs)
        except TypeError as error:
            wrong = misfit(make, args, kwargs)
            if wrong is None:
                raise
            raise TypeError(wrong) from error
        recipe = Recipe(made, args, kwargs)
        if isinstance(value, Recorded):
            return replace(value, recipe=recipe)  # type: ignore[return-value]  # R is the class of value
        if callable(value):
            return RecordedFunction(value, recipe=recipe)  # type: ignore[return-value]  # R is a function type
        raise TypeError(f"{make.__name__} must return a transformation or a function, got {value!r}")

    vars(made).update(dict.fromkeys(("init", "update"), functools.partial(_uncalled, made)))
    return made


def schedule_factory(make: Callable[P, ScheduleFn]) -> Callable[P, Schedule]:
    """The same for a schedule, of which type checkers then know `arguments` and `replace`."""
    made: Any = factory(make)
    checked: Callable[P, Schedule] = made
    return checked


def _uncalled(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise TypeError(f"{make.__name__} is a factory that was not called: call {call_of(make)} first")


def own(value: Any) -> Any:
    """An argument as a rule and its record keep it.

    Lists and dicts are copied, so that changing one later changes neither; NumPy's scalars become Python numbers.
    """
    if type(value) is dict:
        return {key: own(member) for key, member in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(own, value))
    return plain(value)


def find_arguments(value: Any, name: str) -> Iterator[Any]:
    """Yield every argument called `name` in the recipes that made `value`, outermost first.

    A recipe that has the argument is not searched further: it passes the value on to its members.
    """
    if isinstance(value, Recorded):
        arguments = value.arguments
        inside = [argument for key, argument in arguments.items() if key not in _APART]
        yield from [arguments[name]] if name in arguments else find_arguments(inside, name)
    elif isinstance(value, dict):
        yield from find_arguments(list(value.values()), name)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from find_arguments(member, name)


def uses_factory(value: Any, factory: Callable[..., Any]) -> bool:
    """Whether a call of `factory` is among the recipes that made `value`."""
    if isinstance(value, Recorded):
        made = value.recipe is not None and value.recipe.factory is factory
        return made or uses_factory(list(value.arguments.values()), factory) or _members_use(value, factory)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list | tuple) and any(uses_factory(member, factory) for member in value)


def _members_use(value: Any, factory: Callable[..., Any]) -> bool:
    return uses_factory(dict(getattr(value, "members", {})), factory)


def substitute(value: Any, name: str, new: Any) -> Any:
    """Make `value` again with `new` for every argument that `find_arguments` finds."""
    if isinstance(value, Recorded) and value.recipe is not None:
        if name in value.arguments:
            return value.replace(**{name: new})
        bound = value.recipe.bind()
        for key, argument in bound.arguments.items():
            bound.arguments[key] = argument if key in _APART else substitute(argument, name, new)
        return value.recipe.remake(bound)
    if type(value) is dict:
        return {key: substitute(member, name, new) for key, member in value.items()}
    if type(value) in (list, tuple):
        return type(value)(substitute(member, name, new) for member in value)
    return value


def fingerprint(value: Any) -> Hashable | None:
    """What a value computes, as something to look up: equal for values that were made alike; `None` if unknown.

    Unlike `==` it tells 1 from 1.0 and 0.0 from -0.0, which a rule may. Tensors, whose values change, and functions
    of others, which may read anything, are unknown.
    """
    try:
        return _fingerprint(value)
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """Something that was not made of values alone."""


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, Recorded):
        if value.recipe is None:
            raise _UnknownError
        arguments = value.recipe.arguments
        return value.recipe.factory, tuple([(name, _fingerprint(x)) for name, x in arguments.items()])
    if type(value) is float:
        return float, value.hex()
    if value is None or isinstance(value, bool | int | str | bytes | enum.Enum | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_fingerprint, value))
    if type(value) is dict:
        return dict, tuple([(key, _fingerprint(x)) for key, x in value.items()])
    if inspect.isbuiltin(value) or (inspect.isfunction(value) and _is_own(value)):
        return value
    raise _UnknownError


def is_own(value: Any) -> bool:
    """Whether a value was made by factories of this package alone, and computes nothing with a function of others."""
    if isinstance(value, Recorded):
        rule = getattr(getattr(value, "update", None), "function", None)  # behind its gate
        made = value.recipe is not None and _is_ours(value.recipe.factory) and (rule is None or _is_ours(rule))
        return made and is_own(list(value.arguments.values()))
    if isinstance(value, dict):
        return is_own(list(value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_own, value))
    return not callable(value) or (inspect.isfunction(value) and _is_own(value))


def find_tensors(value: Any) -> list[Tensor]:
    """The tensors among the arguments that made a value."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Recorded):
        value = list(value.arguments.values())
    if isinstance(value, dict):
        value = list(value.values())
    return [x for member in value for x in find_tensors(member)] if isinstance(value, list | tuple) else []


def _is_ours(function: Any) -> bool:
    module = getattr(function, "__module__", None) or ""
    return module.startswith(__name__.partition(".")[0] + ".")


def _is_own(function: Any) -> bool:
    """Whether a function of this package says all that it does by its name."""
    return function.__closure__ is None and _is_ours(function)


signature_of = functools.cache(inspect.signature)


def _remake(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return make(*args, **kwargs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
        return a is b or (tensors and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    if type(a) is not type(b):
        return not isinstance(a, bool | None) and bool(a == b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _call(recipe: Recipe) -> str:
    shown_as = getattr(recipe.factory, "shown_as", None)
    if shown_as is not None:
        return str(shown_as(*recipe.args, **recipe.kwargs))
    bound = recipe.bind()
    parts: list[str] = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            parts += map(show, value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            parts += [f"{key}={show(member)}" for key, member in value.items()]
        else:
            parts.append(f"{name}={show(value)}")
    line = f"{recipe.factory.__name__}({', '.join(parts)})"
    nested = any(isinstance(value, Recorded) for value in (*recipe.args, *recipe.kwargs.values()))
    if not nested or len(line) <= _LINE:
        return line
    body = textwrap.indent(",\n".join(parts), "    ")
    return f"{recipe.factory.__name__}(\n{body},\n)"


def show(value: Any) -> str:
    """An argument as a `repr` has it: functions and classes by their names."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, Tensor) and (value.numel() > _NUMBERS or is_batched(value)):
        return brief(value)
    return repr(value)
