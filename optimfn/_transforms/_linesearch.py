"""How far to go along a direction: backtracking, and what line searches share."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._checks import (
    check_at_least,
    check_callable,
    check_decay,
    check_nonnegative,
    check_positive,
    check_steps,
    need_params,
)
from .._recipe import factory
from .._typing import Params, Scalar, State, Updates

ValueFn = Callable[..., Tensor]
"""A function of the parameters, and of data by name, that returns the loss as a 0-dim tensor."""


class BacktrackingLinesearchInfo(NamedTuple):
    """How the last search went."""

    num_linesearch_steps: Tensor  # () int64, evaluations of the loss
    decrease_error: Tensor  # () float64, by how much the loss is too high, 0 if it is not, inf if it is NaN


class ScaleByBacktrackingLinesearchState(NamedTuple):
    """Where the last search ended."""

    learning_rate: Tensor  # () float64, the step
    value: Tensor  # () float64, the loss there; inf before the first step
    grad: Updates  # the gradient there, like params; () without `store_grad`
    info: BacktrackingLinesearchInfo  # how it went


class _Trial(NamedTuple):
    learning_rate: Tensor
    value: Tensor
    error: Tensor
    tries: Tensor


@factory
def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Scalar = 1e-4,
    decrease_factor: Scalar = 0.8,
    increase_factor: Scalar = 1.5,
    max_learning_rate: Scalar = 1.0,
    atol: Scalar = 0.0,
    rtol: Scalar = 0.0,
    store_grad: bool = False,
) -> GradientTransformation:
    """Multiply the updates by a step that makes the loss fall, found by going back from a longer one.

    Put it last, behind something that points downhill, such as `sgd(1.0)`. Every update takes the loss as a function:
    `tx.update(grads, state, params, value_fn=f)`; give `value` and `grad` at `params` too, or they are computed. Extra
    arguments that `f` has by name are handed to it.

    Maths:
        step = min(increase_factor step of the last search, max_learning_rate)
        step <- decrease_factor step, until
            f(p + step u) <= (1 + rtol) f(p) + slope_rtol step <u, grad> + atol
        update <- step u;  0 where the loss is infinite or NaN to the end

    Args:
        max_backtracking_steps: Times to go back at most, >= 0.
        slope_rtol: Part of the promised decrease to insist on, no unit, >= 0.
        decrease_factor: Factor on the step when going back, no unit, in [0, 1).
        increase_factor: Factor on the last step to begin with, no unit, >= 1; `math.inf` begins with the longest.
        max_learning_rate: Longest step, in units of the updates, > 0.
        atol: Increase of the loss to tolerate, in its unit, >= 0.
        rtol: Increase relative to the loss to tolerate, no unit, >= 0.
        store_grad: Compute the gradient where the search ends and keep it, for `value_and_grad_from_state`.

    Shapes:
        params: needed. state: learning_rate, value () float64; grad like params with `store_grad`, else (); info.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `value_fn` are given.

    Differs from: optax in that extra arguments `value_fn` does not know are ignored; after a search that found nothing,
        the next begins with the longest step, where optax stays at 0 for ever; and there is no `verbose`, see `info`.
        How many evaluations a step takes is decided as `tree.while_loop` says.

    Source: Armijo, 1966; Nocedal and Wright, Numerical Optimization, 2006, algorithm 3.1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.chain(of.sgd(1.0), of.scale_by_backtracking_linesearch(15)), torch.tensor([3.0])
        >>> f = lambda w: (w**2).sum()
        >>> tx.update(2 * w, tx.init(w), w, value_fn=f)[0]
        tensor([-4.8000])
    """
    check_steps(max_backtracking_steps=max_backtracking_steps)
    check_nonnegative(slope_rtol=slope_rtol, atol=atol, rtol=rtol)
    check_decay(decrease_factor=decrease_factor)
    check_at_least(1, increase_factor=increase_factor)
    check_positive(max_learning_rate=max_learning_rate)

    def init(params: Params) -> ScaleByBacktrackingLinesearchState:
        count = tree.count(params)
        one, grad = tree.wide(count) + 1, tree.zeros_like(params) if store_grad else ()
        return ScaleByBacktrackingLinesearchState(
            one, one + math.inf, grad, BacktrackingLinesearchInfo(count, one + math.inf)
        )

    def update(
        updates: Updates, state: ScaleByBacktrackingLinesearchState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByBacktrackingLinesearchState]:
        f, both, value, grad = loss_at("scale_by_backtracking_linesearch", params, extra)
        slope = slope_along(updates, grad)
        last, longest = state.learning_rate, torch.zeros_like(state.learning_rate) + max_learning_rate

        def too_high(trial: _Trial) -> Tensor:
            return ~(trial.error <= atol)

        def go_back(trial: _Trial) -> _Trial:
            step = torch.where(trial.tries > 0, decrease_factor * trial.learning_rate, trial.learning_rate)
            found = tree.wide(f(apply_updates(params, tree.scale(step, updates))))
            error = found - (1 + rtol) * value - step * slope_rtol * slope
            return _Trial(step, found, positive(error), trial.tries + 1)

        first = torch.where(last > 0, torch.minimum(last * increase_factor, longest), longest)
        start = _Trial(first, value, torch.full_like(first, math.inf), state.info.num_linesearch_steps * 0)
        end = tree.while_loop(too_high, go_back, start, max_backtracking_steps + 1)
        stuck = torch.isinf(end.error)
        step = torch.where(stuck, 0.0, end.learning_rate)
        scaled, end_value, end_grad = tree.scale(step, updates), torch.where(stuck, value, end.value), state.grad
        if store_grad:
            _, new_grad = both(apply_updates(params, scaled))
            end_grad = tree.keep(tree.map(lambda _, g: g, updates, new_grad), state.grad)
        info = BacktrackingLinesearchInfo(end.tries, end.error)
        return scaled, ScaleByBacktrackingLinesearchState(step, end_value, end_grad, info)

    return GradientTransformation(init, update)


def value_and_grad_from_state(value_fn: ValueFn) -> Callable[..., tuple[Tensor, Updates]]:
    """The function that returns loss and gradient, from the state of a line search where they are already known.

    It is for losses without noise: a line search ends where the next step begins, having computed both. Call it as
    `value, grad = f(params, *args, state=state, **kwargs)`; args and kwargs go to `value_fn`.

    Args:
        value_fn: A function of the parameters, and of anything else, that returns the loss as a 0-dim tensor.

    Raises:
        TypeError: if `value_fn` is not callable.
        KeyError: when called, if the state has several values or gradients.
        ValueError: when called, if it has none, as without `store_grad`.

    Example:
        >>> import torch, optimfn as of
        >>> f, tx = lambda w: (w**2).sum(), of.lbfgs()
        >>> value_and_grad, w = of.value_and_grad_from_state(f), torch.tensor([3.0, 4.0])
        >>> state = tx.init(w)
        >>> for _ in range(3):
        ...     value, grad = value_and_grad(w, state=state)
        ...     updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=f)
        ...     w = of.apply_updates(w, updates)
        >>> f(w) < 1e-9
        tensor(True)
    """
    check_callable(value_fn=value_fn)

    def from_state(params: Params, *args: Any, state: State, **kwargs: Any) -> tuple[Tensor, Updates]:
        value, grad = tree.get(state, "value"), tree.get(state, "grad")
        if value is None or grad is None or (isinstance(grad, tuple) and not tree.leaves(grad)):
            raise ValueError("the state has no value or no grad; a backtracking line search wants store_grad=True")

        def unknown(known: tuple[Tensor, Updates]) -> Tensor:
            return ~torch.isfinite(known[0])

        def compute(_: tuple[Tensor, Updates]) -> tuple[Tensor, Updates]:
            return tree.value_and_grad(value_fn)(params, *args, **kwargs)

        found: tuple[Tensor, Updates] = tree.while_loop(unknown, compute, (value, grad), at_most=1)
        return found

    return from_state


def loss_at(
    rule: str, params: Params | None, extra: dict[str, Any]
) -> tuple[ValueFn, Callable[..., Any], Tensor, Updates]:
    """The loss as a function of the parameters only, the same with its gradient, and both at some parameters."""
    need_params(rule, params)
    value_fn, value, grad = extra.get("value_fn"), extra.get("value"), extra.get("grad")
    both = extra.get("value_and_grad_fn")
    if value_fn is None and both is not None:
        if value is None or grad is None:
            value, grad = both(params)
        return lambda at: tree.whole(both(at)[0]), both, _scalar(value, params), grad
    if value_fn is None:
        raise ValueError(f"{rule} needs the loss: call tx.update(updates, state, params, value_fn=f)")
    names = inspect.signature(value_fn).parameters.values()
    takes_all = any(name.kind is name.VAR_KEYWORD for name in names)
    known = {name.name for name in names}
    data = {key: given for key, given in extra.items() if key in known or (takes_all and key not in _OWN)}

    def f(at: Params) -> Tensor:
        loss: Tensor = tree.whole(value_fn(at, **data))
        return loss

    if value is None or grad is None:
        value, grad = tree.value_and_grad(f)(params)
    return f, tree.value_and_grad(f), _scalar(value, params), grad


_OWN = ("value_fn", "value", "grad")


def _scalar(value: Scalar, params: Params) -> Tensor:
    """A loss, whole on every process, where counts are."""
    return tree.wide(tree.whole(value)).to(tree.count(params).device)


def slope_along(updates: Updates, grad: Updates) -> Tensor:
    """The derivative of the loss by the step along the updates."""
    product = tree.vdot(updates, grad, wide=True)
    return product.real if product.is_complex() else product


def positive(error: Tensor) -> Tensor:
    """An error, 0 if there is none and infinite if it is NaN."""
    return torch.where(torch.isnan(error), math.inf, torch.clamp(error, min=0))
