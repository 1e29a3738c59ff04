"""Show a transformation as a table: its parts, their arguments, and what they keep and move."""

import collections
import functools
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, chain, check_transformation, named_chain
from .._gate import unasked
from .._recipe import Recipe, show
from .._torch import is_batched, unwrapped
from .._transforms._rate import scale_by_learning_rate
from .._typing import Params, State
from .._wrappers._hyperparams import InjectedFactory
from .._wrappers._lookahead import LookaheadParams
from .._wrappers._stacked import stacked

_WIDTH = 52  # of the column of arguments
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class DescribedTransform(NamedTuple):
    """One row of a `Description`."""

    depth: int  # how deep it is nested
    name: str  # of its factory, behind the name or label it goes by
    arguments: str  # those that are no transformations; where rows of its own follow, those without their defaults
    state: int | None  # bytes of state that are its own, not those of its parts; None without parameters


@dataclass(frozen=True, repr=False)
class Description:
    """What `describe` returns. It prints as a table.

    Args:
        rows: The transformations, each before what it consists of or wraps.
        params: Bytes of the parameters; `None` if none were given.
        gradients: Bytes of the gradients: of a `LookaheadParams` only the fast parameters have some.
        note: What is likely a mistake, such as a second learning rate.
        dtypes: Bytes of the state by dtype; shown where some are in none of the parameters' own.
        own_dtypes: Those of the parameters.
    """

    rows: tuple[DescribedTransform, ...]
    params: int | None
    gradients: int | None
    note: str = ""  # about what is likely a mistake
    dtypes: Mapping[torch.dtype, int] = field(default_factory=dict)
    own_dtypes: Collection[torch.dtype] = ()

    @property
    def state(self) -> int:
        """Bytes of state."""
        return sum(row.state or 0 for row in self.rows)

    @property
    def read(self) -> int:
        """Bytes that a step reads: gradients, parameters and state, once."""
        return (self.gradients or 0) + (self.params or 0) + self.state

    @property
    def written(self) -> int:
        """Bytes that a step writes: parameters and state, once."""
        return (self.params or 0) + self.state

    def __repr__(self) -> str:
        lines = [line for row in self.rows for line in _lines(row)]
        table = [("transform", "arguments", "state", "read", "written"), *lines]
        if self.params is None:
            return _table([line[:2] for line in table]) + self._remark()
        size, total = _bytes(self.params), (self.state, self.read, self.written)
        table += [("gradients", "", "", _bytes(self.gradients), ""), ("parameters", "", "", size, size)]
        return _table([*table, ("total", "", *(_bytes(size) or "0 B" for size in total))]) + self._remark()

    def _remark(self) -> str:
        said = [f"note: {self.note}"] if self.note else []
        if any(100 * size > self.state for dtype, size in self.dtypes.items() if dtype not in self.own_dtypes):
            sizes = [f"{str(dtype).removeprefix('torch.')} {_bytes(size)}" for dtype, size in self.dtypes.items()]
            said.insert(0, f"state by dtype: {', '.join(sizes)}")
        return "".join(f"\n{line}" for line in said)


def describe(tx: GradientTransformation, params: Params | None = None) -> Description:
    """Show a transformation as a table: each part, its arguments, the bytes of its state, the bytes a step moves.

    What a step moves is the least that a kernel without intermediate results in memory must: it reads the gradients
    once, and reads and writes the parameters and all of the state once. A row has its own part of the state. A rule
    that needs a sum over all gradients, such as a global norm, reads them a second time unless they fit into a cache;
    `Step.explain` tells what the generated kernels move.

    Args:
        tx: The transformation. What it is made of is known from its recipe; one that no `factory` made is one row.
        params: The parameters, or a tree like them on the `meta` device. Nothing is allocated for them: states are made
            on that device, unless an `init` reads a number; then for the parameters as they are.

    Returns:
        A `Description`, which prints as the table and has the numbers as `rows`, `params`, `gradients`, `state`, `read`
        and `written`.

    Raises:
        TypeError: if `tx` is not a `GradientTransformation`.

    Example:
        >>> import torch, optimfn as of
        >>> of.describe(of.sgd(0.1, momentum=0.9), torch.ones(1000))
        transform                 arguments                                           state     read  written
        sgd                       learning_rate=0.1, momentum=0.9
          trace                   decay=0.9, nesterov=False, accumulator_dtype=None  4.00 kB  4.00 kB  4.00 kB
          scale_by_learning_rate  learning_rate=0.1, flip_sign=True
        gradients                                                                             4.00 kB
        parameters                                                                            4.00 kB  4.00 kB
        total                                                                        4.00 kB  12.0 kB  8.00 kB
    """
    check_transformation(tx=tx)
    if params is None:
        return Description(tuple(_visit(_Part(tx), None, 0)), None, None, _note(tx))
    tree.check_tensors("params", params)
    with unasked():
        try:
            meta = tree.map(lambda p: p.detach().to("meta"), params)
            rows, state = tuple(_visit(_Part(tx), meta, 0)), tx.init(meta)
        except RuntimeError:  # what reading a number on the meta device raises
            rows, state = tuple(_visit(_Part(tx), params, 0)), tx.init(params)
    moving = params.fast if isinstance(params, LookaheadParams) else params
    own = {x.dtype for x in tree.leaves(params)}
    return Description(rows, _size(params), _size(moving), _note(tx), _by_dtype(state), own)


def _by_dtype(state: State) -> dict[torch.dtype, int]:
    """Bytes of a state by dtype, most first."""
    sizes: collections.Counter[torch.dtype] = collections.Counter()
    for x in tree.leaves(state):
        if isinstance(x, Tensor):
            sizes[x.dtype] += x.numel() * x.element_size()
    return dict(sizes.most_common())


def _note(tx: GradientTransformation) -> str:
    """A word about a chain that multiplies the updates by two learning rates."""
    rated = [one for one in tx.members.values() if _has_rate(one)]
    if len(rated) < 2:
        return ""
    names = [one.recipe.factory.__name__ for one in rated if one.recipe is not None]
    return f"{', '.join(names[:-1])} and {names[-1]} each multiply the updates by a learning rate of their own"


def _has_rate(tx: GradientTransformation) -> bool:
    """Whether it ends by multiplying with a learning rate."""
    if tx.members:
        return any(map(_has_rate, tx.members.values()))
    return tx.recipe is not None and (tx.recipe.factory is scale_by_learning_rate or "learning_rate" in tx.arguments)


class _Part(NamedTuple):
    """A transformation on its place in another."""

    tx: GradientTransformation
    label: str = ""  # the name in a chain, or the key among the arguments
    recipe: Recipe | None = None  # how its own reads, where that differs


class _Seen(NamedTuple):
    """A part, and the parameters that it makes its state for."""

    part: _Part
    params: Params | None
    copies: int = 1  # how many such states there are, of so many stacked models


def _visit(
    part: _Part, params: Params | None, depth: int, is_kept: bool = True, copies: int = 1
) -> Iterator[DescribedTransform]:
    """The rows of a part and of all that is in it; what is not kept as it is has no bytes of its own."""
    tx, recipe = part.tx, part.recipe or part.tx.recipe
    inner, state = _look_inside(tx, params)
    own = None
    if params is not None:
        own = _size(state) - sum(seen.copies * _size(seen.part.tx.init(seen.params)) for seen in inner)
        # One that keeps the states of its parts in fewer bits has all the bytes itself.
        is_kept, own = is_kept and own >= 0, copies * (own if own >= 0 else _size(state)) if is_kept else 0
    yield DescribedTransform(depth, _name(part, recipe), _arguments(recipe, defaults=not inner), own)
    for seen in inner:
        yield from _visit(seen.part, seen.params, depth + 1, is_kept, copies * seen.copies)


def _look_inside(tx: GradientTransformation, params: Params | None) -> tuple[list[_Seen], State]:
    """The parts with the parameters that they are given, and the state."""
    if tx.members:
        parts = [_Part(member, key if isinstance(key, str) else "") for key, member in tx.members.items()]
        return [_Seen(part, params) for part in parts], None if params is None else tx.init(params)
    seen: dict[int, _Seen] = {}

    def spy(part: _Part) -> GradientTransformation:
        place = len(seen)
        seen[place] = _Seen(part, None)

        def init(params: Params) -> State:
            seen[place] = _of_one_member(part, params)
            return part.tx.init(params)

        return GradientTransformation(init, part.tx.update)

    watched = tx if tx.recipe is None else _remake(tx.recipe, spy)
    if params is None:
        return list(seen.values()), None
    state = watched.init(params)
    return [found for found in seen.values() if found.params is not None], state


def _of_one_member(part: _Part, params: Params) -> _Seen:
    """A part with its parameters; inside `vmap` with tensors like those of one member, which may leave it."""
    batched = [x for x in tree.leaves(params) if isinstance(x, Tensor) and is_batched(x)]
    if not batched:
        return _Seen(part, params)
    copies = max(unwrapped(x).numel() // max(x.numel(), 1) for x in batched)
    # Made anew: what `vmap` has no part in, it does not wrap.
    alone = tree.map(lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device), params)
    return _Seen(part, alone, copies)


def _remake(recipe: Recipe, spy: Callable[[_Part], GradientTransformation]) -> GradientTransformation:
    """The transformation again, with another in place of every one among its arguments."""
    if isinstance(recipe.factory, InjectedFactory):
        return _remake_injected(recipe, recipe.factory, spy)
    bound = recipe.bind()
    if _stacks_a_factory(recipe):
        inner, given = bound.arguments["inner"], bound.arguments["arguments"]
        bound.arguments["inner"] = _spied(inner, Recipe(inner, (), given), spy)
    for name, value in bound.arguments.items():
        if isinstance(value, GradientTransformation):
            bound.arguments[name] = spy(_Part(value))
        elif isinstance(value, Mapping):
            bound.arguments[name] = {
                key: spy(_Part(member, str(key))) if isinstance(member, GradientTransformation) else member
                for key, member in value.items()
            }
        elif type(value) in (list, tuple):
            members = [spy(_Part(member)) if isinstance(member, GradientTransformation) else member for member in value]
            bound.arguments[name] = type(value)(members)
    made: GradientTransformation = recipe.remake(bound)
    return made


def _stacks_a_factory(recipe: Recipe) -> bool:
    return recipe.factory is stacked and not isinstance(recipe.arguments["inner"], GradientTransformation)


def _remake_injected(
    recipe: Recipe, injected: InjectedFactory, spy: Callable[[_Part], GradientTransformation]
) -> GradientTransformation:
    """Its transformation is made in `init`, of numbers that live in the state; shown as what it was asked for."""
    inner = injected.arguments["inner_factory"]
    spied = _spied(inner, Recipe(inner, recipe.args, recipe.kwargs), spy)
    made: GradientTransformation = injected.replace(inner_factory=spied)(*recipe.args, **recipe.kwargs)
    return made


def _spied(
    inner: Callable[..., GradientTransformation], recipe: Recipe, spy: Callable[[_Part], GradientTransformation]
) -> Callable[..., GradientTransformation]:
    """A factory in the place of another, whose transformations are known to be made in a place."""

    @functools.wraps(inner)
    def factory(*args: Any, **kwargs: Any) -> GradientTransformation:
        return spy(_Part(inner(*args, **kwargs), recipe=recipe))

    return factory


def _name(part: _Part, recipe: Recipe | None) -> str:
    if recipe is None:
        name = getattr(part.tx.update, "__qualname__", "GradientTransformation").split(".<locals>")[0]
    elif isinstance(recipe.factory, InjectedFactory):
        name = "inject_hyperparams"
    else:
        name = _shown_as(recipe)[0] or getattr(recipe.factory, "__name__", repr(recipe.factory))
    return f"{part.label}: {name}" if part.label else name


def _shown_as(recipe: Recipe) -> tuple[str, str]:
    """Name and arguments of a factory that has a way of its own to show its calls; else nothing."""
    shown_as = getattr(recipe.factory, "shown_as", None)
    call = "" if shown_as is None else str(shown_as(*recipe.args, **recipe.kwargs))
    name, _, arguments = call.partition("(")
    return name, arguments[:-1]


def _arguments(recipe: Recipe | None, defaults: bool) -> str:
    """The arguments but for transformations, which have rows of their own; with or without those left at a default."""
    if recipe is not None and isinstance(recipe.factory, InjectedFactory):
        recipe = recipe.factory.recipe
    if recipe is None or recipe.factory in (chain, named_chain):
        return ""
    name, arguments = _shown_as(recipe)
    if name:
        return arguments
    bound = recipe.bind()
    if _stacks_a_factory(recipe):  # they stand in its row
        del bound.arguments["arguments"]
    said = {name: _say(_without_transformations(value)) for name, value in bound.arguments.items()}
    usual = {name: _usual(parameter) for name, parameter in bound.signature.parameters.items()}
    return ", ".join(f"{name}={text}" for name, text in said.items() if text and (defaults or text != usual[name]))


def _usual(parameter: inspect.Parameter) -> str:
    return _say({} if parameter.kind is parameter.VAR_KEYWORD else parameter.default)


_NOTHING = object()


def _without_transformations(value: Any) -> Any:
    """What is left of an argument; `_NOTHING` if that is all it was."""
    if isinstance(value, GradientTransformation):
        return _NOTHING
    if isinstance(value, Mapping):
        left: Any = {key: member for key, member in value.items() if _without_transformations(member) is not _NOTHING}
    elif type(value) in (list, tuple):
        left = type(value)(member for member in value if _without_transformations(member) is not _NOTHING)
    else:
        return value
    return left if left or not value else _NOTHING


def _say(value: Any) -> str:
    if value is _NOTHING:
        return ""
    if isinstance(value, Tensor) and (value.is_meta or is_batched(value)):
        return "(injected)"
    if isinstance(value, Tensor):
        return tree.summary(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {show(member)}" for key, member in value.items()) + "}"
    return show(value)


def _size(leaves: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree.leaves(leaves) if isinstance(x, Tensor))


def _bytes(count: int | None) -> str:
    """Three digits and a unit, of powers of a thousand; nothing of nothing."""
    if not count:
        return ""
    power = 0
    while power < len(_UNITS) - 1 and count >= 999.5 * 1000**power:
        power += 1
    return f"{count} B" if power == 0 else f"{count / 1000**power:#.3g}".rstrip(".") + f" {_UNITS[power]}"


def _lines(row: DescribedTransform) -> list[tuple[str, ...]]:
    first, *more = textwrap.wrap(row.arguments, _WIDTH, break_long_words=False) or [""]
    size = _bytes(row.state)
    name = "  " * row.depth + row.name
    return [(name, first, size, size, size), *(("", text, "", "", "") for text in more)]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, arguments, *sizes in rows:
        cells = [name.ljust(widths[0]), arguments.ljust(widths[1])]
        cells += [size.rjust(width) for size, width in zip(sizes, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
