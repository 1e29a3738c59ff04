"""Values and gradients of functions of trees."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._typing import Tree
from ._core import leaves, unflatten


def value_and_grad(f: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tree]]:
    """The function that returns the value of `f` and its gradient by the first argument, a tree.

    `torch.func.grad_and_value` does not know all nodes of a tree, and takes `None` for a tensor; and the order here is
    that of the name.

    Args:
        f: A function of a tree, and of anything else, that returns a 0-dim real tensor.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.value_and_grad(of.tree.norm)({"a": torch.tensor([3.0, 4.0]), "b": None})
        (tensor(5.), {'a': tensor([0.6000, 0.8000]), 'b': None})
    """

    def both(tree: Tree, *args: Any, **kwargs: Any) -> tuple[Tensor, Tree]:
        parts = leaves(tree)
        if not parts:
            return f(tree, *args, **kwargs), tree
        grads, value = torch.func.grad_and_value(
            lambda *xs: f(unflatten(tree, list(xs)), *args, **kwargs), argnums=tuple(range(len(parts)))
        )(*parts)
        return value, unflatten(tree, list(grads))

    return both
