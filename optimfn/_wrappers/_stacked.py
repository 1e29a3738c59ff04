"""One transformation for many models, whose trees are stacked along a first axis."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _hints, tree
from .._base import GradientTransformation
from .._checks import check_callable, plain
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Params, State, Tree, Updates
from ._hyperparams import inject_hyperparams, lets_tensors_in, signature_of


@factory
def stacked(
    inner: GradientTransformation | Callable[..., GradientTransformation], **arguments: Any
) -> GradientTransformation:
    """Transform N models at once, each as if it were alone: every leaf has a first axis of length N.

    What is one number in a rule is N numbers here, one a member: counts, norms, decisions such as leaving out a step.
    So one member's NaN, or its clipping, does nothing to the others. It is `torch.func.vmap` over `init` and `update`,
    for every kind of tree, and with memory of its own for every leaf of the state.

    With a factory in place of a transformation, each argument that is a tensor with a first axis of length N holds a
    value for each member. These hyperparameters are kept in the state, as by `inject_hyperparams`, where they can be
    read, written, and permuted together with the members.

    Args:
        inner: What each member does: a transformation, or a factory such as `adamw`.
        arguments: Arguments for the factory, by name: a tensor with an axis holds one value a member; all others are
            the same for all. For what lies deeper, such as the peak of a schedule, pass a function of your own that
            takes it and returns the transformation.

    Shapes:
        updates, params: a first axis of length N at every leaf. state: that of `inner`, N of them along a first axis.
        extra: a tensor with an axis, such as N losses, goes to the members; everything else to each as it is.

    Raises:
        TypeError: at construction if `inner` is neither; if there are arguments without a factory to give them to; or
            if an argument that must be a Python number differs between members.
        ValueError: at construction, naming an argument that is out of range for the first member; in `init` and
            `update` if the first axes differ.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.stacked(of.sgd, learning_rate=torch.tensor([0.5, 0.25]), momentum=0.9)
        >>> models = torch.zeros(2, 3)
        >>> state = tx.init(models)
        >>> tx.update(torch.ones(2, 3), state, models)[0]
        tensor([[-0.5000, -0.5000, -0.5000],
                [-0.2500, -0.2500, -0.2500]])
    """
    own = {name: value for name, value in arguments.items() if isinstance(value, Tensor) and value.ndim}
    make = _maker(inner, arguments, own)
    tx = make(**{name: value[0] for name, value in own.items()})

    def init(params: Params) -> State:
        if isinstance(params, tree.ParamsPlaceholder):  # which has no axis
            return tx.init(params)
        device = tree.count(params).device
        here = {name: value.to(device) for name, value in own.items()}
        return _each(lambda params, own: make(**own).init(params), (params, here), {})

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        new: tuple[Updates, State] = _each(tx.update, (updates, _for_all(state, updates), params), extra)
        return new

    def eval_params(state: State, params: Params) -> Params:
        return _each(lambda state, params: _eval_params(tx, state, params), (_for_all(state, params), params), {})

    said = None if tx.eval_params is None else eval_params
    return GradientTransformation(init, update, eval_params=said)


def _maker(inner: Any, arguments: dict[str, Any], own: dict[str, Tensor]) -> Callable[..., GradientTransformation]:
    """A function from a member's own arguments to its transformation."""
    if isinstance(inner, GradientTransformation):
        if arguments:
            raise TypeError(f"stacked has no factory to give {sorted(arguments)} to, got {inner!r}")
        return lambda: inner
    check_callable(inner=inner)
    parameters = signature_of(inner).parameters
    for name, value in arguments.items():
        takes_numbers = name in parameters and not isinstance(parameters[name].default, list | tuple)
        if isinstance(value, list | tuple) and takes_numbers and lets_tensors_in(parameters[name]):
            raise TypeError(f"{name} must be a tensor with one value a member, or a number, got {value!r}")
    wrong = _hints.misfit(inner, (), arguments)
    if wrong is not None:
        raise TypeError(wrong)
    for name in own:
        if name not in parameters or not lets_tensors_in(parameters[name]):
            raise TypeError(f"{name} must be the same for all members: {inner!r} takes no tensor for it")
    injected = inject_hyperparams(inner, [name for name in parameters if name not in own])
    return lambda **now: injected(**{**arguments, **now})


def _each(f: Callable[..., Tree], trees: tuple[Tree, ...], extra: dict[str, Any]) -> Tree:
    """`f` on every member of the trees, and of the tensors with an axis among the extra arguments."""
    stacks = [*_leaves(trees), *filter(_has_axis, _leaves(extra))]
    if not any(map(_has_axis, stacks)):
        return f(*trees, **extra)  # empty trees
    lengths = {tuple(x.shape[:1]) for x in stacks}
    if len(lengths) > 1:
        raise ValueError(f"stacked needs a first axis of one length at every leaf, got {sorted(lengths)}")
    results: list[Tree] = []

    def member(*parts: Tensor) -> tuple[Tensor, ...]:
        own = iter(parts)
        now = tree.map(lambda _: next(own), trees)
        results.append(f(*now, **tree.map(lambda x: next(own) if _has_axis(x) else x, extra)))
        return tuple(_leaves(results[0]))

    # What is the same for all members comes out as one of them, repeated without memory.
    mapped = torch.func.vmap(member)(*stacks)
    solid = iter([x if x.stride(0) else x.clone(memory_format=torch.contiguous_format) for x in mapped])
    return tree.map(lambda _: next(solid), results[0])


def _for_all(state: State, updates: Updates) -> State:
    """The state, where a number that someone has put in the place of the members' values is that of each."""
    first = next(iter(_leaves(updates)), None)
    if first is None or all(isinstance(x, Tensor) for x in _leaves(state)):
        return state
    return tree.map(
        lambda x: x if isinstance(x, Tensor) else tree.wide(plain(x)).to(first.device).repeat(len(first)), state
    )


def _leaves(nest: Tree) -> list[Any]:
    """The leaves in the order of `tree.map`, by which they are put back; it can be compiled."""
    found: list[Any] = []
    tree.map(found.append, nest)
    return found


def _has_axis(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0
