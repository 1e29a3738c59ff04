"""How Kronecker factors are fitted: one step of each of the groups that Li gives, on leaves of one shape at once."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._typing import Scalar, ScalarOrSchedule, Updates
from ._axes import parted
from ._kron_factors import (
    PROBES,
    Kind,
    KronFactors,
    Layout,
    adjoint,
    along,
    evened,
    gram,
    kind_of,
    norm_from_row,
    norm_in_probes,
    of_leaves,
    on_kinds,
    put_back,
    times_p,
    times_q,
)

MODES = ("Q0.5EQ1.5", "QUAD", "QEQ", "QEP", "EQ", "QUAD4P", "PRO4P")
OF_P = ("QUAD4P", "PRO4P")  # whose factors are those of P itself
_TURNED = ("Q0.5EQ1.5", "PRO4P")  # whose factors are turned to be symmetric
_TINY = torch.finfo(torch.bfloat16).tiny


class Fit(NamedTuple):
    """What a step of the fit hangs on, beside what it is given."""

    mode: str
    rate: ScalarOrSchedule
    beta: Scalar | None  # decay of the bounds; None where they are not kept, as in kron_torch
    damping: Scalar


class Drawn(NamedTuple):
    """The random numbers of one leaf."""

    noise: Tensor  # as large as the leaf, of unit variance and without correlation
    probes: list[Tensor]  # for each bound of a norm


def draw(fit: Fit, key: Tensor, kind: Kind, x: Tensor, *, pair: bool) -> Drawn:
    """The random numbers of a leaf, a function of its key; those of a stack are functions of a key each.

    Noise is a product of signs for each axis where only its covariance matters, which is the same: no more has to be
    drawn than a row and a column. A pair of which one is drawn takes normal numbers.
    """
    axes = len(kind.dense)
    shape = x.shape[x.ndim - axes :]

    def numbers(sampler: Callable[..., Tensor], n: int, *sizes: int) -> Tensor:
        like = torch.empty(sizes, dtype=torch.float64, device=x.device)
        keys = tree.fold_in(key, n)[(..., *[None] * len(sizes))]
        if not x.is_complex():
            return tree.cast_leaf(sampler(keys, like), x.dtype)
        parts = [sampler(tree.fold_in(keys, part), like) for part in range(2)]
        return tree.cast_leaf(torch.complex(*parts) / 2**0.5, x.dtype)

    if fit.mode == "EQ" and not pair:
        noise = numbers(tree.normal, 0, *shape)
    else:
        signs = torch.split(numbers(tree.rademacher, 0, sum(shape)), [*shape], -1)
        noise = functools.reduce(torch.mul, [_spread(own, axis, axes) for axis, own in enumerate(signs)])
    bounds = 0 if fit.beta is None else 2 if fit.mode in _TURNED else 1
    sizes = [size for size, is_dense in zip(shape, kind.dense, strict=True) if is_dense for _ in range(bounds)]
    if not sizes:
        return Drawn(noise, [])
    return Drawn(noise, [*torch.split(numbers(_even, 1, PROBES, sum(sizes)), sizes, -1)])


def _even(key: Tensor, like: Tensor) -> Tensor:
    """Numbers from -1 to 1: for a direction to look in as good as normal ones, which take ten times as long."""
    return 2 * tree.uniform(key, like) - 1


def moved(
    fit: Fit,
    layout: Layout,
    is_due: Any,
    counts: tuple[Tensor, ...],
    factors: Any,
    target: Updates,
    count: Tensor,
    key: Tensor,
    vectors: tuple[Updates, ...] = (),
    parts: Sequence[Any] = (),
) -> Any:
    """The factors after a step towards the whitening of some updates, or of pairs with vectors, if it is due.

    Where leaves move in parts, each in steps of its own, these say when the others than the first are due.
    """
    keys = tree.split_key_like(key, target)
    rates = (fit.rate(count),) if callable(fit.rate) else ()

    def step(old: Any, target: Updates, keys: Any, vectors: tuple[Updates, ...], rates: tuple[Tensor, ...]) -> Any:
        now = fit._replace(rate=rates[0]) if rates else fit
        new = fitted_to(
            now, layout, of_leaves(old, target), tree.leaves(target), tree.leaves(keys), *map(tree.leaves, vectors)
        )
        return put_back(old, target, new)

    dues = [is_due, *parts]
    for due, own in zip(dues, parted(factors, target, len(dues), KronFactors), strict=True):
        if tree.leaves(own):
            along = [tree.map(lambda _, x: x, own, x) for x in (keys, *vectors)]
            factors = tree.every(due, counts, step, factors, own, along[0], tuple(along[1:]), rates)
    return factors


def fitted_to(
    fit: Fit,
    layout: Layout,
    factors: Sequence[KronFactors],
    leaves: Sequence[Any],
    keys: Sequence[Tensor],
    vectors: Sequence[Any] | None = None,
) -> list[KronFactors]:
    """The factors of leaves after one step towards the whitening of some tensors, or of pairs with vectors.

    Args:
        fit: How.
        layout: Which axes there are.
        factors: The factors of each leaf.
        leaves: Gradients, their means, or products of the Hessian with the vectors. Where they lie in shards, each
            process computes its share.
        keys: For each leaf what its random numbers are a function of.
        vectors: The vectors that the Hessian was multiplied with.
    """
    chosen = [i for i, own in enumerate(factors) if own.q]
    rows = []
    xs, others = tree.whole([*leaves]), tree.whole([*(vectors or ())])
    for i in chosen:
        own, shape = factors[i], layout.shape(xs[i].shape)
        given = [xs[i]] if vectors is None else [xs[i], others[i]]
        pair = [tree.cast_leaf(x.reshape(shape), own.q[0].dtype) for x in given]
        rows.append((keys[i], *own.q, *own.lipschitz, *pair))

    def change(kind: Kind, key: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        axes = len(kind.dense)
        bounds = axes if fit.beta is not None else 0
        x, *vector = rest[axes + bounds :]
        drawn = draw(fit, key, kind, x, pair=bool(vector))
        return _changed(fit, kind, x, rest[:axes], rest[axes : axes + bounds], [*vector, None][0], drawn)

    kinds = [kind_of(factors[i]) for i in chosen]

    def some(own: list[int]) -> list[tuple[Tensor, ...]]:
        return on_kinds(change, [rows[i] for i in own], [kinds[i] for i in own])

    found = [*factors]
    like = [(*factors[i].q, *factors[i].lipschitz) for i in chosen]
    for i, result in zip(chosen, tree.shared(some, [leaves[i] for i in chosen], like), strict=True):
        axes = len(factors[i].q)
        found[i] = KronFactors([*result[:axes]], [*result[axes:]])
    return found


def _changed(
    fit: Fit,
    kind: Kind,
    x: Tensor,
    q: Sequence[Tensor],
    bounds: Sequence[Tensor],
    vector: Tensor | None,
    drawn: Drawn,
) -> tuple[Tensor, ...]:
    dense = kind.dense
    if fit.mode == "EQ":
        x = x if fit.beta is None else x + tree.cast_leaf(fit.damping * drawn.noise, x.dtype)
        terms = _terms_of_triangular(x, drawn.noise if vector is None else vector, q, dense)
    else:
        q = evened(q, dense) if fit.mode == "QEP" else q
        amount = tree.cast_leaf(fit.damping + torch.finfo(x.dtype).eps * x.abs(), x.dtype)
        y = _bounded(times_p(x + amount * drawn.noise, q, dense, fitted=fit.mode in OF_P), len(q))
        terms = _terms(fit.mode, y, vector, q, dense)
    probes = iter(drawn.probes)
    changed, new_bounds = [], []
    for i, (own, is_dense, (first, second)) in enumerate(zip(q, dense, terms, strict=True)):
        size = _size(first, second, is_dense, next(probes) if fit.beta is not None and is_dense else None)
        bound = size + _TINY
        if fit.beta is not None:
            kept = tree.cast_leaf(fit.beta * bounds[i] + (1 - fit.beta) * size, size.dtype)
            bound = torch.maximum(kept, size)
            new_bounds.append(bound)
        assert not callable(fit.rate)
        rate = tree.cast_leaf(fit.rate / bound, size.dtype)
        probe = next(probes) if fit.mode in _TURNED and is_dense else None
        changed.append(_UPDATES[fit.mode](own, first, second, rate, is_dense, probe))
    return (*changed, *new_bounds)


def _spread(own: Tensor, axis: int, axes: int) -> Tensor:
    return own.reshape(*own.shape[:-1], *[1] * axis, own.shape[-1], *[1] * (axes - 1 - axis))


Terms = list[tuple[Tensor, Any]]


def _terms(mode: str, y: Tensor, vector: Tensor | None, q: Sequence[Tensor], dense: Sequence[bool]) -> Terms:
    axes, found = len(q), []
    numel = math.prod(y.shape[y.ndim - axes :])
    for i, (own, is_dense) in enumerate(zip(q, dense, strict=True)):
        share = numel / own.shape[-1]
        left = along(own, is_dense, y, i, axes) if mode == "QEP" else y
        if vector is not None:
            right = along(own, is_dense, vector, i, axes) if mode == "QEP" else vector
            second: Any = gram(right, is_dense, i, axes)
        elif mode == "QEP":
            second = share * (own @ adjoint(own) if is_dense else _squares(own))
        else:
            second = share
        found.append((gram(left, is_dense, i, axes), second))
    return found


def _terms_of_triangular(x: Tensor, v: Tensor, q: Sequence[Tensor], dense: Sequence[bool]) -> Terms:
    """Of `Q x`, and of `Q^-H v`, along each axis."""
    axes = len(q)
    a, b = _bounded(times_q(x, q, dense), axes), v
    for i, (own, is_dense) in enumerate(zip(q, dense, strict=True)):
        b = _solved(own, b, i, axes) if is_dense else along(1 / _conj(own), False, b, i, axes)
    return [(gram(a, own, i, axes), gram(b, own, i, axes)) for i, own in enumerate(dense)]


def _bounded(y: Tensor, axes: int) -> Tensor:
    """The same tensor, but for one whose squares would be infinite, which is brought down.

    What a factor does then is the same: of the gradient by it only the direction counts, and what it should be is lost
    beside it.
    """
    largest = y.abs().amax(tuple(range(-axes, 0)), keepdim=True)
    bound = torch.finfo(y.dtype).max ** 0.5 / math.prod(y.shape[y.ndim - axes :])
    return y / torch.clamp(largest / bound, min=1.0)


def _solved(q: Tensor, b: Tensor, axis: int, axes: int) -> Tensor:
    """`q^-H` times a tensor along one of its last axes, for upper triangular matrices."""
    moved = b.movedim(axis - axes, -axes) if axis else b
    flat = moved.reshape(*moved.shape[: moved.ndim - axes], moved.shape[-axes], -1)
    solved: Tensor = torch.linalg.solve_triangular(adjoint(q), flat, upper=False).reshape(moved.shape)
    return solved.movedim(-axes, axis - axes) if axis else solved


def _squares(x: Tensor) -> Tensor:
    return (x * x.conj()).real if x.is_complex() else x * x


def _conj(x: Tensor) -> Tensor:
    return torch.conj_physical(x) if x.is_complex() else x


def _size(first: Tensor, second: Any, dense: bool, probes: Tensor | None) -> Tensor:
    """The norm of the sum of both terms, roughly."""
    total = first if isinstance(second, float) else first + second
    if not dense:
        size = total.amax(-1)
    elif probes is None:
        size = norm_from_row(total)
    else:
        diagonal = total.diagonal(dim1=-2, dim2=-1)
        size = norm_in_probes(total, probes, (diagonal.real if total.is_complex() else diagonal).amax(-1))
    return size + second if isinstance(second, float) else size


# Steps of one factor


def _minus(first: Tensor, second: Any, q: Tensor, dense: bool, *, left: bool = True) -> Tensor:
    """`(first - second) q`, or from the right."""
    if dense and isinstance(second, float):
        return (first @ q if left else q @ first) - second * q
    difference: Tensor = first - second
    if not dense:
        return difference * q
    return difference @ q if left else q @ difference


def _scaled(rate: Tensor, x: Tensor, dense: bool) -> Tensor:
    return rate[..., None, None] * x if dense else rate[..., None] * x


Probe = Tensor | None


def _by_procrustes(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, probe: Probe) -> Tensor:
    q = q - _scaled(rate, _minus(first, second, q, dense), dense)
    if not dense:
        return q
    assert probe is not None
    r = adjoint(q) - q
    r = r / (norm_in_probes(r, probe, r.abs().amax((-2, -1))) + torch.finfo(q.dtype).smallest_normal)[..., None, None]
    rq = r @ q
    # tr(r rq) needs no product of matrices; r is skew
    first_trace = _trace(rq)
    second_trace = -_real(r.conj() * rq if r.is_complex() else r * rq).sum((-2, -1))
    falls = second_trace < 0
    step = torch.where(falls, torch.clamp(-first_trace / torch.where(falls, second_trace, 1.0), max=1 / 8), 1 / 8)
    step = step[..., None, None]
    return q + step * (r @ (q + 0.5 * step * rq))


def _trace(x: Tensor) -> Tensor:
    return _real(x.diagonal(dim1=-2, dim2=-1)).sum(-1)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _by_left(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, _: Probe) -> Tensor:
    return q - _scaled(rate, _minus(first, second, q, dense), dense)


def _by_right(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, _: Probe) -> Tensor:
    return q - _scaled(rate, _minus(first, second, q, dense, left=False), dense)


def _triangular(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, _: Probe) -> Tensor:
    if not dense:
        return q - _scaled(rate, (first - second) * q, dense)
    return q - _scaled(rate, torch.triu(first - second) @ q, dense)


def _quadratic(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, _: Probe) -> Tensor:
    if not dense:
        gain = 1 - _scaled(rate, first - second, dense)
        return q * gain * gain
    p = q - _scaled(rate, _minus(first, second, q, dense), dense)
    p = p - _scaled(rate, _minus(first, second, p, dense, left=False), dense)
    return (p + adjoint(p)) / 2


def _by_half(q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, probe: Probe) -> Tensor:
    return _quadratic(q, first, second, rate / 2, dense, probe)


def _by_procrustes_twice_as_far(
    q: Tensor, first: Tensor, second: Any, rate: Tensor, dense: bool, probe: Probe
) -> Tensor:
    return _by_procrustes(q, first, second, 2 * rate, dense, probe)


_UPDATES: dict[str, Callable[..., Tensor]] = {
    "Q0.5EQ1.5": _by_procrustes,
    "QUAD": _by_half,
    "QEQ": _by_right,
    "QEP": _by_left,
    "EQ": _triangular,
    "QUAD4P": _quadratic,
    "PRO4P": _by_procrustes_twice_as_far,
}
