"""What was wrong with the arguments of an update that failed, in words that say what to pass instead."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from . import tree
from ._hints import shown
from ._recipe import Recipe, Recorded

_CALL = "call tx.update(updates, state, params), or step(params, state, grads)"


def mistake(
    updates: Any, state: Any, params: Any, extra: Mapping[str, Any], error: Exception | None = None
) -> Exception | None:
    """The mistake in the arguments of a step, as an exception to raise; `None` if there is none to be seen.

    Args:
        updates: What was given as gradients.
        state: What was given as the state.
        params: What was given as parameters, or `None`.
        extra: What was given beside them.
        error: What the step has raised.
    """
    for name, value in (("updates", updates), ("params", params)):
        if _is_state(value):
            return TypeError(f"the arguments are out of order: {name} is a state, {_kind(value)}; {_CALL}")
    if state is None:
        return TypeError("state is None: make it with tx.init(params)")
    if type(state) is tuple and len(state) == 2 and _is_state(state[1]) and _alike(state[0], updates):
        return TypeError("state is the pair that update returns: unpack it, updates, state = tx.update(...)")
    if not _is_state(state) and tree.leaves(params) and _alike(state, params):
        return TypeError(f"the arguments are out of order: state looks like the parameters, {shown(state)}; {_CALL}")
    for name, value in (("updates", updates), ("params", params)):
        path = next((path for path, x in tree.leaves_with_path(value) if _is_whole(x)), None)
        if path is not None:
            place = tree.join_path((name, *path))
            return TypeError(
                f"{place} holds whole numbers or truth values, which have no gradient: leave it out of the tree, "
                "or wrap the transformation in masked"
            )
    if type(state) is list:
        return TypeError(f"state must be what tx.init(params) made, got {shown(state)}")
    wrong = None if params is None else unlike("updates", updates, "params", params)
    if " must be " in str(error):  # the rule has said what is wrong with it
        extra = {}
    like, shapes = updates if params is None else params, isinstance(error, RuntimeError) and "size" in str(error)
    others = shapes or "trees differ in structure" in str(error)
    return (
        wrong
        or _of_extra(extra)
        or _elsewhere(updates, params)
        or (_of_others(state, like, shapes) if others else None)
    )


def _of_extra(extra: Mapping[str, Any]) -> Exception | None:
    """A loss that is no number, or a function of it that is none."""
    value = extra.get("value")
    if value is not None and not isinstance(value, Tensor | int | float):
        return TypeError(f"value must be the loss, a number or a 0-dim tensor, got {shown(value)}")
    for name, f in extra.items():
        if name.endswith("_fn") and not callable(f):
            return TypeError(f"{name} must be a function of the parameters, got {shown(f)}")
    return None


def _elsewhere(updates: Any, params: Any) -> Exception | None:
    """A gradient on another device than its parameter."""
    own = dict(tree.leaves_with_path(params))
    for path, u in tree.leaves_with_path(updates):
        p = own.get(path)
        if isinstance(u, Tensor) and isinstance(p, Tensor) and u.device != p.device:
            return ValueError(f"{tree.join_path(('updates', *path))} is on {u.device} and its parameter on {p.device}")
    return None


def _of_others(state: Any, params: Any, shapes: bool) -> Exception | None:
    """A state that was made for other parameters, by the names of its dicts, or where shapes matter by these."""
    if shapes:
        for path, node in _nodes(state):
            for place, x, p in _pairs(path, node, params):
                if x.ndim == p.ndim and x.shape != p.shape:
                    return ValueError(
                        f"the state was made for other parameters: {place} has shape {tuple(x.shape)}, the parameter "
                        f"{tuple(p.shape)}; make it with tx.init(params)"
                    )
    if type(params) is not dict or not params:
        return None
    fields = [
        ((*path, name), x)
        for path, node in _nodes(state)
        if hasattr(node, "_fields")
        for name, x in zip(node._fields, node, strict=True)
    ]
    for path, node in fields:
        if type(node) is dict and len(node) and not params.keys() & node.keys() and _holds_tensors(node):
            place = tree.join_path(("state", *path))
            return ValueError(
                f"the state was made for other parameters: {place} is {_kind(node)}, params is {_kind(params)}; make "
                "it with tx.init(params)"
            )
    return None


def _pairs(path: tuple[Any, ...], node: Any, params: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors in a part of a state that mirrors the parameters, each with its place and its parameter."""
    if isinstance(node, Tensor) == isinstance(params, Tensor) and _alike(node, params):
        for (own, x), p in zip(tree.leaves_with_path(node), tree.leaves(params), strict=True):
            if isinstance(x, Tensor) and isinstance(p, Tensor):
                yield tree.join_path(("state", *path, *own)), x, p


def _holds_tensors(node: Any) -> bool:
    return all(isinstance(x, Tensor) and x.ndim for x in node.values())


def check_kinds(updates: Any, params: Any) -> None:
    """Accept updates that are real where their parameter is, and nowhere whole numbers or truth values.

    Raises:
        TypeError: naming the path of the first other leaf, and both dtypes.
    """
    own = dict(tree.leaves_with_path(params))
    for path, u in tree.leaves_with_path(updates):
        p = own[path]
        if (_is_whole(u) and not _is_whole(p)) or (u.is_complex() and not p.is_complex()):
            place = tree.join_path(("updates", *path))
            raise TypeError(f"{place} is {u.dtype} and its parameter {p.dtype}: the gradient of a real one is real")


def unlike(name: str, one: Any, other_name: str, other: Any) -> Exception | None:
    """Where two trees differ in structure, as an exception to raise; `None` if they do not."""
    if _alike(one, other):
        return None
    own, others = ({tree.join_path(path) for path, _ in tree.leaves_with_path(x)} for x in (one, other))
    if type(one) in (tuple, list) and type(other) is not type(one) and all(isinstance(x, Tensor) for x in one):
        return ValueError(
            f"{name} is a {type(one).__name__} of {len(one)} tensors, as torch.autograd.grad returns them, and "
            f"{other_name} is {_kind(other)} with {len(others)} leaves: "
            + ("dict(zip(params, grads))" if isinstance(other, dict) else f"tree.unflatten({other_name}, [...])")
            + " makes a tree of them"
        )
    if type(one) is tuple and len(one) == 2 and isinstance(one[1], Tensor) and _alike(one[0], other):
        return ValueError(f"{name} is a pair, as torch.func.grad_and_value returns it: unpack it, grads, value = ...")
    if isinstance(one, tuple) and not isinstance(other, tuple) and len(one) == 2:
        return ValueError(f"{name} is a pair, as update returns it: unpack it, updates, state = tx.update(...)")
    said = []
    if isinstance(one, Tensor) or isinstance(other, Tensor) or not own & others:
        said = [f"{name} is {_kind(one)}, {other_name} is {_kind(other)}"]
    else:
        said += [f"{name} lacks {_list(others - own)}, which {other_name} has"] if others - own else []
        said += [f"{name} has {_list(own - others)}, which {other_name} lacks"] if own - others else []
    if not said:
        said = [f"{name} is {_kind(one)}, {other_name} is {_kind(other)}"]
    absent = "; where there is no gradient pass None" if name == "updates" and others - own and own else ""
    return ValueError(f"trees differ in structure: {' and '.join(said)}{absent}")


def _is_state(value: Any) -> bool:
    """Whether a tree holds a named tuple that some `init` made."""
    return any(hasattr(node, "_fields") and type(node).__name__.endswith("State") for _, node in _nodes(value))


def _nodes(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return [] if value is None or tree.is_leaf(value) else tree.walk(value)


def _alike(one: Any, other: Any) -> bool:
    return tree.structure(one) == tree.structure(other)


def _is_whole(x: Any) -> bool:
    return isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with {_list(value)}"
    return f"a {type(value).__name__}"


def _list(names: Any) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# What matches nothing


def warn_unmatched(recipe: Recipe | None, params: Any) -> None:
    """Say which patterns of masks and labels match no parameter, and which labels of a partition no parameter has.

    A pattern with a slip in it chooses nothing without a word otherwise.
    """
    if recipe is None or isinstance(params, tree.ParamsPlaceholder):
        return
    found = list(dict.fromkeys(_unmatched(recipe, params)))
    if found:
        names = [tree.join_path(path) for path, _ in tree.leaves_with_path(params)]
        if names:
            warnings.warn(f"no parameter {'; no parameter '.join(found)}. There are {_list(names)}", stacklevel=4)


def _unmatched(value: Any, params: Any) -> Iterator[str]:
    recipe = value if isinstance(value, Recipe) else value.recipe if isinstance(value, Recorded) else None
    if recipe is not None:
        arguments = recipe.arguments
        name = recipe.factory.__name__
        if recipe.factory in (tree.mask_by_path, tree.label_by_path):
            given = [arguments["pattern"]] if recipe.factory is tree.mask_by_path else arguments["patterns"]
            none = [one for one in given if not any(tree.leaves(tree.mask_by_path(one)(params)))]
            yield from [f"matches the pattern {pattern!r} of tree.{name}" for pattern in none]
        elif name == "qk_clip":
            none = [one for one in arguments["rows"] if not any(tree.leaves(tree.mask_by_path(one)(params)))]
            yield from [f"matches the pattern {pattern!r} of qk_clip" for pattern in none]
        elif recipe.factory is tree.mask_by and not any(tree.leaves(tree.mask_by(arguments["predicate"])(params))):
            yield f"is chosen by mask_by({shown(arguments['predicate'])})"
        elif name == "partition" and not callable(arguments["param_labels"]):
            labels = set(map(str, tree.leaves(arguments["param_labels"])))
            yield from [f"has the label {x!r} of partition" for x in arguments["transforms"] if str(x) not in labels]
        value = list(arguments.values())
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for member in value:
            yield from _unmatched(member, params)
