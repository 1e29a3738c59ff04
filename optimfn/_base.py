"""The pair of functions that every optimizer is, and the ways to put such pairs together."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from . import _hints, tree
from ._arguments import unlike
from ._assign import becomes, values
from ._checks import check_callable
from ._gate import Gate, InitGate, UpdateGate
from ._order import Place, check_order
from ._recipe import Recipe, Recorded, factory
from ._typing import Assign, Params, State, Updates

T = TypeVar("T")


class InitFn(Protocol):
    """The function that makes a state: `init(params) -> state`."""

    def __call__(self, params: Params) -> State:
        """Make the state for these parameters."""


class UpdateFn(Protocol):
    """The function of every step: `update(updates, state, params=None, **extra) -> (updates, state)`."""

    def __call__(
        self, updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        """Transform the updates; nothing that is passed in is written to."""


class CheckedUpdateFn(Protocol):
    """An `UpdateFn` as its caller sees it: the updates keep the type of their tree."""

    def __call__(self, updates: T, state: State, params: Params | None = None, **extra: Any) -> tuple[T, State]:
        """Transform the updates; nothing that is passed in is written to."""


class EvalParamsFn(Protocol):
    """The function that says with which parameters to evaluate: `eval_params(state, params) -> params`."""

    def __call__(self, state: State, params: Params) -> Params:
        """Make the parameters to evaluate, in memory of their own where they are others."""


@dataclass(frozen=True, eq=False, repr=False)
class GradientTransformation(Recorded):
    """An optimizer, or a part of one, as an immutable pair of pure functions.

    It unpacks as `init, update = tx`. `init(params)` makes the state. `update(updates, state, params)`
    returns the transformed updates and the next state; it writes to none of its arguments. Unknown keyword
    arguments are accepted and ignored, so that a value needed by one member of a chain can be passed
    through all of them.

    Args:
        init: `init(params) -> state`.
        update: `update(updates, state, params=None, **extra) -> (updates, state)`.
        members: The members of a chain, by their place in its state; empty for everything else.
        leafwise: A promise that no leaf sees another: transforming a tree is transforming each of its leaves alone,
            counts included. `Optimizer` then counts the steps of each parameter by itself.
        elementwise: A promise that it does not see where leaves begin and end: elements are transformed each alone, or
            by numbers of all of them together, such as the global norm, so that a tree that is cut otherwise, or
            flattened, gives the same. `distributed.zero` then may lay the state out as one vector.
        takes_assigned: A promise that it changes no leaf that is `Assign`, or knows what it does. All others refuse
            one.
        takes_shards: Whether it steps DTensors as it steps whole leaves. `distributed.zero` refuses what does not.
        eval_params: For a transformation that keeps other parameters beside the ones that it trains, such as their
            mean: `eval_params(state, params)`, those to evaluate. See `eval_params`.
        place: What it must be given, where `chain` is to refuse other orders; `None` for what may stand anywhere.
        recipe: How it was made; `factory` fills it in.

    Shapes:
        updates, params: trees of the same structure; the result has the structure and dtypes of `updates`, but float32
            for float16 and bfloat16, which rules never see.
        state: a tree of tensors that keeps its structure, shapes and dtypes from step to step.

    Example:
        >>> import torch, optimfn as of
        >>> init, update = of.sgd(0.5)
        >>> params = torch.tensor(2.0)
        >>> updates, state = update(torch.tensor(1.0), init(params), params)
        >>> updates
        tensor(-0.5000)
    """

    init: InitFn
    update: CheckedUpdateFn
    members: Mapping[Any, "GradientTransformation"] = field(default_factory=dict, kw_only=True)
    leafwise: bool = field(default=False, kw_only=True)
    elementwise: bool = field(default=False, kw_only=True)
    takes_assigned: bool = field(default=False, kw_only=True)
    takes_shards: bool = field(default=True, kw_only=True)
    eval_params: EvalParamsFn | None = field(default=None, kw_only=True)
    place: Place | None = field(default=None, kw_only=True)

    if TYPE_CHECKING:  # a rule may be annotated as loosely or as narrowly as its author likes

        def __init__(
            self,
            init: InitFn,
            update: UpdateFn,
            *,
            members: Mapping[Any, "GradientTransformation"] = ...,
            leafwise: bool = ...,
            elementwise: bool = ...,
            takes_assigned: bool = ...,
            takes_shards: bool = ...,
            eval_params: EvalParamsFn | None = ...,
            place: Place | None = ...,
            recipe: Recipe | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        made: Any = self.init
        if not isinstance(made, Gate) or (type(made) is InitGate and made.recipe is not self.recipe):
            function = made.function if isinstance(made, Gate) else made
            object.__setattr__(self, "init", InitGate(function, self.recipe))
        gate, promises = self.update, (self.takes_assigned, self.recipe)
        if not isinstance(gate, UpdateGate) or (gate.takes_assigned, gate.recipe) != promises:
            function = gate.function if isinstance(gate, UpdateGate) else gate
            object.__setattr__(self, "update", UpdateGate(function, *promises))

    @property
    def rule(self) -> UpdateFn:
        """`update` without the look at its arguments, for a caller that has had one."""
        update: Any = self.update
        rule: UpdateFn = update.rule
        return rule

    def __iter__(self) -> Iterator[Any]:
        return iter((self.init, self.update))


def leafwise(tx: GradientTransformation) -> GradientTransformation:
    """The same transformation, which now promises that no leaf sees another."""
    return replace(tx, leafwise=True)


def elementwise(tx: GradientTransformation) -> GradientTransformation:
    """The same transformation, which now promises that no element sees another."""
    return replace(tx, leafwise=True, elementwise=True)


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


def init_empty_state(params: Params) -> EmptyState:
    """The `init` of a transformation that remembers nothing."""
    return EmptyState()


@factory
def identity() -> GradientTransformation:
    """Pass the updates through unchanged.

    Shapes:
        state: empty.

    Example:
        >>> import torch, optimfn as of
        >>> of.identity().update(torch.ones(1), of.EmptyState())[0]
        tensor([1.])
    """

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        return updates, state

    return GradientTransformation(
        init_empty_state, update, leafwise=True, elementwise=True, takes_assigned=True, place=Place.WATCHES
    )


@factory
def set_to_zero() -> GradientTransformation:
    """Replace the updates by zeros, which freezes the parameters; a NaN does not get through.

    Shapes:
        state: empty.

    Example:
        >>> import torch, optimfn as of
        >>> of.set_to_zero().update(torch.ones(1), of.EmptyState())[0]
        tensor([0.])
    """
    zero = stateless(lambda updates, params: tree.zeros_like(values(updates)))
    return replace(zero, leafwise=True, elementwise=True, takes_assigned=True)


@factory
def stateless(f: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """Make a transformation of a pure function of updates and parameters.

    Args:
        f: `f(updates, params) -> updates`; `params` is `None` if the caller gave none.

    Shapes:
        state: empty.

    Raises:
        TypeError: at construction if `f` is not callable.

    Example:
        >>> import torch, optimfn as of
        >>> double = of.stateless(lambda updates, params: of.tree.scale(2.0, updates))
        >>> double.update(torch.ones(1), double.init(None))[0]
        tensor([2.])
    """
    check_callable(f=f)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        return f(updates, params), state

    return GradientTransformation(init_empty_state, update)


@factory
def stateless_with_tree_map(f: Callable[[Tensor, Tensor | None], Tensor]) -> GradientTransformation:
    """Make a transformation of a pure function of one leaf of the updates and one of the parameters.

    Args:
        f: `f(update, param) -> update`; `param` is `None` if the caller gave no parameters.

    Shapes:
        state: empty.

    Raises:
        TypeError: at construction if `f` is not callable.

    Example:
        >>> import torch, optimfn as of
        >>> sign = of.stateless_with_tree_map(lambda u, p: u.sign())
        >>> sign.update(torch.tensor([-3.0, 2.0]), sign.init(None))[0]
        tensor([-1.,  1.])
    """
    check_callable(f=f)

    def on_tree(updates: Updates, params: Params | None) -> Updates:
        if params is None:
            return tree.map(lambda u: f(u, None), updates)
        return tree.map(f, updates, params)

    return leafwise(stateless(on_tree))


@factory
def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply transformations one after the other: the updates of each go into the next.

    Extra keyword arguments and the parameters reach every member. An empty chain is the identity.

    Args:
        *transforms: The members, first to last.

    Shapes:
        state: a tuple with the state of each member.

    Raises:
        TypeError: at construction if a member is not a `GradientTransformation`, naming its position.
        ValueError: at construction if a member cannot work where it stands; in `update` for another chain's state.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.chain(of.clip(1.0), of.scale(-0.1))
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    for position, member in enumerate(transforms):
        check_transformation(**{f"member {position} of chain": member})
    check_order(transforms)

    def init(params: Params) -> State:
        return tuple(member.init(params) for member in transforms)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        if len(state) != len(transforms):
            raise ValueError(f"the state has {len(state)} members and the chain {len(transforms)}; use its own init")
        states = []
        for member, member_state in zip(transforms, state, strict=True):
            updates, member_state = member.rule(updates, member_state, params, **extra)
            states.append(member_state)
        return updates, tuple(states)

    members = dict(enumerate(transforms))
    return GradientTransformation(init, update, members=members, takes_assigned=True, **_promises_of(members))


@factory
def named_chain(*transforms: tuple[str, GradientTransformation]) -> GradientTransformation:
    """Apply transformations one after the other, with a state that is a dict keyed by name.

    Args:
        *transforms: Pairs of a name and a member, first to last.

    Shapes:
        state: a dict with the state of each member under its name.

    Raises:
        TypeError: at construction if a member is not a `GradientTransformation`.
        ValueError: at construction if a name occurs twice.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.named_chain(("momentum", of.trace(0.9)), ("rate", of.scale(-0.1)))
        >>> tx.init(torch.ones(1))["momentum"]
        TraceState(trace=float32[1])
    """
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in transforms):
        raise TypeError(f"named_chain takes pairs of a name and a member, got {_hints.shown(transforms)}")
    members = dict(transforms)
    if len(members) != len(transforms):
        raise ValueError(f"the names in named_chain must differ, got {[name for name, _ in transforms]}")
    for name, member in members.items():
        check_transformation(**{f"member {name!r} of named_chain": member})
    check_order(members.values())

    def init(params: Params) -> dict[str, State]:
        return {name: member.init(params) for name, member in members.items()}

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        states = {}
        for name, member in members.items():
            updates, states[name] = member.rule(updates, state[name], params, **extra)
        return updates, states

    return GradientTransformation(init, update, members=members, takes_assigned=True, **_promises_of(members))


def _promises_of(members: Mapping[Any, GradientTransformation]) -> dict[str, Any]:
    """What a chain may promise: what all its members do."""
    every = {name: all(getattr(member, name) for member in members.values()) for name in ("leafwise", "elementwise")}
    return {**every, "eval_params": _eval_params_of(members)}


def _eval_params_of(members: Mapping[Any, GradientTransformation]) -> EvalParamsFn | None:
    """What the members of a chain say to evaluate, each given what those before it say."""
    said = {key: member.eval_params for key, member in members.items() if member.eval_params is not None}

    def eval_params(state: State, params: Params) -> Params:
        for key, of in said.items():
            params = of(state[key], params)
        return params

    return eval_params if said else None


def apply_updates(params: T, updates: Updates) -> T:
    """Add the updates to the parameters.

    The sum is taken in the wider of the two dtypes and rounded once, to that of the parameter. Where the update is an
    `Assign`, the parameter becomes its value.

    Args:
        params: The parameters.
        updates: What a transformation returned; a leaf without update (`None`) keeps its parameter.

    Raises:
        TypeError: if a leaf is no tensor, naming its path.
        ValueError: if the trees differ in structure, or an update has another shape than its parameter.

    Example:
        >>> import torch, optimfn as of
        >>> of.apply_updates(torch.tensor([1.0]), torch.tensor([-0.25]))
        tensor([0.7500])
    """

    def leaf(p: Tensor, u: Any) -> Tensor:
        if u is None:
            return p
        given = u.value if type(u) is Assign else u
        if given is not None and given.shape != p.shape:
            tree.check_shapes(values(updates), params)
        return becomes(p, u)

    try:
        stepped: T = tree.map(leaf, params, updates)
    except AttributeError:
        tree.check_tensors("params", params)
        tree.check_tensors("updates", updates)
        raise
    except ValueError as error:
        tree.check_shapes(values(updates), params)
        wrong = unlike("updates", updates, "params", params)
        if wrong is None:
            raise
        raise wrong from error
    return stepped


def check_transformation(**values: object) -> None:
    """Accept transformations."""
    for name, value in values.items():
        if not isinstance(value, GradientTransformation):
            advice = _hints.for_transformation(value)
            raise TypeError(f"{name} must be a GradientTransformation, got {_hints.shown(value)}{advice}")
