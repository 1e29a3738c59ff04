"""What goes over the wire in the place of gradients: each compressor in a few lines, on lists of ordinary tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._checks import check_dtype, check_nonnegative, check_seed, check_steps
from .._recipe import Recorded, factory
from .._state_spec import LeafSpec
from .._typing import State, Tree
from ._comm import Peers, all_gather, mean

Leaves = Sequence[Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Compressor(Recorded):
    """How `compressed_mean` averages tensors over replicas with less than the tensors themselves.

    Its functions are given real tensors, of the same shapes on every replica, and everybody calls them together.

    Args:
        init: `init(params, peers) -> state`, what it remembers; what belongs to parameters is in a tree like theirs.
            Nothing is communicated.
        mean: `mean(leaves, state, peers) -> (means, sent, state)` of lists: the means, the same bits on
            every replica, and what of this replica's own leaves has gone into them; the rest is its error.
        shards: Which shards of DTensors it takes: `"any"`; `"even"`, those of one shape everywhere; or `"none"`.
        recipe: How it was made; `factory` fills it in.
    """

    init: Callable[[Tree, Peers], State]
    mean: Callable[[Leaves, State, Peers], tuple[list[Tensor], list[Tensor], State]]
    shards: str = "any"


def nothing(leaves: Tree, peers: Peers) -> State:
    """The state of a compressor that remembers nothing."""
    return ()


@factory
def cast(dtype: torch.dtype) -> Compressor:
    """Send every gradient in a smaller dtype, in which the sum is taken too.

    With error feedback the rounding of what is sent comes back in later steps; that of the sum is nobody's error and
    stays, in bfloat16 some 2e-3 of a gradient. Without it, it is the rule of torch's `bf16_compress_hook`.

    Maths:
        sent <- cast(c);  mean <- sum_r cast(sent_r / W)

    Args:
        dtype: Such as bfloat16 or float16.

    Raises:
        TypeError, ValueError: at construction, if it is no floating dtype.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.cast(torch.bfloat16))
        >>> g = torch.tensor([1.001])
        >>> first, state = tx.update(g, tx.init(g))
        >>> first, state.error
        (tensor([1.]), tensor([0.0010]))
    """
    check_dtype(dtype=dtype)
    if dtype is None or dtype.is_complex:
        raise ValueError(f"dtype must be a real floating dtype, got {dtype!r}")

    def average(leaves: Leaves, state: State, peers: Peers) -> tuple[list[Tensor], list[Tensor], State]:
        low = [x.to(dtype) for x in leaves]
        found = mean(low, peers)
        return _wide(found, leaves), _wide(low, leaves), state

    return Compressor(nothing, average)


class PowerSGDState(NamedTuple):
    """Where the next step of the subspace iterations begins."""

    # Of the shards of DTensors each process has its own; else they are the same everywhere.
    factors: Annotated[Tree, LeafSpec("per_replica")]  # Q of each matrix, m x rank; empty for the other leaves


@factory
def powersgd(rank: int = 1, min_rate: float = 2.0, eps: float = 0.0, seed: int = 0) -> Compressor:
    """Send two thin factors of every matrix: one step of a subspace iteration that goes on from step to step.

    A leaf of more axes is a matrix of its first against all others. Vectors, and matrices too small to gain, are sent
    as they are. The rule is that of torch's `powerSGD_hook` with its warm start. Three all-reduces.

    Maths:
        M = c, n x m, compressed if (n + m) rank min_rate < n m, where rank <= n, m
        Q <- orth(Q);  P <- orth(sum_r M_r Q);  Q <- 1/W sum_r M_r^T P
        mean <- P Q^T, which is also what is sent

    Args:
        rank: The columns of the factors, >= 1.
        min_rate: By how much fewer numbers there must be for a matrix to be compressed, >= 0.
        eps: Added to the length of a column before it is divided by it, in the unit of `|g|`, >= 0; only for rank 1
            and 2, which take Gram and Schmidt's way.
        seed: Of the first Q, the same on all replicas; any whole number that a generator takes.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Vogels, Karimireddy and Jaggi 2019, arXiv 1905.13727, algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.powersgd(1))
        >>> g = torch.outer(torch.arange(6.0), torch.ones(5))
        >>> torch.allclose(tx.update(g, tx.init(g))[0], g, atol=1e-5)
        True
    """
    check_steps(rank=rank, at_least=1)
    check_nonnegative(min_rate=min_rate, eps=eps)
    check_seed(seed=seed)

    def columns(x: Tensor) -> int:
        """Those of the factors of a leaf; 0 if it is sent as it is."""
        if x.ndim < 2 or not x.numel():
            return 0
        n, m = x.shape[0], x.numel() // x.shape[0]
        own = min(n, m, rank)
        return own if (n + m) * own * min_rate < n * m else 0

    def init(leaves: Tree, peers: Peers) -> State:
        generator = torch.Generator().manual_seed(seed)

        def factor(x: Tensor) -> Tensor:
            shape = (x.numel() // x.shape[0], columns(x)) if columns(x) else (0, 0)
            return torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)

        return PowerSGDState(tree.map(factor, leaves))

    def average(leaves: Leaves, state: PowerSGDState, peers: Peers) -> tuple[list[Tensor], list[Tensor], State]:
        small = [i for i, x in enumerate(leaves) if columns(x)]
        rest = [i for i, x in enumerate(leaves) if not columns(x)]
        means, sent, qs = [*leaves], [*leaves], tree.leaves(state.factors)
        for i, x in zip(rest, mean([leaves[i] for i in rest], peers), strict=True):
            means[i] = x
        matrices = [leaves[i].reshape(leaves[i].shape[0], -1) for i in small]
        first = [_orthogonal(qs[i], eps) for i in small]
        ps = mean([m @ q for m, q in zip(matrices, first, strict=True)], peers, how="sum")
        ps = [_orthogonal(p, eps) for p in ps]
        new = mean([m.mT @ p for m, p in zip(matrices, ps, strict=True)], peers)
        for i, p, q in zip(small, ps, new, strict=True):
            means[i] = sent[i] = (p @ q.mT).reshape(leaves[i].shape)
            # A column that nothing has been projected on is tried again, or it would be zero for ever.
            qs[i] = torch.where((q == 0).all(0), qs[i], q)
        return means, sent, PowerSGDState(tree.unflatten(state.factors, qs))

    return Compressor(init, average, shards="even")


def _orthogonal(columns: Tensor, eps: float) -> Tensor:
    """An orthonormal basis of the span of a few columns; a column of zeros stays one."""
    if columns.shape[1] > 2:
        basis: Tensor = torch.linalg.qr(columns)[0]
        return basis
    found: list[Tensor] = []
    for column in columns.unbind(1):
        for other in found:
            column = column - (other * column).sum() * other
        length = torch.linalg.vector_norm(column)
        found.append(column / (length + eps if eps else torch.where(length > 0, length, 1.0)))
    return torch.stack(found, 1)


@factory
def topk(ratio: float) -> Compressor:
    """Send the largest elements of every leaf with their places, and keep the rest for later.

    Meant for error feedback, without which the small elements are never sent. Two all-gathers, so that what arrives
    grows with the number of replicas.

    Maths:
        sent <- c where |c| is among the ceil(ratio n) largest of its leaf, 0 elsewhere
        mean <- 1/W sum_r sent_r

    Args:
        ratio: The share of the elements of a leaf that is sent, no unit, in (0, 1].

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Stich, Cordonnier and Jaggi 2018, arXiv 1809.07599, algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.topk(0.5))
        >>> g = torch.tensor([3.0, -1.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> first, state.error
        (tensor([3., 0.]), tensor([ 0., -1.]))
    """
    check_ratio(ratio)

    def average(leaves: Leaves, state: State, peers: Peers) -> tuple[list[Tensor], list[Tensor], State]:
        if not sum(x.numel() for x in leaves):
            return [*leaves], [*leaves], state
        values, places, start = [], [], 0
        for x in leaves:
            flat = x.reshape(-1)
            chosen = torch.topk(flat.abs(), math.ceil(ratio * x.numel()), sorted=False)[1]
            values.append(flat[chosen])
            places.append(chosen + start)
            start += x.numel()
        where = torch.cat(places)
        picked = torch.cat(values)
        all_values = all_gather(picked, peers)
        all_places = all_gather(where.to(torch.int32) if start < 1 << 31 else where, peers).to(torch.int64)
        total = picked.new_zeros(start)
        for places_of_one, values_of_one in zip(all_places, all_values, strict=True):  # in one order everywhere
            total = total.index_add(0, places_of_one, values_of_one)
        own = picked.new_zeros(start).index_add(0, where, picked)
        return cut(total / peers.size, leaves), cut(own, leaves), state

    return Compressor(nothing, average)


def check_ratio(ratio: Any) -> None:
    """Accept a share that is not nothing."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise TypeError(f"ratio must be a number, got {ratio!r}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio!r}")


def cut(flat: Tensor, like: Leaves) -> list[Tensor]:
    """A flat vector as leaves, in their dtypes."""
    pieces = torch.split(flat, [x.numel() for x in like])
    return [piece.to(x.dtype).reshape(x.shape) for piece, x in zip(pieces, like, strict=True)]


def _wide(leaves: Leaves, like: Leaves) -> list[Tensor]:
    return [x.to(own.dtype) for x, own in zip(leaves, like, strict=True)]
