"""Kronecker factors of a preconditioner: for each axis of a leaf a matrix or, where that is too large, its diagonal.

What works on leaves of one shape is written for tensors with any axes in front of those of the leaf.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from ... import tree
from ..._checks import check_choice, check_positive
from ..._typing import Params, Scalar, Updates

MEMORY_SAVE_MODES = (None, "one_diag", "smart_one_diag", "all_diag")
MERGES = (False, True, "square")
PROBES = 32  # vectors in which a norm is looked for, as the authors do
BALANCE = 100  # steps from one balancing of factors to the next; the authors flip a coin of one in a hundred
_ALL = 1 << 62

# No `float`, which would be an argument that may change: the host decides by it.
Fixed = SupportsFloat
Probability = Fixed | Callable[[Any], Any]


class KronFactors(NamedTuple):
    """The preconditioner of a leaf, `Q = Q_1 x ... x Q_k` of `P = Q^H Q`."""

    q: list[Tensor]  # for each axis a matrix, or a vector: the diagonal of one
    lipschitz: list[Tensor]  # for each axis a bound on how fast the gradient by its factor changes, 0-dim; may be empty


@dataclass(frozen=True)
class Layout:
    """Which axes a leaf is taken to have, and which of them get a matrix."""

    max_size: float = math.inf
    max_skew: float = math.inf
    min_ndim: int = 0
    squeezed: bool = False
    merged: Any = False
    memory_save_mode: str | None = None

    def __post_init__(self) -> None:
        check_choice("memory_save_mode", self.memory_save_mode, MEMORY_SAVE_MODES)
        check_choice("merge_dims", self.merged, MERGES)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes that a leaf of this shape is taken to have: at least one."""
        sizes = [size for size in shape if size != 1] if self.squeezed else [*shape]
        if self.merged and len(sizes) > 2:
            splits = [(math.prod(sizes[:i]), math.prod(sizes[i:])) for i in range(1, len(sizes))]
            if self.merged == "square":
                ratios = [max(split) / max(min(split), 1) for split in splits]
                return splits[ratios.index(min(ratios))]
            first, last = splits[0], splits[-1]  # the difference has a sign in the authors' code
            return last if last[1] - last[0] <= first[1] - first[0] else first
        return tuple(sizes) or (1,)

    def dense(self, shape: Sequence[int]) -> list[bool]:
        """For each of these axes, whether it gets a matrix."""
        numel = math.prod(shape)
        small = [
            1 < size <= self.max_size and size**2 <= self.max_skew * numel and len(shape) >= self.min_ndim
            for size in shape
        ]
        largest = len(shape) - 1 - [*reversed(shape)].index(max(shape))
        stands_out = len(shape) > 1 and sorted(shape)[-1] > sorted(shape)[-2]
        if self.memory_save_mode == "all_diag":
            return [False] * len(shape)
        if self.memory_save_mode == "one_diag" or (self.memory_save_mode == "smart_one_diag" and stands_out):
            small[largest] = False
        return small


def start(params: Params, layout: Layout, scale: Scalar, dtype: torch.dtype | None, *, bounds: bool) -> Any:
    """The factors of each leaf: multiples of the identity; none of a leaf without elements."""

    def leaf(p: Tensor) -> KronFactors:
        if not p.numel():
            return KronFactors([], [])
        own = torch.promote_types(p.dtype, torch.float32) if dtype is None else dtype
        shape = layout.shape(p.shape)
        each = scale ** (1 / len(shape))
        q = [_unit(size, dense, own, p.device) * each for size, dense in zip(shape, layout.dense(shape), strict=True)]
        q = [tree.cast_leaf(x, own) for x in q]
        real = tree.real_dtype(own)
        return KronFactors(q, [torch.zeros((), dtype=real, device=p.device) for _ in q if bounds])

    return tree.map(leaf, params)


def _unit(size: int, dense: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    if dense:
        return torch.eye(size, dtype=dtype, device=device)
    return torch.ones(size, dtype=dtype, device=device)


def of_leaves(factors: Any, updates: Updates) -> list[KronFactors]:
    """The factors of the leaves that there are, in their order."""
    nodes = {path: node for path, node in tree.walk(factors) if isinstance(node, KronFactors)}
    return [nodes[path] for path, _ in tree.leaves_with_path(updates)]


def put_back(factors: Any, updates: Updates, new: Sequence[KronFactors]) -> Any:
    """The tree of factors, with those of the leaves that there are in their places."""
    found = dict(zip([path for path, _ in tree.leaves_with_path(updates)], new, strict=True))

    def change(path: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        return isinstance(node, KronFactors), found.get(path, node)

    return tree.map_nodes(change, factors)


def on_kinds(f: Callable[..., Any], rows: Sequence[Sequence[Tensor]], kinds: Sequence[Any]) -> list[Any]:
    """`f(kind, *row)` for each row, for small rows of one kind and one shape at once."""
    found: list[Any] = [None] * len(rows)
    for kind in dict.fromkeys(kinds):
        chosen = [i for i, own in enumerate(kinds) if own == kind]
        columns = [list(column) for column in zip(*[rows[i] for i in chosen], strict=True)]
        largest = {} if any(kind.dense) else {"largest": _ALL}
        made = tree.batched(functools.partial(f, kind), *columns, **largest)
        results = zip(*made, strict=True) if isinstance(made, tuple) else made
        for i, result in zip(chosen, results, strict=True):
            found[i] = result
    return found


class Kind(NamedTuple):
    """What rows must have in common to be computed alike."""

    dense: tuple[bool, ...]  # for each axis whether it has a matrix


def kind_of(factors: KronFactors) -> Kind:
    """The kind of a leaf with these factors."""
    return Kind(tuple([x.ndim == 2 for x in factors.q]))


def precondition(layout: Layout, factors: Sequence[KronFactors], own: Sequence[Any], *, fitted: bool) -> list[Tensor]:
    """`P x` for each leaf, whole; with `fitted`, the factors are those of `P` itself.

    Where leaves lie in shards, each process computes its share.
    """
    xs = tree.whole([*own])
    chosen = [i for i, own in enumerate(factors) if own.q]
    shaped = [tree.cast_leaf(xs[i], factors[i].q[0].dtype).reshape(layout.shape(xs[i].shape)) for i in chosen]
    rows = [(x, *factors[i].q) for i, x in zip(chosen, shaped, strict=True)]

    def product(kind: Kind, x: Tensor, *q: Tensor) -> Tensor:
        return times_p(x, q, kind.dense, fitted=fitted)

    found = [*xs]
    kinds = [kind_of(factors[i]) for i in chosen]

    def some(own: list[int]) -> list[tuple[Tensor, ...]]:
        return [(y,) for y in on_kinds(product, [rows[i] for i in own], [kinds[i] for i in own])]

    for i, (y,) in zip(chosen, tree.shared(some, [own[i] for i in chosen], [[x] for x in shaped]), strict=True):
        found[i] = y.reshape(xs[i].shape)
    return found


def balanced(factors: Any) -> Any:
    """The same preconditioners, the factors of each as large as each other in their largest elements."""

    def change(_: tuple[Any, ...], node: Any) -> tuple[bool, Any]:
        if not isinstance(node, KronFactors):
            return False, None
        return True, KronFactors(evened(node.q), node.lipschitz) if len(node.q) > 1 else node

    return tree.map_nodes(change, factors)


def evened(q: Sequence[Tensor], dense: Sequence[bool] | None = None) -> list[Tensor]:
    """Factors of one leaf with the same largest magnitudes; the product stays."""
    ndims = [x.ndim for x in q] if dense is None else [1 + own for own in dense]
    sizes = [x.abs().amax(tuple(range(-n, 0)), keepdim=True) for x, n in zip(q, ndims, strict=True)]
    logs = [size.reshape(size.shape[: size.ndim - n]).log() for size, n in zip(sizes, ndims, strict=True)]
    mean = functools.reduce(torch.add, logs) / len(logs)
    return [x * (mean - log).exp().reshape(*log.shape, *[1] * n) for x, log, n in zip(q, logs, ndims, strict=True)]


# When factors move


def check_probability(**values: Any) -> None:
    """Accept numbers in (0, 1], and functions of the number of steps."""
    for name, value in values.items():
        if callable(value):
            continue
        check_positive(**{name: value})
        if isinstance(value, Tensor) or value > 1:
            raise ValueError(f"{name} must be a number in (0, 1] or a schedule, got {value!r}")


def due(probability: Probability) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether the factors are changed in a step: as soon as 1 / probability steps have passed since they were."""

    def is_due(steps: Tensor, since: Tensor) -> Tensor:
        now = probability(steps) if callable(probability) else torch.tensor(float(probability), dtype=torch.float64)
        return since + 1 >= 1 / now

    return is_due


# Products, of tensors whose last axes are those of a leaf


def adjoint(x: Tensor) -> Tensor:
    """The conjugate transpose, which is no view that is still to be resolved."""
    turned = x.transpose(-1, -2)
    return torch.conj_physical(turned) if turned.is_complex() else turned


def along(q: Tensor, dense: bool, x: Tensor, axis: int, axes: int) -> Tensor:
    """A factor times a tensor along one of its last axes."""
    if not dense:
        return x * q.reshape(*q.shape[:-1], *[1] * axis, q.shape[-1], *[1] * (axes - 1 - axis))
    if axis == axes - 1:
        if axes == 1:
            return (q @ x.unsqueeze(-1)).squeeze(-1)
        y = _rows(x, axes) @ q.transpose(-1, -2)
        return y if axes == 2 else y.reshape(x.shape)
    lead = x.shape[: x.ndim - axes]
    if axis == 0:
        return (q @ x.reshape(*lead, x.shape[-axes], -1)).reshape(x.shape)
    left = math.prod(x.shape[x.ndim - axes : x.ndim - axes + axis])
    opened = x.reshape(*lead, left, x.shape[x.ndim - axes + axis], -1)
    return (q.unsqueeze(-3) @ opened).reshape(x.shape)


def _rows(x: Tensor, axes: int) -> Tensor:
    return x if axes == 2 else x.reshape(*x.shape[: x.ndim - axes], -1, x.shape[-1])


def times_q(x: Tensor, q: Sequence[Tensor], dense: Sequence[bool]) -> Tensor:
    """`Q x`."""
    for axis, (own, is_dense) in enumerate(zip(q, dense, strict=True)):
        x = along(own, is_dense, x, axis, len(q))
    return x


def times_p(x: Tensor, q: Sequence[Tensor], dense: Sequence[bool], *, fitted: bool = False) -> Tensor:
    """`P x`, along each axis in the order of brackets that takes less work."""
    if fitted:
        return times_q(x, q, dense)
    numel = math.prod(x.shape[x.ndim - len(q) :])
    for axis, (own, is_dense) in enumerate(zip(q, dense, strict=True)):
        if not is_dense:
            x = along((own.conj() * own) if own.is_complex() else own * own, False, x, axis, len(q))
        elif own.shape[-1] ** 2 < numel:
            x = along(adjoint(own) @ own, True, x, axis, len(q))
        else:
            x = along(adjoint(own), True, along(own, True, x, axis, len(q)), axis, len(q))
    return x


def gram(y: Tensor, dense: bool, axis: int, axes: int) -> Tensor:
    """`y y^H` of the unfolding along one of the last axes; without a matrix, its diagonal."""
    if not dense:
        others = [i - axes for i in range(axes) if i != axis]
        squares = (y * y.conj()).real if y.is_complex() else y * y
        return squares.sum(others) if others else squares
    flat = y.movedim(axis - axes, -axes) if axis else y
    flat = flat.reshape(*flat.shape[: flat.ndim - axes], flat.shape[-axes], -1)
    return flat @ adjoint(flat)


# Norms


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).smallest_normal


def norm_in_probes(a: Tensor, probes: Tensor, scale: Tensor) -> Tensor:
    """A lower bound on the spectral norm of Hermitian matrices, or of skew ones, from four products with some vectors.

    Args:
        a: The matrices.
        probes: Random vectors, as rows; they are turned towards the longest row.
        scale: About how large the elements are.
    """
    unit = scale[..., None, None] + _tiny(a)
    a = a / unit
    longest = torch.linalg.vector_norm(a, dim=-1).argmax(-1)
    index = longest[..., None, None].expand(*longest.shape, 1, a.shape[-1])
    row = torch.take_along_dim(a, index, -2)
    products = (row * (probes.conj() if probes.is_complex() else probes)).sum(-1, keepdim=True)
    v = row + torch.sgn(products) * probes
    for _ in range(2):
        v = v @ a
        v = v / (torch.linalg.vector_norm(v, dim=-1, keepdim=True) + _tiny(a))
        v = v @ a
    norm: Tensor = torch.linalg.vector_norm(v, dim=-1).amax(-1) * unit[..., 0, 0]
    return norm


def norm_from_row(a: Tensor) -> Tensor:
    """A lower bound on the spectral norm of Hermitian matrices: two products with their longest row."""
    unit = a.abs().amax((-2, -1), keepdim=True)
    is_zero = unit == 0
    a = a / torch.where(is_zero, 1.0, unit)
    longest = (a * a.conj()).real.sum(-1).argmax(-1) if a.is_complex() else (a * a).sum(-1).argmax(-1)
    index = longest[..., None, None].expand(*longest.shape, 1, a.shape[-1])
    x = torch.take_along_dim(a, index, -2) @ a
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = x / torch.where(norm == 0, 1.0, norm)
    found: Tensor = torch.linalg.vector_norm(x @ a, dim=-1, keepdim=True) * unit
    return found[..., 0, 0]
