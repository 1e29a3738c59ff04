"""L-BFGS, which evaluates the loss by itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_choice, check_nonnegative, check_positive, check_rate, check_steps, need_params
from ..._recipe import factory
from ..._typing import Count, Params, ScalarOrSchedule, Updates
from ._strong_wolfe import Real, Trial, strong_wolfe

Evaluate = Callable[[Sequence[Tensor]], tuple[float, Tensor]]
"""From the parameters, as a list, to the loss and its flat gradient."""


class MinimizeByLbfgsState(NamedTuple):
    """L-BFGS's memory; n is the number of parameters, a complex one being two."""

    count: Count  # () int64, updates made
    n_iter: Tensor  # () int64, iterations made
    func_evals: Tensor  # () int64, evaluations of the loss, with those of the caller
    d: Tensor  # (n,) direction of the last iteration
    t: Tensor  # () step along it
    pairs: Tensor  # () int64, how many of the rows below are in use, oldest first
    y: Tensor  # (history_size, n) changes of the gradient
    s: Tensor  # (history_size, n) changes of the parameters
    rho: Tensor  # (history_size,) 1 / (y . s)
    gamma: Tensor  # () scale of the first guess of the inverse Hessian
    prev_g: Tensor  # (n,) gradient where the last iteration began
    prev_f: Tensor  # () loss there


class Memory(NamedTuple):
    """The same between iterations: Python numbers to decide by, and only the pairs that there are."""

    n_iter: int
    func_evals: int
    d: Tensor
    t: Real
    y: tuple[Tensor, ...]
    s: tuple[Tensor, ...]
    rho: tuple[Tensor, ...]
    gamma: Real
    prev_g: Tensor
    prev_f: Real
    alpha: tuple[Tensor, ...] = ()  # of the last direction; nothing is computed from it


class Settings(NamedTuple):
    """The arguments of one update; the learning rate is a number or a 0-dim tensor on the CPU."""

    learning_rate: Real
    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search: str | None


@factory
def minimize_by_lbfgs(
    learning_rate: ScalarOrSchedule = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search: str | None = None,
) -> GradientTransformation:
    """Move by several iterations of L-BFGS, evaluating the loss along the way.

    For smooth losses without noise: least squares, physics, classical statistics. `update` needs the loss,
    `tx.update(grads, state, params, value_fn=f)` with `f(params)` a 0-dim tensor, and may be given more:
    `value`, the loss at `params`, or `value_and_grad_fn`, which returns the loss and its gradients.

    Maths:
        d <- -H g, by the last `history_size` pairs s = p' - p, y = g' - g with s . y > 1e-10:
            q <- g;  from the newest pair to the oldest: a_i <- rho_i s_i . q,  q <- q - a_i y_i
            r <- gamma q, gamma = s . y / y . y of the newest
            from the oldest to the newest: r <- r + (a_i - rho_i y_i . r) s_i;  d <- -r
        p <- p + t d, t = learning_rate, times min(1, 1 / |g|_1) in the very first iteration, or by line search
        until max_iter, max_eval, max|g| <= tolerance_grad, max|t d| <= tolerance_change,
            |f' - f| < tolerance_change or g . d > -tolerance_change
        update <- p at the end - p at the start

    Args:
        learning_rate: Step along the direction, in units of it, >= 0, or where a line search begins, > 0; 1
            suits the rule. A number, a 0-dim tensor or a schedule of the updates.
        max_iter: Iterations per update, >= 1.
        max_eval: Evaluations per update, that of the caller among them, >= 1, to be exceeded by no new
            iteration; `None` means `max_iter * 5 // 4`.
        tolerance_grad: Stop where no element of the gradient is larger, in its unit, >= 0.
        tolerance_change: Stop where parameters or loss change less, in the unit of either, >= 0.
        history_size: Pairs to remember, >= 1.
        line_search: `"strong_wolfe"`, or `None` for the step `learning_rate`.

    Shapes:
        params: needed, all on one device; the loss is that of the whole tree.
        state: count, n_iter, func_evals, pairs () int64; y, s (history_size, n); rho (history_size,);
            d, prev_g (n,); t, gamma, prev_f (). Memory: (2 history_size + 2) x params, in one dtype for all.
        Complex leaves are pairs of reals. An absent gradient counts as zero and its leaf does not move.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters or no `value_fn` are given.

    Differs from: the other transformations: when to stop, and how to search a line, is decided in Python.
        Numbers are read back from the device, a few per evaluation; there is no `vmap`, no single graph for
        `torch.compile`, nothing on the `meta` device; derivatives take the decisions and step lengths as given.
        The state has no leaf per parameter. And from optax.lbfgs, which is a different rule: one iteration per
        update, and a line search of its own.

    Source: Liu and Nocedal, 1989; Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5, and
        3.5 and 3.6 for the line search; first step and stopping rules are those of torch.optim.LBFGS.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.minimize_by_lbfgs(line_search="strong_wolfe"), torch.tensor([0.0, 1.0])
        >>> loss = lambda p: (p - 3).cosh().sum() + p.prod()
        >>> grads = torch.func.grad(loss)(params)
        >>> updates, state = tx.update(grads, tx.init(params), params, value_fn=loss)
        >>> loss(params + updates)
        tensor(6.8318)
    """
    check_rate(learning_rate=learning_rate)
    if line_search is not None and not callable(learning_rate):
        check_positive(learning_rate=learning_rate)
    check_steps(max_iter=max_iter, history_size=history_size, at_least=1)
    if max_eval is None:
        max_eval = max_iter * 5 // 4
    check_steps(max_eval=max_eval, at_least=1)
    check_nonnegative(tolerance_grad=tolerance_grad, tolerance_change=tolerance_change)
    check_choice("line_search", line_search, (None, "strong_wolfe"))
    rest = (max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search)

    def update(
        updates: Updates,
        state: MinimizeByLbfgsState,
        params: Params | None = None,
        *,
        value: Any = None,
        value_fn: Callable[[Params], Tensor] | None = None,
        value_and_grad_fn: Callable[[Params], tuple[Any, Updates]] | None = None,
        **extra: Any,
    ) -> tuple[Updates, MinimizeByLbfgsState]:
        need_params("minimize_by_lbfgs", params)
        function = _both(value_fn, value_and_grad_fn)
        x, dtype = tree.leaves(params), state.d.dtype
        free = _where_present(updates, params)

        def evaluate(x: Sequence[Tensor]) -> tuple[float, Tensor]:
            at = tree.unflatten(params, list(x))
            f, grads = function(at)
            g = flatten(_aligned(grads, at), dtype)
            return number(f), g if free is None else g * free

        if value is None:
            value = value_fn(params) if value_fn is not None else function(params)[0]
        rate = on_host(learning_rate(state.count) if callable(learning_rate) else learning_rate)
        g = flatten(_aligned(updates, params), dtype)
        moved, memory = iterate(evaluate, x, number(value), g, _unpack(state), Settings(rate, *rest), free)
        steps = tree.sub(tree.unflatten(params, list(moved)), params)
        return tree.cast_like(steps, updates), _pack(memory, state)

    return GradientTransformation(lambda params: _init(params, history_size), update, takes_shards=False)


def iterate(
    evaluate: Evaluate,
    x: Sequence[Tensor],
    f: float,
    g: Tensor,
    memory: Memory,
    settings: Settings,
    free: Tensor | None = None,
) -> tuple[Sequence[Tensor], Memory]:
    """Make up to `max_iter` iterations.

    Args:
        evaluate: The loss and its gradient at other parameters.
        x: The parameters.
        f: The loss there.
        g: Its flat gradient there.
        memory: What the last call returned; its `n_iter` is 0 at first.
        settings: The arguments of the rule.
        free: 0 for parameters that must not move and 1 for the others; `None` means that all may.

    Returns:
        The parameters afterwards, and what to remember.
    """
    evaluations, memory = 1, memory._replace(func_evals=memory.func_evals + 1)
    if largest(g) <= settings.tolerance_grad:
        return x, memory
    for remaining in reversed(range(settings.max_iter)):
        memory = _turn(memory, f, g, settings, free)
        slope = on_host(_dot(g, memory.d))
        if slope > -settings.tolerance_change:
            break
        count = 0
        if settings.line_search is not None:
            most = settings.max_eval - evaluations
            best, count = _search(evaluate, x, Trial(0, f, slope, g), memory, most)
            f, g, memory = best.f, best.payload, memory._replace(t=best.t)
        x = shift(x, memory.t, memory.d)
        if settings.line_search is None and remaining:
            f, g = evaluate(x)
            count = 1
        evaluations, memory = evaluations + count, memory._replace(func_evals=memory.func_evals + count)
        if (
            not remaining
            or evaluations >= settings.max_eval
            or largest(g) <= settings.tolerance_grad
            or largest(memory.d * memory.t) <= settings.tolerance_change
            or abs(f - memory.prev_f) < settings.tolerance_change
        ):
            break
    return x, memory


def flatten(leaves: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """One vector of all elements, in new memory; complex ones are pairs of reals."""
    reals = [tree.as_real(x).reshape(-1) for x in leaves]
    return tree.cast_leaf(torch.cat(reals), dtype) if reals else torch.zeros(0, dtype=dtype)


def shift(x: Sequence[Tensor], t: Real, d: Tensor) -> list[Tensor]:
    """`x + t d`, leaf by leaf in the dtypes of `x`."""
    shifted, start = [], 0
    for leaf in x:
        real = tree.as_real(leaf)
        piece = d[start : start + real.numel()].view(real.shape)
        new = tree.cast_leaf(torch.add(real, piece, alpha=float(t)), real.dtype)
        shifted.append(tree.as_complex(new, leaf))
        start += real.numel()
    return shifted


def largest(v: Tensor) -> Real:
    """The largest magnitude in a vector, 0 in an empty one."""
    return on_host(v.abs().max()) if v.numel() else 0.0


def on_host(x: Real) -> Real:
    """A number as it is, a tensor as a constant on the CPU: what waits for the device."""
    return x.detach().cpu() if isinstance(x, Tensor) else x


def number(x: Any) -> float:
    """The value of a loss."""
    return float(on_host(x))


def _turn(memory: Memory, f: float, g: Tensor, settings: Settings, free: Tensor | None) -> Memory:
    """Remember the last step, and choose the next direction and the step to try along it."""
    n_iter, t, alpha = memory.n_iter + 1, settings.learning_rate, memory.alpha
    if n_iter == 1:
        d, t = -g, min(1.0, on_host(1.0 / g.abs().sum())) * t
    else:
        memory = _push(memory, g, settings.history_size)
        d, alpha = _two_loops(memory, g)
    d = d if free is None else d * free
    return memory._replace(n_iter=n_iter, d=d, t=t, prev_g=g, prev_f=f, alpha=alpha)


def _push(memory: Memory, g: Tensor, history_size: int) -> Memory:
    """Add the pair of the last step if its curvature is positive."""
    y, s = g - memory.prev_g, memory.d * memory.t
    ys = _dot(y, s)
    if not on_host(ys) > 1e-10:
        return memory
    return memory._replace(
        y=(*memory.y, y)[-history_size:],
        s=(*memory.s, s)[-history_size:],
        rho=(*memory.rho, 1.0 / ys)[-history_size:],
        gamma=ys / _dot(y, y),
    )


def _two_loops(memory: Memory, g: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`-H g`, and the coefficients on the way, oldest first."""
    pairs, alpha = list(zip(memory.y, memory.s, memory.rho, strict=True)), []
    q = -g
    for y, s, rho in reversed(pairs):
        alpha.append(s.dot(q) * rho)
        q = torch.addcmul(q, y, alpha[-1], value=-1)
    r = q * memory.gamma
    for (y, s, rho), a in zip(pairs, reversed(alpha), strict=True):
        r = torch.addcmul(r, s, a - y.dot(r) * rho)
    return r, tuple(reversed(alpha))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """As torch computes it; in float64 where that overflows."""
    product = x.dot(y)
    if not math.isfinite(on_host(product)):
        wide = tree.wide_dtype(x.dtype, x.device)
        product = tree.cast_leaf(x, wide).dot(tree.cast_leaf(y, wide))
    return product


def _search(
    evaluate: Evaluate, x: Sequence[Tensor], origin: Trial, memory: Memory, max_steps: int
) -> tuple[Trial, int]:
    """The point that the line search finds, with its gradient, and the number of evaluations."""

    def phi(t: Real) -> Trial:
        f, g = evaluate(shift(x, t, memory.d))
        return Trial(t, f, on_host(_dot(g, memory.d)), g)

    return strong_wolfe(phi, origin, memory.t, largest(memory.d), max_steps=max_steps)


def _init(params: Params, history_size: int) -> MinimizeByLbfgsState:
    count, n = tree.count(params), sum(x.numel() * (1 + x.is_complex()) for x in tree.leaves(params))
    dtype = torch.promote_types(tree.real_dtype(tree.dtype(params, "promote")), torch.float32)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=count.device)

    return MinimizeByLbfgsState(
        count=count,
        n_iter=torch.zeros_like(count),
        func_evals=torch.zeros_like(count),
        d=zeros(n),
        t=zeros(),
        pairs=torch.zeros_like(count),
        y=zeros(history_size, n),
        s=zeros(history_size, n),
        rho=zeros(history_size),
        gamma=zeros() + 1,
        prev_g=zeros(n),
        prev_f=zeros(),
    )


def _unpack(state: MinimizeByLbfgsState) -> Memory:
    held = int(state.pairs)
    return Memory(
        n_iter=int(state.n_iter),
        func_evals=int(state.func_evals),
        y=tuple(state.y[:held]),
        s=tuple(state.s[:held]),
        rho=tuple(state.rho[:held]),
        **{key: getattr(state, key) for key in ("d", "t", "gamma", "prev_g", "prev_f")},
    )


def _pack(memory: Memory, old: MinimizeByLbfgsState) -> MinimizeByLbfgsState:
    def tensor(value: Any, was: Tensor) -> Tensor:
        if isinstance(value, tuple):
            if not value:
                return was
            return torch.cat([torch.stack(value).to(was.dtype), torch.zeros_like(was[len(value) :])])
        return value.to(was, copy=True) if isinstance(value, Tensor) else torch.full_like(was, value)

    new = {**memory._asdict(), "count": old.count + 1, "pairs": len(memory.y)}
    return MinimizeByLbfgsState(*[tensor(new[key], was) for key, was in old._asdict().items()])


def _both(
    value_fn: Callable[[Params], Tensor] | None, value_and_grad_fn: Callable[[Params], tuple[Any, Updates]] | None
) -> Callable[[Params], tuple[Any, Updates]]:
    """The function for loss and gradients together."""
    if value_and_grad_fn is not None:
        return value_and_grad_fn
    if value_fn is None:
        raise ValueError(
            "minimize_by_lbfgs needs the loss: call tx.update(updates, state, params, value_fn=f), "
            "where f(params) is a 0-dim tensor"
        )
    return tree.value_and_grad(value_fn)


def _aligned(updates: Updates, params: Params) -> list[Tensor]:
    """A gradient for every parameter, zeros where it is absent."""
    return tree.leaves(tree.map(lambda p, g: torch.zeros_like(p) if g is None else g, params, updates))


def _where_present(updates: Updates, params: Params) -> Tensor | None:
    """1 for elements with a gradient and 0 for those without; `None` if all have one."""
    marks = tree.map(lambda p, g: torch.full_like(p, g is not None, requires_grad=False), params, updates)
    absent = any(tree.leaves(tree.map(lambda p, g: g is None, params, updates)))
    return flatten(tree.leaves(marks)) if absent else None
