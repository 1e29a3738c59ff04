"""PSGD with a preconditioner of low rank and a diagonal, over all parameters as one vector."""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative, check_positive, check_seed, check_steps
from ..._recipe import factory
from ..._state_spec import HostCount, LeafSpec
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._kron_factors import Probability, check_probability, due

Vectors = Sequence[Tensor]  # a long vector, or some as columns, leaf by leaf


class LRAFactors(NamedTuple):
    """`Q = (I + U V^T) diag(d)` of `P = Q^T Q`."""

    u: Annotated[Any, LeafSpec("factor"), "exact"]  # (numel, rank) for each leaf
    v: Annotated[Any, LeafSpec("factor"), "exact"]  # (numel, rank) for each leaf
    d: Annotated[Any, LeafSpec("factor"), "exact"]  # (numel, 1) for each leaf


class LRAState(NamedTuple):
    """The memory of PSGD in low rank."""

    count: Count  # () int64, steps taken
    steps: HostCount  # () int64 on the CPU, steps taken
    since: HostCount  # () int64 on the CPU, steps since the factors moved
    mu: Updates  # running mean of the gradients, like params; empty if momentum is 0
    factors: Annotated[Any, LeafSpec("factor"), "exact"]  # LRAFactors
    lipschitz: Annotated[Tensor, "exact"]  # (3,), bounds on how fast the gradients by u, v and d change


@factory
def scale_by_lra_whiten(
    rank: int = 10,
    momentum: Scalar = 0.0,
    preconditioner_lr: Scalar = 0.1,
    beta_lipschitz: Scalar = 0.9,
    damping: Scalar = 1e-9,
    *,
    preconditioner_init_scale: Scalar | None = None,
    preconditioner_update_probability: Probability = 1.0,
    whiten_grad: bool = True,
    grad_clip_max_amp: Scalar | None = None,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Multiply the mean of all leaves, as one vector, by a matrix of low rank and a diagonal that whitens gradients.

    Maths:
        beta = min((t - 1) / t, momentum),  mu <- beta mu + (1 - beta) g
        Q = (I + U V^T) diag(d),  P = Q^T Q,  h = g + damping v,  v normal
        a = Q h,  b = Q^-T v,  e = (P h) h - v (P^-1 v)
        d <- d - m e d,  and U <- U - m (a a^T - b b^T) V (I + V^T U), or V <- V - m (I + V U^T) (a a^T - b b^T) U,
            by a coin; each with m = preconditioner_lr / L, L <- max(beta_lipschitz L + (1 - beta_lipschitz) l, l)
        update <- P mu, brought down to a root mean square of `grad_clip_max_amp`

    Args:
        rank: Rank of `U V^T`, >= 1.
        momentum: Largest decay of the mean, no unit, in [0, 1).
        preconditioner_lr: Step of the factors relative to what keeps them stable, no unit, >= 0.
        beta_lipschitz: Decay of the bounds `L`, no unit, in [0, 1).
        damping: Size of noise, in the unit of `|g|`, >= 0.
        preconditioner_init_scale: What `d` starts as, > 0; `None` means `(mean g^4 + damping^4)^(-1/8)` of the first
            step.
        preconditioner_update_probability: How often factors move, see `scale_by_kron_whiten`.
        whiten_grad: Whether the gradients are whitened, or their mean.
        grad_clip_max_amp: Largest root mean square of the result, > 0; `None` means any.
        seed: Of the random numbers.

    Shapes:
        state: count () int64; steps, since () int64 on the CPU; mu like params, () without momentum; factors two
            (numel, rank) and one (numel, 1) per leaf, and (3,). Memory: (2 rank + 1) x params. Leaves in shards are
            made whole in every step.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `init` and `update` if a leaf is complex.

    Source: Li, 2024, arXiv:2402.11858.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_lra_whiten(rank=1)
        >>> g = torch.tensor([100.0, -100.0, 100.0, -100.0])
        >>> tx.update(g, tx.init(g))[0].sign()
        tensor([ 1., -1.,  1., -1.])
    """
    check_steps(rank=rank, at_least=1)
    check_decay(momentum=momentum, beta_lipschitz=beta_lipschitz)
    check_nonnegative(preconditioner_lr=preconditioner_lr, damping=damping)
    if preconditioner_init_scale is not None:
        check_positive(preconditioner_init_scale=preconditioner_init_scale)
    check_probability(preconditioner_update_probability=preconditioner_update_probability)
    if grad_clip_max_amp is not None:
        check_positive(grad_clip_max_amp=grad_clip_max_amp)
    check_seed(seed=seed)
    has_mean = isinstance(momentum, Tensor) or momentum > 0
    if not whiten_grad and not has_mean:
        raise ValueError(f"momentum must be > 0 to whiten it, got {momentum!r}")
    always = not callable(preconditioner_update_probability) and preconditioner_update_probability == 1
    is_due: Any = 1 if always else due(preconditioner_update_probability)
    moved = functools.partial(_moved, preconditioner_lr, beta_lipschitz, damping)

    def init(params: Params) -> LRAState:
        mu = tree.init_moment(params) if has_mean else ()
        scale = 1.0 if preconditioner_init_scale is None else preconditioner_init_scale
        factors, bounds = _start(params, rank, scale, seed)
        return LRAState(tree.count(params), tree.host_count(params), tree.host_count(params), mu, factors, bounds)

    def update(
        updates: Updates, state: LRAState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LRAState]:
        if not tree.leaves(updates):
            return updates, state
        t, counts, factors = tree.wide(state.count), (state.steps, state.since), state.factors
        beta = tree.clip(t / (t + 1), max_value=momentum)
        mean = tree.update_moment(updates, state.mu, beta, 1) if has_mean else updates
        target = tree.map(_column, tree.whole(updates if whiten_grad else mean))
        if not tree.leaves(target):
            return updates, state
        if preconditioner_init_scale is None:
            first = functools.partial(_scaled, damping)
            factors = tree.every(lambda n: n == 0, state.steps, first, factors, target)
        key = tree.fold_in(seed, state.count)
        factors, bounds = tree.every(is_due, counts, moved, (factors, state.lipschitz), target, key)
        columns = tree.map(_column, tree.whole(mean))
        us, vs, ds = [tree.leaves(tree.map(lambda _, x: x, columns, own)) for own in factors]
        found = _times_p(us, vs, ds, tree.leaves(columns))
        direction = tree.map(_in_shape, updates, tree.unflatten(columns, found))
        bounded = _bounded(direction, grad_clip_max_amp)
        since = state.since if always else torch.where(is_due(*counts), 0, state.since + 1)
        mu = tree.carry(mean, state.mu) if has_mean else ()
        return tree.cast_like(bounded, updates), LRAState(state.count + 1, state.steps + 1, since, mu, factors, bounds)

    return GradientTransformation(init, update)


def _start(params: Params, rank: int, scale: Scalar, seed: int | Tensor) -> tuple[LRAFactors, Tensor]:
    def columns(p: Tensor, n: int) -> Tensor:
        if p.is_complex():
            raise ValueError(f"scale_by_lra_whiten takes real leaves only, got one of {p.dtype}")
        return torch.zeros((p.numel(), n), dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)

    def random(part: int) -> Updates:
        drawn = tree.random_like(tree.fold_in(seed, -1 - part), tree.map(lambda p: columns(p, rank), params))
        return tree.map(lambda x: tree.cast_leaf(x * (0.1**0.5 / tree.norm(drawn, wide=True)), x.dtype), drawn)

    d = tree.map(lambda x: _scaled_leaf(x + 1, scale) if x.numel() else x, tree.map(lambda p: columns(p, 1), params))
    wide = functools.reduce(torch.promote_types, [x.dtype for x in tree.leaves(d)], torch.float32)
    bounds = torch.zeros(3, dtype=wide, device=tree.count(params).device)
    return LRAFactors(random(0), random(1), d), bounds


def _column(x: Tensor) -> Tensor | None:
    return x.reshape(-1, 1) if x.numel() else None


def _in_shape(g: Tensor, y: Tensor | None) -> Tensor:
    return torch.zeros_like(tree.whole(g)) if y is None else y.reshape(g.shape)


def _scaled_leaf(d: Tensor, scale: Scalar) -> Tensor:
    return tree.cast_leaf(d * scale, d.dtype) if d.numel() else d  # strides of nothing stay, for compilers


def _bounded(direction: Updates, amp: Scalar | None) -> Updates:
    return direction if amp is None else tree.shrink(direction, tree.rms(direction, wide=True), amp)


def _scaled(damping: Scalar, factors: LRAFactors, target: Updates) -> LRAFactors:
    """The diagonal that makes the first results about one."""
    fourth = tree.sum(tree.map(lambda x: tree.wide(x) ** 4, target)) / max(tree.size(target), 1) + damping**4
    nothing = fourth == 0
    scale = torch.where(nothing, 1.0, torch.where(nothing, 1.0, fourth) ** (-1 / 8))
    return factors._replace(d=tree.map(lambda d: _scaled_leaf(d, scale), factors.d))


def _dot(xs: Vectors, ys: Vectors) -> Tensor:
    """`X^T Y` of long columns."""
    return functools.reduce(torch.add, [x.transpose(-1, -2) @ y for x, y in zip(xs, ys, strict=True)])


def _plus(xs: Vectors, us: Vectors, small: Tensor) -> list[Tensor]:
    """`X + U small`."""
    return [x + u @ small for x, u in zip(xs, us, strict=True)]


def _times(ds: Vectors, xs: Vectors) -> list[Tensor]:
    return [d * x for d, x in zip(ds, xs, strict=True)]


def _times_p(us: Vectors, vs: Vectors, ds: Vectors, xs: Vectors) -> list[Tensor]:
    """`P x`, in the dtype of the factors."""
    y = _times(ds, [tree.cast_leaf(x, d.dtype) for x, d in zip(xs, ds, strict=True)])
    y = _plus(y, us, _dot(vs, y))
    return _times(ds, _plus(y, vs, _dot(us, y)))


def _balanced(us: Vectors, vs: Vectors) -> tuple[list[Tensor], list[Tensor]]:
    """`U` and `V` of one norm, turned towards `U^T U = V^T V`."""
    uu, vv = _dot(us, us), _dot(vs, vs)
    sizes = _trace(uu), _trace(vv)
    rho = (sizes[0] / sizes[1]) ** (1 / 4)
    uu, vv = uu / rho**2, vv * rho**2
    e = 0.1 * (uu - vv) / (_trace(uu) + _trace(vv))
    half = 0.5 * (e @ e)
    us, vs = [u / rho for u in us], [v * rho for v in vs]
    return _plus(us, us, half - e), _plus(vs, vs, half + e)


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


def _moved(
    rate: Scalar, beta: Scalar, damping: Scalar, old_state: tuple[LRAFactors, Tensor], target: Updates, key: Tensor
) -> tuple[LRAFactors, Tensor]:
    """The factors after a step towards the whitening of a vector, and the bounds."""
    factors, kept = old_state
    old = [tree.map(lambda _, x: x, target, own) for own in factors]
    us, vs, ds = map(tree.leaves, old)
    noise = tree.leaves(tree.random_like(key, target))
    noise = [tree.cast_leaf(n, d.dtype) for n, d in zip(noise, ds, strict=True)]
    xs = [tree.cast_leaf(x, d.dtype) for x, d in zip(tree.leaves(target), ds, strict=True)]
    h = [x + tree.cast_leaf(damping * n, n.dtype) for x, n in zip(xs, noise, strict=True)]
    # One whose squares would be infinite is brought down: only its direction counts beside them.
    room = torch.finfo(h[0].dtype).max ** 0.5 / sum([x.numel() for x in h])
    down = 1 / torch.clamp(_largest(h) / room, min=1.0)
    h = [x * tree.cast_leaf(down, x.dtype) for x in h]
    us, vs = _balanced(us, vs)
    inner = _dot(vs, us)
    inner = inner + torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    # a = Q h and b = Q^-T n
    scaled = _times(ds, h)
    a = _plus(scaled, us, _dot(vs, scaled))
    ph = _times(ds, _plus(a, vs, _dot(us, a)))
    over = [n / d for n, d in zip(noise, ds, strict=True)]
    b = _plus(over, vs, -_solve(inner.transpose(-1, -2), _dot(us, over)))
    pn = [x / d for x, d in zip(_plus(b, us, -_solve(inner, _dot(vs, b))), ds, strict=True)]
    gains, losses = _times(ph, h), _times(noise, pn)
    bound_d = _bound(beta, kept[2], _largest(gains) + _largest(losses))
    step = rate / bound_d
    moved_d = [
        d - tree.cast_leaf(step * (gain - loss) * d, d.dtype) for d, gain, loss in zip(ds, gains, losses, strict=True)
    ]
    moved_u, bound_u = _one(rate, beta, kept[0], a, b, us, vs, inner)
    moved_v, bound_v = _other(rate, beta, kept[1], a, b, us, vs)
    heads = tree.uniform(tree.fold_in(key, "coin"), bound_d) < 0.5
    us = [torch.where(heads, new, u) for new, u in zip(moved_u, us, strict=True)]
    vs = [torch.where(heads, v, new) for new, v in zip(moved_v, vs, strict=True)]
    bounds = torch.stack([torch.where(heads, bound_u, kept[0]), torch.where(heads, kept[1], bound_v), bound_d])
    new = [tree.unflatten(own, found) for own, found in zip(old, (us, vs, moved_d), strict=True)]
    return LRAFactors(*[tree.carry(now, was) for now, was in zip(new, factors, strict=True)]), bounds


def _bound(beta: Scalar, kept: Tensor, now: Tensor) -> Tensor:
    now = tree.cast_leaf(now, kept.dtype)
    return torch.maximum(tree.cast_leaf(beta * kept + (1 - beta) * now, kept.dtype), now)


def _largest(xs: Vectors) -> Tensor:
    return tree.norm([*xs], ord=math.inf)


def _size(xs: Vectors) -> Tensor:
    return tree.norm([*xs], wide=True)


def _one(
    rate: Scalar, beta: Scalar, kept: Tensor, a: Vectors, b: Vectors, us: Vectors, vs: Vectors, inner: Tensor
) -> tuple[list[Tensor], Tensor]:
    """`U` after its step."""
    av, bv = _dot(a, vs), _dot(b, vs)
    back = [[v @ x.transpose(-1, -2) for v in vs] for x in (av, bv)]
    bound = _bound(beta, kept, _size(a) * _size(back[0]) + _size(b) * _size(back[1]))
    step = rate / bound
    pairs = zip(us, a, b, strict=True)
    return [u - tree.cast_leaf(step * (x @ (av @ inner) - y @ (bv @ inner)), u.dtype) for u, x, y in pairs], bound


def _other(
    rate: Scalar, beta: Scalar, kept: Tensor, a: Vectors, b: Vectors, us: Vectors, vs: Vectors
) -> tuple[list[Tensor], Tensor]:
    """`V` after its step."""
    au, bu = _dot(a, us), _dot(b, us)
    back = [[u @ x.transpose(-1, -2) for u in us] for x in (au, bu)]
    bound = _bound(beta, kept, _size(a) * _size(back[0]) + _size(b) * _size(back[1]))
    step = rate / bound
    left = _plus(a, vs, au.transpose(-1, -2)), _plus(b, vs, bu.transpose(-1, -2))
    pairs = zip(vs, *left, strict=True)
    return [v - tree.cast_leaf(step * (x @ au - y @ bu), v.dtype) for v, x, y in pairs], bound


@factory
def lra_whiten(
    learning_rate: ScalarOrSchedule,
    rank: int = 10,
    momentum: Scalar = 0.9,
    preconditioner_lr: Scalar = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    preconditioner_init_scale: Scalar | None = None,
    preconditioner_update_probability: Probability = 1.0,
    seed: int | Tensor = 0,
) -> GradientTransformation:
    """Step along gradients whitened in low rank, PSGD over all parameters as one vector, with decoupled decay.

    Maths:
        update <- -learning_rate (scale_by_lra_whiten(g) + weight_decay p)

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        rank: Rank of the part beside the diagonal, >= 1.
        momentum: Largest decay of the mean, no unit, in [0, 1).
        preconditioner_lr: Step of the factors relative to what keeps them stable, no unit, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        preconditioner_init_scale: What `d` starts as, > 0; `None` means one found in the first step.
        preconditioner_update_probability: How often factors move, see `scale_by_kron_whiten`.
        seed: Of the random numbers.

    Shapes:
        params: needed. state: that of `scale_by_lra_whiten`.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Li, 2024, arXiv:2402.11858.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.lra_whiten(0.1, rank=1), torch.tensor([100.0, -100.0, 100.0])
        >>> tx.update(w, tx.init(w), w)[0].sign()
        tensor([-1.,  1., -1.])
    """
    rule = scale_by_lra_whiten(
        rank,
        momentum,
        preconditioner_lr,
        preconditioner_init_scale=preconditioner_init_scale,
        preconditioner_update_probability=preconditioner_update_probability,
        seed=seed,
    )
    return chain(rule, add_decayed_weights(weight_decay, mask), descend(learning_rate))


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """The solution of a system, without a look at whether there was one: that would wait for the device."""
    found: Tensor = torch.linalg.solve_ex(a, b).result
    return found
