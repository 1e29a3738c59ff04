"""Small matrices of one shape in one product: what a call costs is more than what it computes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .._typing import Tree
from ._core import each, leaves, unflatten

_SMALL = 128  # a side up to which a product is too short for its call
_BOUND = 4 << 20  # bytes that lie in one stack at most; a stack is a copy


class _Joining(threading.local):
    """Whether leaves may go together in this thread, and whether some did."""

    allowed = True
    happened = False


_joining = _Joining()


@contextlib.contextmanager
def joining(allowed: bool) -> Iterator[_Joining]:
    """Say whether `batched` may take leaves together; what is given says in the end whether it did.

    Where gradients come and go, which leaves are there would be another product each time.
    """
    before = _joining.allowed, _joining.happened
    _joining.allowed, _joining.happened = allowed, False
    try:
        yield _joining
    finally:
        _joining.allowed, _joining.happened = before


def batched(f: Callable[..., Any], tree: Tree, *others: Tree, largest: int = _SMALL, bound: int = _BOUND) -> Any:
    """Apply a function to each leaf, to small ones of the same shape at once, one after the other in a new first axis.

    A product of matrices of 64 x 64 takes less time than to call it, so 48 of them in one call are seven times as fast.
    Large leaves are not copied: each is handed over as it is. What a function does to a stack is what it does to each
    leaf, up to the order of sums.

    Args:
        f: A function of a leaf of each tree, with any axes in front of those of the leaf, that keeps those axes. It
            returns a tensor, or a tuple of tensors.
        tree: The tree.
        others: More trees in its structure.
        largest: The shorter side up to which a matrix counts as small, of all operands.
        bound: Bytes of the operands that are copied into one stack, at most.

    Returns:
        The results in the structure of the tree; for tuples, a tuple of such trees.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.batched(torch.linalg.inv, {"a": torch.eye(2), "b": 2 * torch.eye(2)})["b"]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    rows = list(zip(leaves(tree), *map(leaves, others), strict=True))
    groups: dict[Any, list[list[int]]] = {}
    for i, row in enumerate(rows):
        size = sum([x.numel() * x.element_size() for x in row])
        small = _joining.allowed and all(min(x.shape[-2:], default=1) <= largest for x in row) and 2 * size <= bound
        own = groups.setdefault(tuple([(x.shape, x.dtype, x.device) for x in row]) if small else i, [[]])
        if (len(own[-1]) + 1) * size > bound:
            own.append([])
        own[-1].append(i)
    chunks = [chunk for own in groups.values() for chunk in own if chunk]
    alone = [chunk[0] for chunk in chunks if len(chunk) == 1]
    found: list[Any] = [None] * len(rows)
    for i, result in zip(alone, each(f, [rows[i] for i in alone]), strict=True):
        found[i] = result
    for chunk in [chunk for chunk in chunks if len(chunk) > 1]:
        if not torch.compiler.is_compiling():  # a branch of a graph may not note anything outside
            _joining.happened = True
        made = f(*[torch.stack([rows[i][k] for i in chunk]) for k in range(len(rows[0]))])
        parts = zip(*[x.unbind() for x in made], strict=True) if isinstance(made, tuple) else made.unbind()
        for i, part in zip(chunk, parts, strict=True):
            found[i] = part
    if found and isinstance(found[0], tuple):
        return tuple([unflatten(tree, [own[k] for own in found]) for k in range(len(found[0]))])
    return unflatten(tree, found)
