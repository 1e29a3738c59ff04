"""Find and replace values in a state by name."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from .._typing import Params, State, Tree
from ._core import ParamsPlaceholder, map, map_nodes, map_parts, walk
from ._nodes import is_leaf

Path = tuple[Any, ...]
Filter = Callable[[Path, Any], bool]


def as_tree(state: Any) -> Tree:
    """The tree in which an optimizer keeps its state; a tree is one already."""
    return state.state_tree() if hasattr(state, "state_tree") else state


def get_all_with_path(tree: Tree, key: str, filtering: Filter | None = None) -> list[tuple[Path, Any]]:
    """Every value in a tree under a name, each with its path.

    Args:
        tree: Usually a state, or an `Optimizer`.
        key: A field of a named tuple, the class name of a named tuple, or a dict key.
        filtering: Keep only the matches for which `filtering(path, value)` holds.

    Example:
        >>> import torch, optimfn as of
        >>> state = of.adam(1e-3).init(torch.ones(2))
        >>> of.tree.get_all_with_path(state, "count")
        [((0, 'count'), tensor(0))]
    """
    return [(path, node) for path, node in walk(as_tree(tree)) if _matches(path, node, key, filtering)]


def get(tree: Tree, key: str, default: Any = None, filtering: Filter | None = None) -> Any:
    """The one value in a tree under a name, or `default` if there is none.

    Args:
        tree: Usually a state, or an `Optimizer`.
        key: A field of a named tuple, the class name of a named tuple, or a dict key.
        default: What to return if the name does not occur.
        filtering: Keep only the matches for which `filtering(path, value)` holds.

    Raises:
        KeyError: if the name occurs more than once; the message lists the paths.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.get(of.adam(1e-3).init(torch.ones(2)), "count")
        tensor(0)
    """
    found = get_all_with_path(tree, key, filtering)
    if len(found) > 1:
        raise KeyError(
            f"{key!r} occurs {len(found)} times, at {[path for path, _ in found]}; use filtering= to choose one"
        )
    return found[0][1] if found else default


def set(tree: Tree, filtering: Filter | None = None, /, **values: Any) -> Tree:
    """A copy of a tree with every value under each of these names replaced.

    Args:
        tree: Usually a state.
        filtering: Replace only where `filtering(path, value)` holds.
        **values: The new value for each name; shapes and dtypes are not checked.

    Raises:
        KeyError: if a name does not occur.

    Example:
        >>> import torch, optimfn as of
        >>> state = of.adam(1e-3).init(torch.ones(2))
        >>> of.tree.get(of.tree.set(state, count=torch.tensor(7)), "count")
        tensor(7)
    """
    used: list[str] = []

    def change(path: Path, node: Any) -> tuple[bool, Any]:
        for key, value in values.items():
            if _matches(path, node, key, filtering):
                used.append(key)
                return True, value
        return False, None

    changed = map_nodes(change, tree)
    missing = [key for key in values if key not in used]
    if missing:
        raise KeyError(f"no value in the tree is called {', '.join(repr(key) for key in missing)}")
    return changed


def map_params(
    initable: Any,
    f: Callable[..., Any],
    state: State,
    /,
    *rest: Params,
    transform_non_params: Callable[[Any], Any] | None = None,
) -> State:
    """Apply `f` to those parts of a state that mirror the parameters, such as moments.

    They are found by giving `init` a placeholder for the parameters and looking where it lands. Where a rule keeps
    several tensors for a parameter, such as one for each of its axes, `f` is called for each of them.

    Args:
        initable: A transformation, or its `init`.
        f: Function of a leaf of the state and of the leaves of `rest` that it belongs to.
        state: A state of that transformation.
        *rest: Trees like the parameters: for `lookahead` pairs of trees, for `stacked` trees with the first axis.
        transform_non_params: Function for the other leaves, such as counts; they stay if it is `None`.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adam(1e-3)
        >>> half = of.tree.map_params(tx, lambda m: m.half(), tx.init(torch.ones(2)))
        >>> half[0].mu.dtype, half[0].count.dtype
        (torch.float16, torch.int64)
    """
    init = getattr(initable, "init", initable)
    template = init(ParamsPlaceholder(torch.zeros(())))
    other = transform_non_params or (lambda leaf: leaf)

    def on_state(_: Path, node: Any, part: Any) -> tuple[bool, Any]:
        if isinstance(node, ParamsPlaceholder):
            return True, map_parts(f, part, *[functools.reduce(getattr, node.within(), params) for params in rest])
        # One leaf may stand for a tree, where a rule makes of any tree another, such as vectors.
        return (True, map(other, part)) if is_leaf(node) and node is not None else (False, None)

    return map_nodes(on_state, template, state)


def _matches(path: Path, node: Any, key: str, filtering: Filter | None) -> bool:
    named = bool(path) and path[-1] == key
    is_class = hasattr(type(node), "_fields") and type(node).__name__ == key
    return (named or is_class) and (filtering is None or filtering(path, node))
