"""L-BFGS as a chain: a direction from the last few steps, and a line search along it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, check_transformation, identity
from ..._checks import check_steps, need_params
from ..._recipe import factory
from ..._transforms._rate import scale, scale_by_learning_rate
from ..._transforms._zoom import scale_by_zoom_linesearch
from ..._typing import Count, Params, ScalarOrSchedule, Updates

_EPS = torch.finfo(torch.float64)


class ScaleByLBFGSState(NamedTuple):
    """The last few steps."""

    count: Count  # () int64, steps taken
    params: Params  # the parameters of the last step, like params
    updates: Updates  # the gradient there, like params
    diff_params_memory: Updates  # (memory_size, ...) changes of the parameters, oldest first
    diff_updates_memory: Updates  # (memory_size, ...) changes of the gradient, oldest first
    weights_memory: Tensor  # (memory_size,) one over the inner product of the two, 0 where there is no step yet


@factory
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> GradientTransformation:
    """Multiply the updates, which must be gradients, by an estimate of the inverse Hessian from the last few steps.

    Maths:
        s = p - p_last,  y = g - g_last,  rho = 1 / <y, s>;  remembered if <y, s> > 2.2e-16 <y, y>
        q <- g;  from the newest to the oldest:  a <- rho <s, q>,  q <- q - a y
        r <- gamma q,  gamma = <s, y> / <y, y> of the newest, min(1, 1 / |g|) if there is none; or 1
        from the oldest to the newest:  b <- rho <y, r>,  r <- r + (a - b) s
        update <- r

    Args:
        memory_size: Steps to remember, >= 1.
        scale_init_precond: Whether to compute gamma; else it is 1.

    Shapes:
        params: needed. state: count () int64; params, updates like params; diff_params_memory, diff_updates_memory
            (memory_size, ...); weights_memory (memory_size,); all float32 for float16 and bfloat16.
            Memory: (2 memory_size + 2) x params.
        Inner products are those of all leaves together. A leaf without gradient counts as one that has not moved.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, which keeps the steps in a ring, and those of negative curvature, from which directions
        point uphill; here the oldest comes first.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5; Liu and Nocedal, 1989.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.scale_by_lbfgs(), torch.tensor([3.0, 4.0])
        >>> _, state = tx.update(2 * w, tx.init(w), w)
        >>> tx.update(w, state, w / 2)[0]
        tensor([1.5000, 2.0000])
    """
    check_steps(memory_size=memory_size, at_least=1)

    def init(params: Params) -> ScaleByLBFGSState:
        count, zeros = tree.count(params), tree.init_moment(params)
        stack = tree.batch_shape(zeros, (memory_size,))
        weights = tree.wide(count).expand(memory_size).clone()
        return ScaleByLBFGSState(count, zeros, tree.zeros_like(zeros), stack, tree.zeros_like(stack), weights)

    def update(
        updates: Updates, state: ScaleByLBFGSState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByLBFGSState]:
        need_params("scale_by_lbfgs", params)
        later = state.count > 0
        g = tree.cast_like(updates, state.updates)
        y = tree.map(lambda new, old: torch.where(later, new - old, 0), g, state.updates)
        s = tree.map(lambda _, new, old: torch.where(later, new - old, 0), g, params, state.params)
        curvature = _dot(y, s)
        # What is left of it is positive, so that every direction goes downhill, and 1 over it is finite.
        kept = (curvature > _EPS.eps * tree.norm(y, squared=True, wide=True)) & (curvature > _EPS.tiny)
        weight = 1 / torch.where(kept, curvature, 1.0)
        pairs = (state.diff_params_memory, state.diff_updates_memory, state.weights_memory)
        pushed = tree.map(_push, pairs[0], s), tree.map(_push, pairs[1], y), _push(pairs[2], weight)
        s_memory, y_memory, weights = tree.where(kept, pushed, pairs)
        direction = _two_loops(
            g, s_memory, y_memory, weights, _gamma(g, y_memory, weights) if scale_init_precond else 1.0
        )
        return tree.cast_like(direction, updates), ScaleByLBFGSState(
            state.count + 1,
            tree.keep(tree.map(lambda _, p: p, g, params), state.params),
            tree.keep(g, state.updates),
            s_memory,
            y_memory,
            weights,
        )

    return GradientTransformation(init, update)


_ZOOM = scale_by_zoom_linesearch(20, initial_guess_strategy="one")


@factory
def lbfgs(
    learning_rate: ScalarOrSchedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: GradientTransformation | None = _ZOOM,
) -> GradientTransformation:
    """Step along the gradient times an estimate of the inverse Hessian, as far as a line search says.

    For smooth losses without noise. Every update takes the loss as a function:
    `tx.update(grads, state, params, value=loss, grad=grads, value_fn=f)`; without `value` and `grad` they are computed
    again. `value_and_grad_from_state` saves the evaluation at the start of each step. `scale_by_lbfgs` gives the maths.

    Args:
        learning_rate: Factor on the direction before the line search, >= 0; a number, a 0-dim tensor or a schedule.
            `None` means 1.
        memory_size: Steps to remember, >= 1.
        scale_init_precond: Whether to scale the first guess of the inverse Hessian; else it is 1.
        linesearch: What finds the step: by default, zoom in at most 20 evaluations, beginning with 1; `None`
            takes the direction as it is.

    Shapes:
        params: needed. state: those of `scale_by_lbfgs` and of the line search.
            Memory: (2 memory_size + 3) x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or the line search has no `value_fn`.

    Differs from: `minimize_by_lbfgs`, torch's rule, which makes several iterations in one update, decides in Python and
        does not vmap.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5; Liu and Nocedal, 1989.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.lbfgs(), torch.tensor([3.0, 4.0])
        >>> f = lambda w: (w**2).sum()
        >>> tx.update(2 * w, tx.init(w), w, value_fn=f)[0]
        tensor([-0.6000, -0.8000])
    """
    if linesearch is not None:
        check_transformation(linesearch=linesearch)
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate),
        identity() if linesearch is None else linesearch,
    )


def _gamma(g: Updates, y: Updates, weights: Tensor) -> Tensor:
    """Of the newest pair, `<s, y> / <y, y>`; while there is none, what makes the first step no longer than 1."""
    known = weights[-1] > 0
    inverse = weights[-1] * tree.norm(_row(y, -1), squared=True, wide=True)
    return 1 / torch.where(known, inverse, torch.clamp(tree.norm(g, wide=True), min=1.0))


def _two_loops(g: Updates, s: Updates, y: Updates, weights: Tensor, gamma: Any) -> Updates:
    pairs = [(_row(s, i), _row(y, i), weights[i]) for i in range(len(weights))]
    q, coefficients = g, []
    for s_i, y_i, rho in reversed(pairs):
        coefficients.append(rho * _dot(q, s_i))
        q = tree.add_scale(q, -coefficients[-1], y_i)
    r = tree.scale(gamma, q)
    for (s_i, y_i, rho), a in zip(pairs, reversed(coefficients), strict=True):
        r = tree.add_scale(r, a - rho * _dot(r, y_i), s_i)
    return r


def _dot(x: Updates, y: Updates) -> Tensor:
    product = tree.vdot(x, y, wide=True)
    return product.real if product.is_complex() else product


def _row(memory: Updates, i: int) -> Updates:
    return tree.map(lambda rows: rows[i], memory)


def _push(rows: Tensor, new: Tensor | None) -> Tensor:
    """The rows without the oldest, and a new one, zero if there is none."""
    row = torch.zeros_like(rows[0]) if new is None else new
    return torch.cat([rows[1:], row.to(rows.dtype).unsqueeze(0)])
