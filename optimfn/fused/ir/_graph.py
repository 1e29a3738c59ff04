"""The graph that a trace records and a plan cuts into stages."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ._shapes import contiguous_stride, dense_stride

Kind = Literal["input", "pointwise", "reduce", "fold", "stack", "opaque", "item"]


class Untraceable(Exception):
    """What a rule does cannot be put into a graph; the message says what, and where."""


class NoShapes(Untraceable):
    """An operator cannot be applied to these shapes, or does not say what it makes of them."""


class SeveralBlocks(Untraceable):
    """One leaf is cut into blocks of several sizes."""


class SeveralProcesses(Untraceable):
    """It communicates with other processes, when the host says so."""


class SeveralDevices(Untraceable):
    """Parameters and state are not in one place."""


class Misfit(Exception):
    """A program was given tensors of another kind than it was made for."""


class StepAside(Exception):
    """The rule itself must run this time: memory overlaps, or gradients are to flow, or a capture is under way."""


class Misshapen(Exception):
    """A donating step would change a structure, shape or dtype, which the eager step is to refuse in its own words."""


class Layout(NamedTuple):
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]

    @classmethod
    def dense(cls, x: Tensor) -> "Layout":
        """The layout of a tensor, or if it has holes or overlaps, of a contiguous copy."""
        return cls(tuple(x.shape), x.dtype, dense_stride(x) or contiguous_stride(tuple(x.shape)))

    def empty(self, device: torch.device | str) -> Tensor:
        """A new tensor of this layout."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """One value of the graph.

    An `input` is a tensor that is given; `pointwise` is computed element by element (0-dim arithmetic
    included); `reduce` makes a 0-dim tensor of a whole tensor or of a `stack`, several 0-dim tensors seen as
    one; `fold` reduces over some axes; everything else is `opaque`, which ATen computes, or an `item` of an opaque
    node that returns several.

    Blocks are runs of elements in their order in memory, of which the last may be short. `largest`, of `(x, size)`, has
    the largest magnitude in each, and `to_blocks`, of the same, repeats a value of each for all of its elements. Both
    are pointwise: what they need and make is at hand while a kernel goes over a block. So are `pack`, which puts two
    codes of 4 bits into a byte, and `unpack`; they have the same arguments. What is packed is only stored, and read
    from memory.

    `index` is the number of each element.

    The pointwise operator `spread` repeats a tensor along some axes. It and `fold` have the arguments
    `(x, times, inner)`: the axes are next to each other, `times` elements in all, and those after them have `inner`.
    """

    kind: Kind
    op: Any  # name of the operator; for an opaque node, what to call
    args: tuple[Any, ...]  # nodes, Python values, and tuples of them
    kwargs: dict[str, Any]
    layout: Layout
    compute: torch.dtype  # what the operator computes in
    number: int  # position in the graph, parents first
    name: str  # for readers: a field of the state, or the operator
    line: str  # for readers: where the rule says so
    numel: int
    spreads: bool  # whether kernels compute it from something spread
    is_scalar: bool = False  # whether it is a 0-dim tensor
    has_memory: bool = False  # whether it lies in a tensor when a stage begins, rather than being computed by a kernel
    of_blocks: bool = False  # whether it has one element for each block of a leaf, in whose kernel it is computed
    _parents: tuple["Node", ...] | None = None

    def __post_init__(self) -> None:
        """Say what is asked again and again."""
        self.is_scalar = self.layout.shape == ()
        self.has_memory = self.kind in ("input", "fold", "opaque", "item")
        if self.spreads and self.op not in ("spread", "to_blocks"):
            self.of_blocks = self.op == "largest" or any(x.of_blocks for x in self.parents())

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} {self.number}>"  # its parents are not shown, nor theirs

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the value."""
        return self.layout.dtype

    def parents(self) -> tuple["Node", ...]:
        """The nodes it is computed from."""
        if self._parents is None:
            values = (*self.args, *self.kwargs.values()) if self.kwargs else self.args
            self._parents = tuple(_nodes_in(values))
        return self._parents

    def of_others(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int, layout: Layout) -> "Node":
        """The same of other operands."""
        numel = self.numel if layout is self.layout else math.prod(layout.shape)
        own = self.compute, number, self.name, self.line, numel, self.spreads
        return Node(self.kind, self.op, args, kwargs, layout, *own)

    def borrows_memory(self) -> bool:
        """Whether it may be a view of an input, or of a value that kernels have stored."""
        node: Any = self
        while node.kind == "item" or (node.kind == "opaque" and node.is_view):
            node = node.args[0]
        return node.kind not in ("opaque", "item")

    @property
    def is_view(self) -> bool:
        """Whether it may share memory with its first argument."""
        returns = getattr(getattr(self.op, "_schema", None), "returns", ())
        return any(value.alias_info is not None for value in returns)


def is_random(op: Any) -> bool:
    """Whether an operator draws random numbers, so that no two of its calls are the same."""
    return torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())


def is_together(op: Any) -> bool:
    """Whether an operator makes of each of its operands something by itself, so that some may be absent."""
    return getattr(op, "takes_some", False) is True


def _nodes_in(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for member in value:
            yield from _nodes_in(member)
