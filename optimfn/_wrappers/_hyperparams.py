"""Hyperparameters that live in the state."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, NamedTuple, NoReturn, Protocol, Union, get_args, get_origin, runtime_checkable

import torch
from torch import Tensor

from .. import _hints, tree
from .._base import EvalParamsFn, GradientTransformation, check_transformation
from .._checks import check_callable, check_dtype, check_number, plain
from .._evaluation import eval_params as _eval_params
from .._recipe import Recipe, RecordedFunction, factory, own
from .._typing import Count, Params, State, Updates


@runtime_checkable
class StatefulSchedule(Protocol):
    """A schedule with a state of its own, which may look at the extra arguments of `update`, such as the loss."""

    def init(self) -> State:
        """Make the state."""

    def update(self, state: State, **extra: Any) -> State:
        """Make the state of the next step."""

    def __call__(self, state: State, **extra: Any) -> float | Tensor:
        """Compute the value of this step."""


class InjectHyperparamsState(NamedTuple):
    """The hyperparameters, and the state of the transformation that they make."""

    count: Count  # () int64, steps taken
    hyperparams: dict[str, Tensor]  # the value of each at the last step, () float64; write to it to change it
    hyperparams_states: dict[str, State]  # the states of stateful schedules
    inner_state: State  # that of the transformation inside


@dataclass(frozen=True, eq=False, repr=False)
class InjectedFactory(RecordedFunction):
    """What `inject_hyperparams` returns: a factory whose transformations have their hyperparameters in the state."""

    @property
    def __name__(self) -> str:
        return repr(self)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.arguments["inner_factory"])

    def init(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say that there is no transformation yet."""
        raise TypeError(f"{self!r} makes transformations: call it first, with the arguments of the factory inside")

    update = init

    def __call__(self, *args: Any, **kwargs: Any) -> GradientTransformation:
        """Make a transformation, with the arguments of the inner factory."""
        args, kwargs = own(args), own(kwargs)
        wrong = _hints.misfit(self.arguments["inner_factory"], args, kwargs) if self.recipe else None
        if wrong is not None:
            raise TypeError(wrong)
        made: GradientTransformation = self.function(*args, **kwargs)
        return replace(made, recipe=Recipe(self, args, kwargs))


@factory
def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: torch.dtype | None = None,
) -> Callable[..., GradientTransformation]:
    """Make a factory whose transformations keep their hyperparameters in the state.

    There they can be read, written between steps (in place, or by another number or tensor under the name), saved, and
    under `vmap` be different for every member. Each argument that is a number may also be a schedule, or a
    `StatefulSchedule`. The transformation is made anew in every update with the values of this step. Without this
    wrapper a 0-dim tensor is a live hyperparameter too, but one that belongs to the transformation.

    Which arguments become hyperparameters: numbers, 0-dim tensors and functions, where the signature of the factory
    lets a `float` or a tensor in or says nothing that can be read; bools and masks, say, stay as they are. Writing to
    one that a schedule drives has no effect.

    Args:
        inner_factory: A function that returns a `GradientTransformation`, such as `adam`.
        static_args: Names of arguments to leave alone.
        hyperparam_dtype: Dtype of the values; `None` means float64, whatever the parameters are.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Shapes:
        state: count () int64; hyperparams a dict of () float64 (int64 for whole numbers where the signature says so,
            without `float`); hyperparams_states that of each stateful schedule; inner_state that of the transformation.

    Differs from: optax, where masks and other functions must be named in `static_args`, and where the values take the
        dtype of the parameters, so that with bfloat16 a `b2` of 0.999 becomes 1 (google-deepmind/optax#1414).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.inject_hyperparams(of.sgd)(learning_rate=0.5)
        >>> state = tx.init(torch.zeros(1))
        >>> state.hyperparams["learning_rate"].fill_(0.25)
        tensor(0.2500, dtype=torch.float64)
        >>> tx.update(torch.ones(1), state)[0]
        tensor([-0.2500])
    """
    check_callable(inner_factory=inner_factory)
    check_dtype(hyperparam_dtype=hyperparam_dtype)
    signature = signature_of(inner_factory)
    # Once, here: compilers cannot follow what is asked of annotations.
    takes_tensors = {name for name, parameter in signature.parameters.items() if lets_tensors_in(parameter)}
    takes_whole = {name for name, parameter in signature.parameters.items() if _wants_whole_numbers(parameter)}
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    unknown = sorted(static - set(signature.parameters))
    if unknown:
        raise ValueError(f"static_args must name arguments of {_hints.shown(inner_factory)}, got {unknown}")

    def make(*args: Any, **kwargs: Any) -> GradientTransformation:
        bound = _bound(signature, args, kwargs)
        live = {
            name: value
            for name, value in bound.arguments.items()
            if name not in static and _is_live(value) and name in takes_tensors
        }
        stateful = {name: value for name, value in live.items() if isinstance(value, StatefulSchedule)}
        scheduled = {name: value for name, value in live.items() if callable(value) and name not in stateful}

        def tensor(name: str, value: Any, count: Tensor) -> Tensor:
            whole = isinstance(value, int) and name in takes_whole
            if whole or (isinstance(value, Tensor) and not value.is_floating_point()):
                return torch.add(count * 0, value)
            return tree.cast_leaf(torch.add(tree.wide(count) * 0, value), hyperparam_dtype)

        def transformation(values: dict[str, Tensor]) -> GradientTransformation:
            now = _bound(signature, args, kwargs)
            now.arguments.update(values)
            made = inner_factory(*now.args, **now.kwargs)
            check_transformation(**{f"what {inner_factory!r} returns": made})
            return made

        def values_at(count: Tensor, states: dict[str, State], extra: dict[str, Any]) -> dict[str, Tensor]:
            values = {name: schedule(count) for name, schedule in scheduled.items()}
            values |= {name: schedule(states[name], **extra) for name, schedule in stateful.items()}
            return {name: tensor(name, value, count) for name, value in values.items()}

        def init(params: Params) -> InjectHyperparamsState:
            count, states = tree.count(params), {name: schedule.init() for name, schedule in stateful.items()}
            driven = values_at(count, states, {})
            values = {name: driven[name] if name in driven else tensor(name, live[name], count) for name in live}
            return InjectHyperparamsState(count, values, states, transformation(values).init(params))

        def update(
            updates: Updates, state: InjectHyperparamsState, params: Params | None = None, **extra: Any
        ) -> tuple[Updates, InjectHyperparamsState]:
            count, states = state.count, state.hyperparams_states
            old = {name: plain(value) for name, value in state.hyperparams.items()}
            check_number(**{f"hyperparams[{name!r}]": value for name, value in old.items()})
            values = {name: tensor(name, value, count) for name, value in old.items()} | values_at(count, states, extra)
            states = {name: schedule.update(states[name], **extra) for name, schedule in stateful.items()}
            updates, inner_state = transformation(values).rule(updates, state.inner_state, params, **extra)
            # A tensor that someone has put there keeps its dtype, as everything in a state does.
            shown = {name: _in_dtype_of(value, old[name]) for name, value in values.items()}
            return updates, InjectHyperparamsState(count + 1, shown, states, inner_state)

        # Made once here, so that bad arguments are found at construction.
        start = {name: schedule.init() for name, schedule in stateful.items()}
        made = transformation(values_at(torch.zeros((), dtype=torch.int64), start, {}))
        said = None if made.eval_params is None else _eval_params_of(transformation)
        return GradientTransformation(init, update, takes_assigned=True, eval_params=said)

    return InjectedFactory(make)


def _eval_params_of(transformation: Callable[[dict[str, Tensor]], GradientTransformation]) -> EvalParamsFn:
    """What the transformation of the hyperparameters of a state says to evaluate."""

    def eval_params(state: InjectHyperparamsState, params: Params) -> Params:
        return _eval_params(transformation(state.hyperparams), state.inner_state, params)

    return eval_params


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> inspect.BoundArguments:
    """The arguments of a call, those left out as well."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def _in_dtype_of(new: Tensor, old: Any) -> Tensor:
    """A new value in the dtype of an old one, if that is a tensor."""
    return tree.cast_leaf(new, old.dtype) if isinstance(old, Tensor) else new


def _is_live(value: Any) -> bool:
    return not isinstance(value, bool) and (callable(value) or isinstance(value, int | float | Tensor))


def lets_tensors_in(parameter: inspect.Parameter) -> bool:
    """Whether an argument may be a number that is no whole one, as far as its annotation says."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    return _says_nothing(parameter) or bool({float, Tensor} & _alternatives(parameter.annotation))


def _wants_whole_numbers(parameter: inspect.Parameter) -> bool:
    """Whether a whole number given for an argument stays one: where the annotation has no `float`."""
    return not (_says_nothing(parameter) or float in _alternatives(parameter.annotation))


def _says_nothing(parameter: inspect.Parameter) -> bool:
    said = parameter.annotation
    return said in (parameter.empty, Any, object) or isinstance(said, str)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a factory, its annotations evaluated where they are strings; what cannot be stays a string."""
    signature = inspect.signature(function)
    plain_function: Any = inspect.unwrap(function)
    while isinstance(plain_function, functools.partial):
        plain_function = inspect.unwrap(plain_function.func)
    scope = getattr(plain_function, "__globals__", None) or getattr(type(plain_function).__call__, "__globals__", {})

    def evaluated(said: Any) -> Any:
        def bearer() -> None: ...

        bearer.__annotations__ = {"said": said}
        try:
            return inspect.get_annotations(bearer, globals=scope, eval_str=True)["said"]
        except Exception:  # a name that only a type checker knows
            return said

    new = [parameter.replace(annotation=evaluated(parameter.annotation)) for parameter in signature.parameters.values()]
    return signature.replace(parameters=new)


def _alternatives(annotation: Any) -> set[Any]:
    """The members of a union, and of unions inside it; else the annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_alternatives, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if hasattr(annotation, "__value__"):  # an alias made by a `type` statement
        return _alternatives(annotation.__value__)
    return {annotation}
