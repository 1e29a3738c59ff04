"""Record what a rule computes: plain torch code in, a graph of operators out.

The rule runs once on symbols, tensors without memory. A dispatch mode sees every operator, also those that take
no symbol, such as a draw of random numbers. A real tensor that the rule holds, such as a hyperparameter, is met
on the way and becomes one more live input.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._torch import DispatchMode, is_differentiating
from ..._typing import Tree
from ...tree._batches import joining
from ...tree._blocks import blocks_by, packed_shape
from ..ir import _ops
from ..ir._graph import Layout, Misshapen, Node, Untraceable, is_random
from ..ir._shapes import contiguous_stride
from ._alike import Call, Example, are_alike, is_steady, open_row
from ._infer import infer, key, line_of_rule
from ._operators import FILLED, Operators
from ._symbol import Decision, Symbol, leaf_of, on_its_own

_SAME = {"detach", "alias", "lift_fresh", "lift"}  # a trace has no versions, so these change nothing


_FEW = 3  # rows of which nothing is gained


class Graph(NamedTuple):
    """What a trace found."""

    nodes: list[Node]
    outputs: list[Any]  # nodes, and the leaves that are no tensors
    captured: dict[Hashable, Tensor]  # tensors that the rule holds, by their identity, or has made; the last inputs
    device: torch.device
    opaque: dict[str, str]  # operator -> why it is not generated
    decisions: list[Decision]  # what the rule found out about the leaves, besides shapes and dtypes
    joins: bool  # whether leaves go together in one product, of which none may be absent


def trace(
    function: Callable[[list[Any]], list[Any]],
    leaves: Sequence[Any],
    layouts: Sequence[Layout],
    names: Sequence[str],
    device: torch.device,
    olds: Sequence[int | None],
    *,
    in_place: bool,
    apart: bool = False,
    in_blocks: bool = True,
) -> Graph:
    """Run `function` on symbols for the tensors among `leaves`.

    Args:
        function: Pure function from a list of leaves to a list of leaves.
        leaves: What it is given; all that are no tensors stay as they are.
        layouts: The layout to assume for each tensor.
        names: A name for each tensor.
        device: Where the tensors are, but for some 0-dim ones on the CPU.
        olds: For each output the number of the tensor in its place before, `None` where there is none.
        in_place: Whether it is to be overwritten.
        apart: Whether what leaves may share is computed for each alone.
        in_blocks: Whether kernels may go over blocks.

    Raises:
        Untraceable: if it cannot be traced.
        Misshapen: if an output does not fit what it is to overwrite.
    """
    tracer = Tracer(device)
    given = zip(layouts, names, strict=True)
    symbols = [tracer.symbol(tracer.input(*next(given)), x) if isinstance(x, Tensor) else x for x in leaves]
    with torch.no_grad(), tracer, tree.mapped_by(tracer.each), blocks_by(tracer if in_blocks else None):
        with joining(not apart) as joined:
            outputs = [tracer.value(out) for out in function(symbols)]
            joins = joined.happened
        outputs = [tracer.solid(out) for out in outputs]
        outputs = [tracer.own(out, old, in_place) for out, old in itertools.zip_longest(outputs, olds)][: len(outputs)]
        if in_place:
            outputs = [tracer.fit(out, old) for out, old in zip(outputs, olds, strict=True)]
    return Graph(tracer.nodes, outputs, tracer.captured, device, tracer.opaque, tracer.decisions, joins)


class Tracer(DispatchMode, Operators):  # type: ignore[no-untyped-call]  # torch has no types here
    """The dispatch mode that records."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch._dynamo, which takes a second

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self._device = device
        Operators.__init__(self)
        self.captured: dict[Hashable, Tensor] = {}
        self.decisions: list[Decision] = []
        self._captures: dict[Hashable, Node] = {}
        self._deciding = False

    def symbol(self, node: Node, leaf: Tensor | None = None) -> Symbol:
        """A tensor that stands for a node; for that of an input, with the leaf."""
        return Symbol(node, self._device, self.decide, leaf)

    def decide(self, function: Callable[..., Any], given: Tree) -> Any:
        """What a function, such as a mask, says of a tree of symbols, when it is given the leaves instead.

        What it may look at, such as the identity of a leaf, or what it holds, changes without a change of signature.
        So it is kept, to be asked again in later steps.
        """
        before, self._deciding = self._deciding, True
        try:
            said = function(tree.map(lambda x: x if leaf_of(x) is None else x.leaf, given))
        finally:
            self._deciding = before
        if not tree.looks_at_shapes_only(function):
            numbers = tree.map(lambda x: x.node.number if leaf_of(x) is not None else on_its_own(x), given)
            self.decisions.append(Decision(function, numbers, said))
        return said

    def each(self, f: Callable[..., Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
        """What a function returns for each row of arguments; it is traced for the first two rows of each kind."""
        # Inside a vmap the symbols are wrapped, and what is written down would be wrappers without memory.
        if self._deciding or len(rows) <= _FEW or is_differentiating() or not is_steady(f):
            return [f(*row) for row in rows]
        examples: dict[Hashable, list[Example] | None] = {}  # `None` where rows of a kind are not alike
        results = []
        for row in rows:
            given, kind = open_row(row)
            known = examples.setdefault(kind, [])
            if known is not None and len(known) == 2:
                made = self._write_down(known[0], given)
                new = [given[x] if x in given else self.symbol(x) if isinstance(x, Node) else x for x in made]
                results.append(new[0] if known[0].structure is None else known[0].structure.unflatten(new))
                continue
            calls, said = list[Call](), len(self.decisions)
            self._logs.append(calls)
            try:
                results.append(f(*row))
            finally:
                self._logs.pop()
            if known is not None:
                is_one = isinstance(results[-1], Tensor)
                found, structure = ([results[-1]], None) if is_one else tree.flatten(results[-1])
                known.append(Example(given, calls, [self.value(x) for x in found], structure))
                if len(self.decisions) > said or (len(known) == 2 and not are_alike(*known)):
                    examples[kind] = None
        return results

    def largest_of_blocks(self, x: Tensor, size: int) -> Tensor | None:
        """The largest magnitude in each block; `None` if kernels cannot."""
        made = self._in_blocks("largest", x.node, size, x.node.layout) if type(x) is Symbol else None
        return None if made is None else self.symbol(made)

    def to_blocks(self, values: Tensor, like: Tensor, size: int) -> Tensor | None:
        """A value for each block, repeated for its elements; `None` if kernels cannot."""
        if not (type(values) is type(like) is Symbol):
            return None
        made = self._in_blocks("to_blocks", values.node, size, like.node.layout)
        return None if made is None else self.symbol(made)

    def index(self, like: Tensor) -> Tensor | None:
        """The number of each element; `None` if kernels go over them in another order, or there is but one."""
        layout = like.node.layout._replace(dtype=torch.int64) if type(like) is Symbol else None
        if layout is None or layout.shape == () or layout.stride != contiguous_stride(layout.shape):
            return None
        return self.symbol(self._add("pointwise", "index", (), {}, layout))

    def packed(self, codes: Tensor, size: int) -> Tensor | None:
        """Two codes in a byte; `None` if kernels cannot."""
        shape = packed_shape(codes.shape)
        layout = Layout(shape, torch.uint8, contiguous_stride(shape))
        made = self._in_blocks("pack", codes.node, size, layout) if type(codes) is Symbol else None
        return None if made is None else self.symbol(made)

    def unpacked(self, codes: Tensor, shape: tuple[int, ...], size: int) -> Tensor | None:
        """One code in a byte; `None` if kernels cannot."""
        layout = Layout(shape, torch.uint8, contiguous_stride(shape))
        made = self._in_blocks("unpack", codes.node, size, layout) if type(codes) is Symbol else None
        return None if made is None else self.symbol(made)

    def value(self, x: Any) -> Any:
        """What stands for a value in the graph: tensors become nodes, sequences tuples."""
        if isinstance(x, Symbol):
            return x.node
        if isinstance(x, Tensor):
            return self._capture(x)
        if isinstance(x, list | tuple):
            return tuple(map(self.value, x))
        return x

    def solid(self, x: Any) -> Any:
        """The same value, as one tensor if it is a stack."""
        if isinstance(x, Node) and x.kind == "stack":
            return self._add("opaque", torch.ops.aten.stack.default, (x.args,), {}, x.layout)
        return tuple(map(self.solid, x)) if isinstance(x, tuple) else x

    def own(self, out: Any, old: int | None, in_place: bool) -> Any:
        """An output, which never shares memory with another input than the one in its place before."""
        if not isinstance(out, Node) or out.kind != "input" or (old is not None and out is self._inputs[old]):
            return out
        if self._foreign(out):
            return self._add("opaque", torch.ops.aten.clone.default, (out,), {}, out.layout)
        return out if in_place else self._add("pointwise", "copy", (out,), {}, out.layout)

    def fit(self, out: Any, target: int | None) -> Any:
        """An output in the order of memory of the input that it overwrites."""
        if target is None or not isinstance(out, Node):
            if target is not None or isinstance(out, Node):
                raise Misshapen
            return out
        old = self._inputs[target].layout
        if (out.layout.shape, out.dtype) != (old.shape, old.dtype):
            raise Misshapen
        return self._laid_out(out, old)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one operator."""
        if self._deciding:
            return func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name == "lift_fresh" and not isinstance(args[0], Symbol):
            made = args[0]
            return self.symbol(self._constant(made, (made.dtype, made.shape, *made.flatten().tolist())))
        if name not in FILLED and not is_random(func) and not _holds_tensor((args, kwargs)):
            made = func(*args, **(kwargs or {}))  # the same in every step
            call = func, key(self.value(args)), key({name: self.value(x) for name, x in (kwargs or {}).items()})
            return self.symbol(self._constant(made, call)) if isinstance(made, Tensor) else made
        result = self._record(func, name, self.value(args), {word: self.value(x) for word, x in (kwargs or {}).items()})
        return list(map(self.symbol, result)) if isinstance(result, list) else self.symbol(result)

    def _record(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | list[Node]:
        if name == "_local_scalar_dense":
            raise Untraceable(
                f"a tensor is read on the host, by bool(), float(), int() or .item(), {line_of_rule('in ')}"
            )
        if func._schema.is_mutable:
            raise Untraceable(f"{func} writes in place, {line_of_rule('in ')}")
        if name in _SAME or (name == "clone" and self._keeps_layout(args[0], kwargs)):
            same: Node = args[0]
            return same
        if name in FILLED:
            return self._fill(func, name, args, kwargs)
        if name == "stack" and all(x.is_scalar and x.dtype == args[0][0].dtype for x in args[0]):
            return self._add("stack", "stack", args[0], {}, Layout((len(args[0]),), args[0][0].dtype, (1,)))
        reduced = self._reduction(func, name, args, kwargs)
        if reduced is not None:
            return reduced
        args, kwargs = self.solid(args), {word: self.solid(x) for word, x in kwargs.items()}
        multiple, layouts, compute = infer(func, name, args, kwargs)
        if not multiple:
            computed = self._pointwise(func, name, args, kwargs, layouts[0], compute)
            if computed is not None:
                return computed
        node = self._add("opaque", func, args, kwargs, layouts[0])
        self.opaque.setdefault(str(func), self._reason(name, args, layouts[0]))
        return [self._add("item", i, (node,), {}, layout) for i, layout in enumerate(layouts)] if multiple else node

    # Bookkeeping

    def _capture(self, x: Tensor, call: Hashable = None) -> Node:
        own = call or id(x)
        if own not in self._captures:
            here = x.device == self._device or (x.is_cpu and x.ndim == 0)
            if type(x) not in (Tensor, torch.nn.Parameter) or not here or x.layout != torch.strided:
                raise Untraceable(f"the rule holds a {type(x).__name__} on {x.device}, {line_of_rule('in ')}")
            self._captures[own] = self.input(Layout.dense(x), "held")
            self.captured[own] = x
        return self._captures[own]

    def _constant(self, x: Tensor, call: Hashable) -> Node:
        """A tensor made of Python numbers just now, as the call says: its value is part of the graph."""
        if x.ndim == 0 and x.dtype in _ops.DTYPES:
            return self._add("pointwise", "fill", (x.item(), ()), {}, Layout.dense(x))
        return self._capture(x, call)


def _holds_tensor(x: Any) -> bool:
    if isinstance(x, dict):
        return any(map(_holds_tensor, x.values()))
    return any(map(_holds_tensor, x)) if isinstance(x, list | tuple) else isinstance(x, Tensor)
