"""Apply a transformation to all leaves as one vector."""

from typing import Any

import torch

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Assign, Params, State, Tree, Updates


@factory
def flatten(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to one vector of all elements of all leaves.

    Rules that treat every element alone give the same numbers, with fewer and larger operations. Rules that look at
    leaves, such as `lamb`, see one leaf, and masks make no sense inside.

    Args:
        inner: The transformation to apply.

    Shapes:
        updates, params: any leaves on one device; the vector has the dtype that holds them all.
        state: that of `inner` for a vector of n elements. An absent gradient counts as zero and its leaf gets no
            update, but its part of the state moves on; `update` then needs the parameters.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.flatten(of.trace(0.9)), {"a": torch.ones(2), "b": torch.ones(2, 3)}
        >>> tx.init(params).trace.shape
        torch.Size([8])
    """
    check_transformation(inner=inner)

    def init(params: Params) -> State:
        return inner.init(_flat(params))

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        full = (
            updates
            if params is None
            else tree.map(lambda p, u: torch.zeros_like(p) if u is None else u, params, updates)
        )
        vector: Any = _flat(full)
        flat, state = inner.update(vector, state, None if params is None else _flat(params), **extra)
        vector = flat.value if type(flat) is Assign else flat
        apart = _apart(vector, full)
        if vector is flat:
            return tree.cast_like(apart, updates), state
        return tree.map(lambda u, new: None if u is None else Assign(new), updates, apart), state

    def eval_params(state: State, params: Params) -> Params:
        return tree.cast_like(_apart(_eval_params(inner, state, _flat(params)), params), params)

    said = None if inner.eval_params is None else eval_params
    return GradientTransformation(init, update, takes_shards=False, eval_params=said)


def _apart(vector: torch.Tensor, like: Tree) -> Tree:
    pieces = iter(torch.split(vector, [x.numel() for x in tree.leaves(like)]))
    return tree.unflatten(like, [next(pieces).reshape(x.shape) for x in tree.leaves(like)])


def _flat(leaves: Tree) -> torch.Tensor:
    dtype = tree.dtype(leaves, "promote")
    parts = [tree.cast_leaf(x, dtype).reshape(-1) for x in tree.leaves(leaves)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype)
