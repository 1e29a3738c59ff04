"""What may stand in a tree of parameters or gradients, asked where such trees come in.

`fits` is all that a step pays for: one comparison of shapes a leaf. Who is told no looks for the place and the words.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any, TypeVar

import optree
import optree.registry
import torch
from torch import Tensor

from .._checks import plain
from .._typing import Params, Tree, Updates
from ._core import join_path, leaves, leaves_with_path
from ._nodes import Nodes, is_leaf

T = TypeVar("T")


def fits(updates: Updates, params: Params) -> bool:
    """Whether every leaf of the updates is absent, or a tensor in the shape of the one in its place in the params."""
    if isinstance(updates, Tensor):
        return isinstance(params, Tensor) and updates.shape == params.shape
    if updates is None:
        return True
    if type(updates) is not type(params):
        return False
    pairs: Iterable[tuple[Any, Any]]
    if type(updates) is dict:
        pairs = zip(updates.values(), map(params.get, updates), strict=True)
    elif is_leaf(updates):
        return False
    else:
        own, others = (node if isinstance(node, list | tuple) else Nodes.children(node) for node in (updates, params))
        if len(own) != len(others):
            return False
        pairs = zip(own, others, strict=True)
    return all(u.shape == p.shape if isinstance(u, Tensor) and isinstance(p, Tensor) else fits(u, p) for u, p in pairs)


def check_tensors(name: str, tree: Tree) -> None:
    """Accept trees whose leaves are all tensors.

    Raises:
        TypeError: naming the path of the first other leaf, and what to pass in its place.
    """
    if all(isinstance(x, Tensor) for x in leaves(tree)):
        return
    path, value = next((path, x) for path, x in leaves_with_path(tree) if not isinstance(x, Tensor))
    kind = type(value)
    called = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    shown = f" ({value!r})" if isinstance(value, str | int | float | complex) else ""
    wanted = "a tensor" if path else "a tree of tensors"
    raise TypeError(f"{join_path((name, *path))} must be {wanted}, got {called}{shown}: {_advice(value)}")


def check_shapes(updates: Updates, params: Params, what: str = "its parameter", *, examples: bool = False) -> None:
    """Accept updates in the shapes of their parameters; with `examples`, also with one more axis in front.

    Leaves without a fellow are let through: what pairs them will say what is wrong with the structure.

    Raises:
        ValueError: naming the path of the first other leaf, and both shapes.
    """
    if type(updates) is not type(params):
        return
    own = dict(leaves_with_path(params))
    for path, u in leaves_with_path(updates):
        p = own.get(path)
        if isinstance(p, Tensor) and u.shape != p.shape and not (examples and u.shape[1:] == p.shape):
            place = join_path(path)
            raise ValueError(
                f"the gradient{' of ' + place if place else ''} has shape {tuple(u.shape)} and {what} "
                f"{tuple(p.shape)}: they must be the same, since nothing is broadcast"
            )


def register(
    cls: type[T],
    flatten: Callable[[T], tuple[Any, ...]] | None = None,
    unflatten: Callable[[Any, Any], T] | None = None,
) -> type[T]:
    """Make the objects of a class nodes of trees: parameters, gradients, masks and states may then be such objects.

    A dataclass needs no more than its name, so this is a decorator for one. Its fields are the children; those with
    `field(metadata={"static": True})` stay as they are, and must be the same in trees that meet.

    Args:
        cls: The class.
        flatten: For other classes: `flatten(node) -> (children, static, names)`, where `static` is whatever the
            class needs besides its children, and can be compared.
        unflatten: `unflatten(static, children) -> node`. The children may be anything, such as the bools of a mask.

    Raises:
        TypeError: if there are no functions and it is no dataclass.
        ValueError: if the class is registered already.

    Example:
        >>> import dataclasses, torch, optimfn as of
        >>> @of.tree.register
        ... @dataclasses.dataclass
        ... class Line:
        ...     slope: torch.Tensor
        >>> of.tree.scale(2.0, Line(torch.ones(2)))
        Line(slope=tensor([2., 2.]))
    """
    if flatten is None or unflatten is None:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"register needs flatten and unflatten for {cls!r}, which is no dataclass")
        flatten, unflatten = _dataclass_functions(cls)
    optree.register_pytree_node(cls, flatten, unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE)  # type: ignore[arg-type]  # optree's protocol is stricter than what it takes
    return cls


def _dataclass_functions(cls: Any) -> tuple[Callable[[Any], tuple[Any, ...]], Callable[[Any, Any], Any]]:
    fixed = tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("static"))
    names = tuple(f.name for f in dataclasses.fields(cls) if f.name not in fixed)

    def flatten(node: Any) -> tuple[Any, ...]:
        return [getattr(node, name) for name in names], tuple(getattr(node, name) for name in fixed), names

    def unflatten(static: Any, children: Any) -> Any:
        node = object.__new__(cls)  # without the checks of its `__init__`, since a child may be the bool of a mask
        for name, value in zip((*names, *fixed), (*children, *static), strict=True):
            object.__setattr__(node, name, value)
        return node

    return flatten, unflatten


def _advice(value: Any) -> str:
    """What to pass instead of something that is no tensor."""
    if isinstance(value, torch.nn.Module):
        return "pass dict(module.named_parameters())"
    if isinstance(value, Iterator | ValuesView | Set):
        return "pass a tree that can be walked more than once, such as dict(module.named_parameters()) or a list"
    if hasattr(value, "to_dict"):
        return "pass its to_dict(), or register the class with optimfn.tree.register"
    if isinstance(value, Mapping):
        return "pass dict(...) of it, or register the class with optimfn.tree.register"
    if hasattr(value, "__array__") or isinstance(plain(value), int | float | complex):
        return "make it a tensor, with torch.as_tensor"
    if isinstance(value, str | bytes | type) or callable(value):
        return "leave it out of the tree; what stays as it is belongs elsewhere"
    return "pass its tensors in dicts, lists or tuples, or register its class with optimfn.tree.register"
