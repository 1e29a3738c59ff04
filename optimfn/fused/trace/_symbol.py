"""What stands for tensors while a rule is traced, and what was found out about the leaves behind it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ... import tree
from ..._torch import make_wrapper_subclass, no_torch_function
from ..._typing import Tree
from ..ir._graph import Node, Untraceable

_MISSING = object()


class Symbol(Tensor):
    """A tensor without memory that stands for a node.

    That of an input knows the leaf, since rules may ask it what is no number: whether it requires a gradient, and for
    attributes that users have given it.
    """

    node: Node
    decide: Callable[[Callable[..., Any], Any], Any] | None  # has a function look at leaves rather than at symbols
    leaf: Tensor | None
    __torch_function__ = no_torch_function  # type: ignore[assignment]  # as torch documents

    @staticmethod
    def __new__(cls: type[Self], node: Node, device: torch.device, decide: Any, leaf: Tensor | None = None) -> Self:
        """Make the symbol of a node."""
        shape, dtype, stride = node.layout
        symbol = make_wrapper_subclass(cls, shape, strides=stride, dtype=dtype, device=device)
        symbol.node, symbol.decide, symbol.leaf = node, decide, leaf
        return symbol

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]  # read only: nothing requires a gradient in a trace
        """Whether the leaf does."""
        return self.leaf is not None and bool(self._ask("requires_grad"))

    def __getattr__(self, name: str) -> Any:
        """What users have given the leaf; called for what tensors do not have."""
        if name == "_is_param":  # by which torch tells what else is an nn.Parameter
            return isinstance(self.__dict__.get("leaf"), torch.nn.Parameter)
        found = _MISSING if name.startswith("__") or self.__dict__.get("leaf") is None else self._ask(name)
        if found is _MISSING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found

    def _ask(self, name: str) -> Any:
        assert self.decide is not None
        return self.decide(lambda leaf: getattr(leaf, name, _MISSING), self)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Refuse to compute outside of the trace."""
        raise Untraceable(f"a value of the trace met {func} outside of it: in a mask, or after the trace")


class Decision(NamedTuple):
    """What a function, such as a mask, said of the leaves of a trace."""

    function: Callable[..., Any]
    given: Tree  # the numbers of tensors among the inputs; symbols of what was computed
    said: Tree

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the function says the same of other leaves, or of these once more."""
        found = self.function(tree.map(lambda x: tensors[x] if isinstance(x, int) else x, self.given))
        if found is self.said:
            return True
        return tree.structure(found) == tree.structure(self.said) and tree.leaves(found) == tree.leaves(self.said)


def leaf_of(x: Any) -> Tensor | None:
    """The leaf that a symbol stands for, if it does."""
    return x.leaf if isinstance(x, Symbol) else None


def on_its_own(x: Any) -> Any:
    """Something computed, without the trace that it belongs to."""
    return Symbol(x.node, x.device, None) if isinstance(x, Symbol) else x
