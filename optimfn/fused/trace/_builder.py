"""Put nodes together: casts, reductions, and what spreads along axes."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..ir import _ops
from ..ir._graph import Kind, Layout, Node, is_random
from ..ir._shapes import axes_between, contiguous_stride, without
from ._alike import Call, Example, replaced
from ._infer import key, line_of_rule

LEAST_BLOCK, LARGEST_BLOCK = 8, 4096
_MANY = 2**31  # elements; indices of kernels that spread and fold are 32 bits on some devices


class Builder:
    """A graph under construction. Equal calls give one node, so that shared work is done once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._inputs: list[Node] = []
        self._known: dict[Any, Node] = {}
        self._logs: list[list[Call]] = []  # what is asked for, while an example is traced

    def input(self, layout: Layout, name: str) -> Node:
        """One more tensor that is given."""
        self._inputs.append(self._new("input", "input", (), {}, layout, layout.dtype, name))
        return self._inputs[-1]

    def _reduce(self, kind: str, x: Node) -> Node:
        if x.is_scalar:
            return x
        return self._add("reduce", kind, x.args if x.kind == "stack" else (x,), {}, Layout((), x.dtype, ()))

    def _norm(self, x: Node, order: Any, dtype: torch.dtype | None, axes: Any) -> Node | None:
        """A norm of the whole tensor, or if `axes` are given with the choice to keep them, along these."""
        if order not in (1, 2, math.inf) or not x.dtype.is_floating_point:
            return None
        if axes is not None and (x.kind == "stack" or not self._can_fold(x, *axes)):
            return None
        result = dtype or x.dtype
        wide = self._cast(x, wide_dtype(result))
        size = self._apply("square" if order == 2 else "abs", wide.dtype, wide)
        kind = "max" if order == math.inf else "sum"
        total = self._reduce(kind, size) if axes is None else self._fold(kind, size, *axes)
        assert total is not None
        return self._cast(self._apply("sqrt", total.dtype, total) if order == 2 else total, result)

    def _can_fold(self, x: Node, axes: Any, keepdim: bool) -> bool:
        shape = x.layout.shape
        kept = without(shape, axes, keepdim=True)
        regular = x.layout.stride == contiguous_stride(shape) and 0 < x.numel < _MANY
        whole = shape if keepdim else without(shape, axes, keepdim=False)
        return regular and () not in (shape, whole) and axes_between(kept, shape) is not None and not x.spreads

    def _fold(self, kind: str, x: Node, axes: Any, keepdim: bool) -> Node | None:
        """A reduction along some axes; `None` if kernels cannot."""
        if x.kind == "stack" or not self._can_fold(x, axes, keepdim):
            return None
        shape = x.layout.shape
        extents = axes_between(without(shape, axes, keepdim=True), shape)
        assert extents is not None
        result = without(shape, axes, keepdim=keepdim)
        wide = self._cast(x, wide_dtype(x.dtype))
        layout = Layout(result, wide.dtype, contiguous_stride(result))
        return self._cast(self._add("fold", kind, (wide, *extents), {}, layout), x.dtype)

    def _spread(self, x: Node, layout: Layout) -> Node | None:
        """A tensor repeated to make a shape; `None` if kernels cannot."""
        shape = layout.shape
        regular = layout.stride == contiguous_stride(shape) and 0 < math.prod(shape) < _MANY
        extents = axes_between(x.layout.shape, shape)
        if not regular or extents is None or x.layout.stride != contiguous_stride(x.layout.shape):
            return None
        return self._add("pointwise", "spread", (x, *extents), {}, Layout(shape, x.dtype, layout.stride))

    def _in_blocks(self, op: str, x: Node, size: int, layout: Layout) -> Node | None:
        """What has a number for each block, or half a byte for each element, and back; `None` if kernels cannot.

        Kernels hold a block of each value in a core's own cache.
        """
        packs = op in ("pack", "unpack")
        regular = layout.stride == contiguous_stride(layout.shape) and 1 < math.prod(layout.shape) < _MANY
        if not (regular and layout.shape != () and LEAST_BLOCK <= size <= LARGEST_BLOCK):
            return None
        if x.dtype not in ((torch.uint8,) if packs else (torch.float32, torch.float64)):
            return None
        # What other operators than those of blocks make of a leaf may be computed elsewhere.
        if (op == "largest" and x.of_blocks) or (op == "pack" and not x.spreads):
            return None
        if packs:
            return self._add("pointwise", op, (x, size), {}, layout)
        blocks = -(-math.prod(layout.shape) // size)
        own = Layout((blocks,), x.dtype, (1,)) if op == "largest" else layout._replace(dtype=x.dtype)
        return self._add("pointwise", op, (x, size), {}, own)

    def _laid_out(self, x: Node, layout: Layout) -> Node:
        """The same values in the order of memory that the result has."""
        if x.is_scalar or x.layout.stride == layout.stride:
            return x
        return self._add("opaque", _rearrange, (x, layout.stride), {}, layout._replace(dtype=x.dtype))

    def _cast(self, x: Node, dtype: torch.dtype) -> Node:
        if x.dtype == dtype:
            return x
        if x.kind == "stack":
            return self._apply("copy", dtype, x)
        return self._add("pointwise", "copy", (x,), {}, x.layout._replace(dtype=dtype))

    def _apply(self, op: str, dtype: torch.dtype, x: Node, *more: float) -> Node:
        """An operator on one node and numbers; on each member of a stack."""
        if x.kind == "stack":
            members = tuple(self._apply(op, dtype, member, *more) for member in x.args)
            return self._add("stack", "stack", members, {}, x.layout._replace(dtype=dtype))
        return self._add("pointwise", op, (x, *more), {}, x.layout._replace(dtype=dtype))

    def _add(
        self,
        kind: Kind,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layout: Layout,
        compute: torch.dtype | None = None,
        like: Node | None = None,
    ) -> Node:
        """The node of a call: the one there is already if the same was computed before.

        Where another leaf has a node `like` it, that says what is not in the call.
        """
        call: Any = (kind, op, key(args), key(kwargs), layout)
        if kind == "opaque" and is_random(op):
            call = object()
        node = self._known.get(call)
        if node is None:
            if like is None:
                name = op if isinstance(op, str) else str(getattr(op, "__name__", "item")).split(".")[0]
                node = self._new(kind, op, args, kwargs, layout, compute or layout.dtype, name)
            else:
                node = like.of_others(args, kwargs, len(self.nodes), layout)
                self.nodes.append(node)
            self._known[call] = node
        for log in self._logs:
            log.append(Call((kind, op, args, kwargs, layout, compute), node))
        return node

    def _write_down(self, example: Example, given: Iterable[Node]) -> list[Any]:
        """What an example computes, of other leaves; returns the leaves of the result."""
        by = dict(zip(example.given, given, strict=True))
        for (kind, op, args, kwargs, layout, compute), node in example.calls:
            operands = {name: replaced(x, by) for name, x in kwargs.items()} if kwargs else kwargs
            by[node] = self._add(kind, op, replaced(args, by), operands, layout, compute, node)
        return [replaced(x, by) for x in example.leaves]

    def _new(
        self,
        kind: Kind,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layout: Layout,
        compute: torch.dtype,
        name: str,
    ) -> Node:
        line = "" if kind == "input" else line_of_rule()
        numel = math.prod(layout.shape)
        parents = [x for x in args if isinstance(x, Node)] if kind == "pointwise" else []
        spreads = op in ("spread", "largest", "to_blocks", "unpack") or any(x.spreads for x in parents)
        node = Node(kind, op, args, kwargs, layout, compute, len(self.nodes), name, line, numel, spreads)
        self.nodes.append(node)
        return node


def _rearrange(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are reduced in."""
    return torch.float32 if dtype in _ops.LOW_PRECISION else dtype
