"""Step the rows of a table that have a gradient, at their cost."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._recipe import factory
from .._rows import are_sparse, put, take, update_rows
from .._state_spec import map_values, values_of
from .._typing import Assign, Params, State, Tree, Updates


@factory
def rows(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to the rows of a table that have a gradient; the others, and their moments, stay as they are.

    For gradients with a sparse layout, as `torch.nn.Embedding(..., sparse=True)` gives them. `inner` sees the rows that
    are there, each once, as one dense leaf: their gradients, their part of the state, their part of the parameter. So
    moments, averages and decay are lazy: they move on when their row does. Counts and schedules go on at every step.
    Leaves with a dense gradient are stepped as without it.

    A donating step, `Optimizer` included, takes time and memory in proportion to the rows. A pure step gives new
    tables, so it copies those of the parameters and of the state. Steps with a sparse gradient run the rule itself, not
    kernels; `torch.func` and `torch.compile` take no sparse tensors, so leave such a step out of what they transform.

    Args:
        inner: The whole optimizer, wrappers included, since other rules take no sparse updates. What looks at a leaf as
            a whole, such as a trust ratio or a norm, sees the rows that are there.

    Shapes:
        updates: leaves in sparse COO layout, coalesced or not, or dense; the result has the same layout.
        state: that of `inner`. What it keeps for a parameter has the shape of the parameter, or one number a row, in
            shape (n, 1, ...), or one number for all.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.
        ValueError: in `update`, naming the leaf, for a sparse gradient of a parameter of which the state holds
            something else, such as means of columns; or if `inner` changes its mind about a shape, as rules do that
            factor large leaves only.

    Differs from: torch.optim.SparseAdam, which is this for one rule; torch.optim.SGD with momentum, where the moments
        of absent rows go on.

    Example:
        >>> import torch, optimfn as of
        >>> table = torch.nn.Embedding(1000, 4, sparse=True)
        >>> optimizer = of.Optimizer(table, of.rows(of.adamw(1e-3)))
        >>> table(torch.tensor([3, 14, 3])).sum().backward()
        >>> optimizer.step()
    """
    check_transformation(inner=inner)
    template = functools.cache(lambda: values_of(inner))  # what of its state mirrors the parameters

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        if not are_sparse(updates):
            return inner.rule(updates, state, params, **extra)
        given, form = tree.flatten(updates)
        given = [g.coalesce() if _is_sparse(g) else g for g in given]
        whole = form.unflatten(given)
        own, back = _take_state(template, state, whole)
        small = form.unflatten([g.values() if _is_sparse(g) else g for g in given])
        held = given if params is None else tree.flatten(params)[0]
        taken = list(map(_rows_of, held, given))
        there = None if params is None else tree.seen_in(form.unflatten(taken), params)
        changed, new = inner.rule(small, own, tree.widen(there), **extra)
        return tree.map(_spread, whole, changed, form.unflatten(held), form.unflatten(taken)), back(new)

    return GradientTransformation(
        inner.init,
        update,
        leafwise=inner.leafwise,
        elementwise=inner.elementwise,
        takes_assigned=inner.takes_assigned,
        takes_shards=inner.takes_shards,
        eval_params=inner.eval_params,
        place=inner.place,
    )


class _Place:
    """Where the rows lie that a leaf of the state has for a gradient; nowhere if it goes in as it is. No tree."""

    def __init__(self, index: tuple[Tensor, ...]) -> None:
        self.index = index


def _take_state(template: Callable[[], Tree], state: State, updates: Updates) -> tuple[State, Callable[[State], State]]:
    """The state of the rows that are there, and what makes the next whole one of theirs."""
    if all(not x.ndim for x in tree.leaves(state)):
        return state, lambda new: new
    where = map_values(template(), _place_of(updates), state, updates, others=lambda _: _Place(()))
    own = tree.map(lambda at, x: take(x, at.index) if at.index else x, where, state)

    def back(new: State) -> State:
        _check_shapes(own, new)
        return tree.map(lambda at, x, now: put(x, at.index, now) if at.index else now, where, state, new)

    return own, back


def _is_sparse(g: Tensor | None) -> bool:
    return g is not None and g.is_sparse


def _place_of(updates: Updates) -> Callable[[str, Tensor, Tensor | None], _Place]:
    """Finds the rows of a leaf that mirrors a parameter, given what its values are, itself, and the gradient."""

    def find(values: str, leaf: Tensor, g: Tensor | None) -> _Place:
        if g is None or not g.is_sparse:
            return _Place(())
        shapes = [g.shape, (*g.shape, 2)] if g.is_complex() else [g.shape]  # real and imaginary parts
        if leaf.shape in shapes or (g.sparse_dim() == 1 and leaf.shape == (len(g), *[1] * (g.ndim - 1))):
            return _Place(tuple(g.indices()))
        if leaf.numel() < 2:
            return _Place(())
        name = next(tree.join_path(path) for path, other in tree.leaves_with_path(updates) if other is g)
        raise ValueError(
            f"rows cannot step {name or 'the parameter'}: it has shape {tuple(g.shape)} and a sparse gradient, and the "
            f"rule keeps a tensor of shape {tuple(leaf.shape)} for it, which has no row for each of its rows; give it "
            "a dense gradient, or a rule whose state has the shape of the parameter"
        )

    return find


def _rows_of(p: Tensor, g: Tensor | None) -> Tensor:
    """What the rule sees of a parameter; masks and labels that are functions see the whole one."""
    return take(p, tuple(g.indices())) if g is not None and g.is_sparse else p


def _check_shapes(old: State, new: State) -> None:
    """See that the state of the rows has kept its shapes.

    Raises:
        ValueError: if it has not, naming a leaf.
    """
    for (path, was), now in zip(tree.leaves_with_path(old), tree.leaves(new), strict=True):
        if was.shape != now.shape:
            raise ValueError(
                f"rows cannot apply this rule: {tree.join_path(path)} of its state has shape {tuple(was.shape)} for "
                f"the rows that have a gradient and would become {tuple(now.shape)}; it looks at the size of a leaf"
            )


def _spread(g: Tensor, new: Any, p: Tensor, own: Tensor) -> Any:
    """What the rule makes of rows, laid out as the gradient is."""
    if new is None or not g.is_sparse:
        return new
    if type(new) is Assign:
        return new if new.value is None else Assign(put(p, tuple(g.indices()), new.value))
    return update_rows(g, new, p, own)
