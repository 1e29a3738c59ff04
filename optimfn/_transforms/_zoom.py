"""A line search for both conditions of Wolfe."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._base import GradientTransformation, apply_updates
from .._checks import check_at_least, check_choice, check_growth, check_nonnegative, check_positive, check_steps
from .._recipe import factory
from .._typing import Params, Scalar, Updates
from ._linesearch import loss_at, positive, slope_along


class ZoomLinesearchInfo(NamedTuple):
    """How the last search went."""

    num_linesearch_steps: Tensor  # () int64, evaluations of the loss and its gradient
    decrease_error: Tensor  # () float64, by how much the loss is too high, 0 if it is not, inf if it is NaN
    curvature_error: Tensor  # () float64, by how much the slope is too steep, 0 if it is not, inf if it is NaN


class ScaleByZoomLinesearchState(NamedTuple):
    """Where the last search ended."""

    learning_rate: Tensor  # () float64, the step
    value: Tensor  # () float64, the loss there; inf before the first step
    grad: Updates  # the gradient there, like params
    info: ZoomLinesearchInfo  # how it went


class _Point(NamedTuple):
    t: Tensor  # step
    value: Tensor  # of the loss
    slope: Tensor  # its derivative by the step


class _Search(NamedTuple):
    info: ZoomLinesearchInfo
    at: _Point  # the last trial, or in the end the answer
    grad: Updates
    low: _Point  # the better end of the bracket, not the lower
    high: _Point
    ref: _Point  # a third point for the cubic
    safe: _Point  # the best trial with enough decrease, whatever its slope
    safe_grad: Updates
    bracketed: Tensor
    done: Tensor
    failed: Tensor


class _Errors(NamedTuple):
    decrease: Tensor
    curvature: Tensor


class _Settings(NamedTuple):
    max_linesearch_steps: int
    max_learning_rate: Scalar | None
    tol: Scalar
    increase_factor: Scalar
    slope_rtol: Scalar
    curv_rtol: Scalar
    approx_dec_rtol: Scalar | None
    stepsize_precision: Scalar


Line = Callable[[Tensor], tuple[_Point, Updates]]
"""From a step to the point there, and the gradient."""


@factory
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Scalar | None = None,
    tol: Scalar = 0.0,
    increase_factor: Scalar = 2.0,
    slope_rtol: Scalar = 1e-4,
    curv_rtol: Scalar = 0.9,
    approx_dec_rtol: Scalar | None = 1e-6,
    stepsize_precision: Scalar = 1e-5,
    initial_guess_strategy: str = "keep",
) -> GradientTransformation:
    """Multiply the updates by a step at which the loss has fallen enough and its slope has flattened enough.

    Put it last, behind something that points downhill, such as `sgd(1.0)` or the directions of `lbfgs`. Every update
    takes the loss as a function: `tx.update(grads, state, params, value_fn=f)`; give `value` and `grad` at `params`
    too, or they are computed. Extra arguments that `f` has by name are handed to it.

    Maths:
        with phi(t) = f(p + t u), find t such that
            phi(t) <= phi(0) + slope_rtol t phi'(0) + tol
                or phi'(t) <= (2 slope_rtol - 1) phi'(0) + tol and phi(t) <= phi(0) + approx_dec_rtol |phi(0)| + tol
            |phi'(t)| <= curv_rtol |phi'(0)| + tol
        first t <- increase_factor t, until such a t lies between the last two; then shrink this bracket, to the
        minimiser of a cubic, of a parabola, or to the middle
        update <- t u;  where there is no such t, the best one with enough decrease; else the last

    Args:
        max_linesearch_steps: Evaluations at most, >= 1.
        max_learning_rate: Longest step, in units of the updates, > 0; `None` means no bound.
        tol: Errors to tolerate, >= 0.
        increase_factor: Factor on the step when going out, no unit, >= 1.
        slope_rtol: Part of the promised decrease to insist on, no unit, >= 0.
        curv_rtol: Part of the slope that may be left, no unit, >= 0; `math.inf` does not look at the slope.
        approx_dec_rtol: Increase of the loss by rounding, relative to it, no unit, >= 0; `None` does without.
        stepsize_precision: Length of a bracket to give up at, in units of the updates, >= 0.
        initial_guess_strategy: Where to begin: `"one"`, or `"keep"` for the step of the last search.

    Shapes:
        params: needed. state: learning_rate, value () float64; grad like params; info. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `value_fn` are given.

    Differs from: optax in that extra arguments `value_fn` does not know are ignored; after a search that found nothing,
        `"keep"` begins with 1, where optax stays at 0 for ever; and there is no `verbose`, see `info`. How many
        evaluations a step takes is decided as `tree.while_loop` says; derivatives take the step as given.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 3.5 and 3.6; Hager and Zhang, 2006, equations
        23, 26 and 27.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.chain(of.sgd(1.0), of.scale_by_zoom_linesearch(15)), torch.tensor([3.0])
        >>> f = lambda w: (w**2).sum()
        >>> tx.update(2 * w, tx.init(w), w, value_fn=f)[0]
        tensor([-3.])
    """
    check_steps(max_linesearch_steps=max_linesearch_steps, at_least=1)
    if max_learning_rate is not None:
        check_positive(max_learning_rate=max_learning_rate)
    if approx_dec_rtol is not None:
        check_nonnegative(approx_dec_rtol=approx_dec_rtol)
    check_at_least(0, curv_rtol=curv_rtol)
    check_nonnegative(tol=tol, slope_rtol=slope_rtol, stepsize_precision=stepsize_precision)
    check_growth(increase_factor=increase_factor)
    check_choice("initial_guess_strategy", initial_guess_strategy, ("keep", "one"))

    tolerances = tol, increase_factor, slope_rtol, curv_rtol, approx_dec_rtol, stepsize_precision
    settings = _Settings(max_linesearch_steps, max_learning_rate, *tolerances)

    def init(params: Params) -> ScaleByZoomLinesearchState:
        count = tree.count(params)
        one = tree.wide(count) + 1
        info = ZoomLinesearchInfo(count, one + math.inf, one + math.inf)
        return ScaleByZoomLinesearchState(one, one + math.inf, tree.zeros_like(params), info)

    def update(
        updates: Updates, state: ScaleByZoomLinesearchState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByZoomLinesearchState]:
        _, both, value, grad = loss_at("scale_by_zoom_linesearch", params, extra)
        # Only the leaves that move: the others keep the gradient in the state.
        grad = tree.map(lambda _, g: g, updates, grad)

        def line(t: Tensor) -> tuple[_Point, Updates]:
            found, there = both(apply_updates(params, tree.scale(t, updates)))
            there = tree.cast_like(tree.map(lambda _, g: g, updates, there), grad)
            return _Point(t, tree.wide(found), slope_along(updates, there)), there

        kept = torch.where(state.learning_rate > 0, state.learning_rate, 1.0)
        guess = kept if initial_guess_strategy == "keep" else torch.ones_like(kept)
        no, unknown = torch.zeros_like(kept, dtype=torch.bool), torch.full_like(kept, math.inf)
        origin = _Point(torch.zeros_like(kept), value, slope_along(updates, grad))
        info = ZoomLinesearchInfo(torch.zeros_like(state.info.num_linesearch_steps), unknown, unknown)
        start = _Search(info, origin, grad, origin, origin, origin, origin, grad, no, no, no)
        end = tree.while_loop(
            lambda search: ~(search.done | search.failed),
            lambda search: _turn(search, origin, guess, line, settings),
            start,
            max_linesearch_steps,
        )
        end_value, end_grad = tree.keep((end.at.value, end.grad), (state.value, state.grad))
        new_state = ScaleByZoomLinesearchState(end.at.t, end_value, end_grad, end.info)
        return tree.scale(end.at.t, updates), new_state

    return GradientTransformation(init, update)


def _errors(new: _Point, origin: _Point, how: _Settings) -> _Errors:
    decrease = new.value - origin.value - how.slope_rtol * new.t * origin.slope
    if how.approx_dec_rtol is not None:
        flat = new.slope - (2 * how.slope_rtol - 1) * origin.slope
        rise = new.value - origin.value - how.approx_dec_rtol * origin.value.abs()
        decrease = torch.minimum(torch.maximum(flat, rise), decrease)
    return _Errors(positive(decrease), positive(new.slope.abs() - how.curv_rtol * origin.slope.abs()))


def _go_out(search: _Search, guess: Tensor, how: _Settings) -> tuple[Tensor, Tensor]:
    """The next trial of the first phase, and whether it is as far as one may go."""
    t = torch.where(search.info.num_linesearch_steps == 0, guess, how.increase_factor * search.at.t)
    longest = (
        torch.full_like(t, math.inf) if how.max_learning_rate is None else torch.zeros_like(t) + how.max_learning_rate
    )
    return torch.minimum(t, longest), (t >= longest) & torch.isfinite(longest)


def _turn(search: _Search, origin: _Point, guess: Tensor, line: Line, how: _Settings) -> _Search:
    """Evaluate one more point, and find what follows from it."""
    count, low, high, zooming = search.info.num_linesearch_steps, search.low, search.high, search.bracketed
    further, at_limit = _go_out(search, guess, how)
    new, grad = line(torch.where(zooming, _between(low, high, search.ref), further))
    error = _errors(new, origin, how)
    good = torch.maximum(*error) <= how.tol
    safer = (error.decrease <= how.tol) & (~zooming | (new.value < search.safe.value))
    safe, safe_grad = tree.where(safer, (new, grad), (search.safe, search.safe_grad))

    # First phase: the bracket is the last step and this one.
    last = search.at
    up = (error.decrease > 0) | ((new.value >= last.value) & (count > 0))
    turned = (new.slope >= 0) & ~up
    out_low, out_high = tree.where(turned, (new, last), (last, new))
    found = up | turned | good
    # Second phase: this step becomes an end of the bracket.
    above = (error.decrease > 0) | (new.value >= low.value)
    behind = (new.slope * (high.t - low.t) >= 0) & ~above
    in_high = tree.where(above, new, tree.where(behind, low, high))
    in_low = tree.where(above, low, new)
    in_ref = tree.where(above | behind, high, low)

    new_low, new_high, ref = tree.where(zooming, (in_low, in_high, in_ref), (out_low, out_high, out_low))
    done = good | (~zooming & at_limit & ~found)
    tiny = zooming & ((high.t - low.t).abs() <= how.stepsize_precision) & (safe.t > 0)
    failed = ((count + 1 >= how.max_linesearch_steps) | tiny) & ~done
    give_up = failed & ((safe.t > 0) | torch.isinf(error.decrease))
    at, grad = tree.where(give_up, (safe, safe_grad), (new, grad))
    info = ZoomLinesearchInfo(count + 1, *error)
    return _Search(info, at, grad, new_low, new_high, ref, safe, safe_grad, zooming | found, done, failed)


def _between(low: _Point, high: _Point, ref: _Point) -> Tensor:
    """The minimiser of a cubic or else of a parabola, if it lies well inside the bracket; else the middle."""
    left, right = torch.minimum(low.t, high.t), torch.maximum(low.t, high.t)
    delta = right - left
    cubic, parabola = _cubic(low, high, ref), _parabola(low, high)
    t = torch.where((parabola > left + 0.1 * delta) & (parabola < right - 0.1 * delta), parabola, (low.t + high.t) / 2)
    return torch.where((cubic > left + 0.2 * delta) & (cubic < right - 0.2 * delta), cubic, t)


# What a `where` does not take has a derivative all the same, and 0 times an infinite one is NaN: so nothing is divided
# by 0, and no root taken of it.


def _cubic(a: _Point, b: _Point, c: _Point) -> Tensor:
    """The minimiser of the cubic through three values and the slope at the first; NaN if there is none."""
    db, dc = b.t - a.t, c.t - a.t
    rb, rc = b.value - a.value - a.slope * db, c.value - a.value - a.slope * dc
    scale = (db * dc) ** 2 * (db - dc)
    apart = torch.where(scale == 0, 1.0, scale)
    third, second = (dc**2 * rb - db**2 * rc) / apart, (db**3 * rc - dc**3 * rb) / apart
    square = second * second - 3 * third * a.slope
    found = (scale != 0) & (third != 0) & (square > 0)
    root = torch.sqrt(torch.where(found, square, 1.0))
    return torch.where(found, a.t + (-second + root) / torch.where(found, 3 * third, 1.0), math.nan)


def _parabola(a: _Point, b: _Point) -> Tensor:
    """The critical point of the parabola through two values and the slope at the first; NaN if there is none."""
    db = b.t - a.t
    apart = torch.where(db == 0, 1.0, db)
    second = (b.value - a.value - a.slope * db) / apart**2
    found = (db != 0) & (second != 0)
    return torch.where(found, a.t - a.slope / torch.where(found, 2 * second, 1.0), math.nan)
