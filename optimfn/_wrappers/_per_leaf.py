"""Apply a transformation to every leaf alone."""

from typing import Any

from .. import tree
from .._base import GradientTransformation, check_transformation
from .._evaluation import eval_params as _eval_params
from .._recipe import factory
from .._typing import Assign, Params, State, Tree, Updates


@factory
def per_leaf(inner: GradientTransformation) -> GradientTransformation:
    """Apply `inner` to every leaf as a tree of its own, so that each has its own count, its own norm, its own state.

    In a tree a count belongs to all leaves: it counts the updates of the tree, also those in which a leaf had no
    gradient. Behind this wrapper a leaf without a gradient keeps its count as it keeps its moments, so its first
    gradient, whenever it comes, is met by a first step. `Optimizer` does this by itself.

    Args:
        inner: The transformation to apply. It sees a leaf as a dict of one, by its path, so that masks and labels by
            path see what they see in the whole tree; a tree of bools as a mask has no place in it.

    Shapes:
        state: a tree like params whose leaves are the states of `inner` for that one leaf.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.per_leaf(of.scale_by_adam()), {"a": torch.ones(1), "b": torch.ones(1)}
        >>> _, state = tx.update({"a": torch.ones(1), "b": None}, tx.init(params), params)
        >>> state["a"].count, state["b"].count
        (tensor(1), tensor(0))
    """
    check_transformation(inner=inner)

    def init(params: Params) -> State:
        return tree.map_nodes(lambda path, p: (_is_leaf(p), inner.init({_key(path): p}) if _is_leaf(p) else p), params)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
        def step(path: tuple[Any, ...], g: Any, own: State, p: Any) -> tuple[bool, Any]:
            if not _is_leaf(g):
                return g is None, (None, own)
            key = _key(path)
            changed, own = inner.rule({key: g}, own, None if params is None else {key: p}, **extra)
            return True, (changed[key], own)

        pairs = tree.map_nodes(step, updates, state, updates if params is None else params)
        return _part(updates, pairs, 0), _part(updates, pairs, 1)

    def eval_params(state: State, params: Params) -> Params:
        def leaf(path: tuple[Any, ...], p: Any, own: State) -> tuple[bool, Any]:
            key = _key(path)
            return _is_leaf(p), _eval_params(inner, own, {key: p})[key] if _is_leaf(p) else p

        return tree.map_nodes(leaf, params, state)

    said = None if inner.eval_params is None else eval_params
    return GradientTransformation(init, update, leafwise=True, takes_assigned=True, eval_params=said)


def _part(updates: Updates, pairs: Tree, which: int) -> Tree:
    def pick(_: tuple[Any, ...], g: Any, pair: Any) -> tuple[bool, Any]:
        return (True, pair[which]) if g is None or _is_leaf(g) else (False, None)

    return tree.map_nodes(pick, updates, pairs)


def _is_leaf(node: Any) -> bool:
    return type(node) is Assign or (node is not None and tree.is_leaf(node))


def _key(path: tuple[Any, ...]) -> Any:
    return path[0] if len(path) == 1 else tree.join_path(path)
