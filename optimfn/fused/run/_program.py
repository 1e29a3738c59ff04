"""A plan, compiled and laid out in tables, ready to run on leaves of one signature."""

import functools
import itertools
import operator
import struct
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..ir._graph import Layout, Misfit, Node, StepAside
from ..ir._shapes import dense_stride
from ..plan._plan import Plan
from ..trace._trace import Graph
from ._cpu import Cpu
from ._cuda import Cuda
from ._process import Process

_dtype, _shape, _device = operator.attrgetter("dtype"), operator.attrgetter("shape"), operator.attrgetter("device")
_is_cpu, _requires_grad = operator.attrgetter("is_cpu"), operator.attrgetter("requires_grad")  # faster than _device


class Machine(Protocol):
    """What runs the kernels of a plan."""

    buffers: "array[int]"  # the address of each
    stages: int

    def run(self, first: int, last: int) -> None:
        """Run stages."""

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Take note of memory that stages use beside inputs and tables."""

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""


MACHINES: dict[str, Callable[[Plan, torch.device], Machine]] = {"cpu": Cpu, "cuda": Cuda}
"""By the type of device."""


class Kinds:
    """What tensors must be like for a program to run on them.

    Args:
        tensors: An example of each.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._dtypes, self._shapes = list(map(_dtype, tensors)), list(map(_shape, tensors))
        self._strides = list(map(Tensor.stride, tensors))
        self._classes = set(map(type, tensors))
        self._devices = None if all(map(_is_cpu, tensors)) else list(map(_device, tensors))
        # A negated view of a complex tensor's imaginary part has holes, unless it has one element.
        self._may_be_negated = [i for i, x in enumerate(tensors) if x.numel() < 2 or dense_stride(x) is None]

    def match(self, tensors: Sequence[Any]) -> bool:
        """Whether tensors are of these kinds; a leaf that is no tensor is of none."""
        if not self._classes.issuperset(map(type, tensors)):
            return False
        try:
            strides = list(map(Tensor.stride, tensors))
        except RuntimeError:  # sparse tensors have none
            return False
        return (
            strides == self._strides
            and list(map(_shape, tensors)) == self._shapes
            and list(map(_dtype, tensors)) == self._dtypes
            and (all(map(_is_cpu, tensors)) if self._devices is None else list(map(_device, tensors)) == self._devices)
            and not any(tensors[i].is_neg() for i in self._may_be_negated)
        )


class Program:
    """One trace, compiled.

    Args:
        graph: What was traced.
        plan: Its stages.
        tensors: An example of each input.
        written: How many inputs, from the first, are overwritten; 0 if the outputs are new.
        fixed: How many inputs, from the first, are usually the same tensors in every step.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    lock: threading.Lock

    def __init__(self, graph: Graph, plan: Plan, tensors: Sequence[Tensor], written: int, fixed: int) -> None:
        self.graph, self.plan = graph, plan
        self._written, self._fixed = written, fixed
        self._captured = graph.captured
        inputs = [*tensors, *graph.captured]
        self._count = len(inputs)
        self._device = graph.device
        self._fixed_kinds, self._captured_kinds = Kinds(tensors[:fixed]), Kinds(graph.captured)
        self._other_kinds = Kinds(tensors[fixed:])
        self._last: list[Tensor] | None = None
        self._token: object = None
        self._staged = {
            i: Layout.dense(x).empty(self._device)
            for i, x in enumerate(inputs)
            if dense_stride(x) is None or x.device != self._device
        }
        self._temporary = {node: node.layout.empty(self._device) for node in (*plan.temporary, *plan.folds)}
        self._new = [(out.value, out.node.layout) for out in plan.outputs if out.kind == "new" and out.node]
        self._opaque_stages = [(k, stage.opaque) for k, stage in enumerate(plan.stages) if stage.opaque]
        self._released = _last_uses([node for _, nodes in self._opaque_stages for node in nodes], plan.solid)
        self._pointers: list[int] = []
        self._given = len(tensors)
        self._pack = struct.Struct(f"{self._count - fixed}q")
        self._machine = MACHINES[self._device.type](plan, self._device)
        self._buffers = self._machine.buffers
        self._machine.hold([*self._temporary.values(), *self._staged.values()])
        for node, buffer in (plan.temporary | plan.folds).items():
            self._buffers[buffer] = self._temporary[node].data_ptr()
        self._sizes = array("q", [x.nbytes for x in inputs])
        Process.give_lock(self)

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return self._machine.sources

    def __call__(self, tensors: list[Tensor], token: object = None) -> list[Any]:
        """The leaves of the result; none if they were written over the inputs.

        Args:
            tensors: The inputs.
            token: Stands for those that are fixed: they are the same wherever it is the same.

        Raises:
            Misfit: if a tensor is of another kind than the program was made for.
            StepAside: if the rule itself must run this time. Nothing has been written, in either case.
        """
        inputs = tensors + self._captured if self._captured else tensors
        with self.lock:
            self._look_up(inputs, token)
            for i, dense in self._staged.items():
                self._buffers[i] = dense.copy_(inputs[i].detach()).data_ptr()
            new = {}
            for buffer, layout in self._new:
                new[buffer] = made = layout.empty(self._device)
                self._buffers[buffer] = made.data_ptr()
            values = self._run(inputs)
            if self._written:
                self._finish(inputs, values)
                return []
        outputs: list[Any] = []
        for kind, value, _ in self.plan.outputs:
            if kind == "buffer":
                outputs.append(inputs[value])
            elif kind == "new":
                outputs.append(new[value])
            else:
                outputs.append(values[value] if kind == "opaque" else value)
        return outputs

    def _look_up(self, inputs: list[Tensor], token: object) -> None:
        """Fill in the addresses of the inputs, after a check that they are what kernels expect.

        The tensors that a donating step knows from its last call are checked again only when an address has
        changed: `.data` was set, or one was resized.
        """
        fixed, others = inputs[: self._fixed], inputs[self._fixed : self._given]
        known = self._last is not None and (
            (token is not None and token is self._token) or all(map(operator.is_, fixed, self._last))
        )
        self._token = token if known else None
        if not (known or self._fixed_kinds.match(fixed)) or not self._other_kinds.match(others):
            raise Misfit
        if not self._written and torch.is_grad_enabled() and any(map(_requires_grad, inputs)):
            raise StepAside
        pointers = list(map(Tensor.data_ptr, fixed))
        if self._captured and not self._captured_kinds.match(self._captured):
            raise Misfit
        if not known or pointers != self._pointers:
            if known and not self._fixed_kinds.match(fixed):
                raise Misfit
            self._learn(fixed, pointers)
        self._pack.pack_into(self._buffers, 8 * self._fixed, *map(Tensor.data_ptr, inputs[self._fixed :]))
        if self._written and self._machine.clash(self._spans, self._written, self._sizes):
            raise StepAside

    def _learn(self, fixed: list[Tensor], pointers: list[int]) -> None:
        """Take note of tensors, or addresses, that differ from those of the last step."""
        self._buffers[: self._fixed] = array("q", pointers)
        if self._written:
            spans = sorted(_spans(fixed[: self._written]))
            if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
                self._last = None
                raise StepAside
            self._spans = array("q", itertools.chain.from_iterable(spans))
            self._changing = [x for x in fixed[: self._written] if not x.is_inference()]
            self._last, self._pointers = fixed, pointers

    def _run(self, inputs: list[Tensor]) -> dict[Node, Any]:
        """Run the stages; returns the values of the opaque nodes."""
        values: dict[Node, Any] = {}
        first = 0
        for k, nodes in self._opaque_stages:
            self._machine.run(first, k)
            first = k
            with torch.no_grad():
                for node in nodes:
                    values[node] = self._evaluate(node, inputs, values)
                    for parent in self._released.get(node, ()):
                        del values[parent]
        self._machine.run(first, self._machine.stages)
        return values

    def _evaluate(self, node: Node, inputs: list[Tensor], values: dict[Node, Any]) -> Any:
        # Not a nested function that calls itself: that is a cycle, which holds these tensors until it is collected.
        value = functools.partial(self._value, inputs, values)
        if node.kind == "item":
            result = values[node.args[0]][node.op]
        else:
            result = node.op(*map(value, node.args), **{key: value(x) for key, x in node.kwargs.items()})
        if node in self.plan.solid and isinstance(result, Tensor):
            fits = result.device == self._device and dense_stride(result) == node.layout.stride
            if not fits or node.borrows_memory():
                result = node.layout.empty(self._device).copy_(result)
            self._buffers[self.plan.buffer_of[node]] = result.data_ptr()
        return result

    def _value(self, inputs: list[Tensor], values: dict[Node, Any], x: Any) -> Any:
        """What an opaque node is given for an argument."""
        if isinstance(x, tuple):
            return [self._value(inputs, values, member) for member in x]
        if not isinstance(x, Node):
            return x
        if x.kind == "input":
            return inputs[self.plan.buffer_of[x]].detach()
        return self._temporary[x] if x in self._temporary else values[x]

    def _finish(self, inputs: list[Tensor], values: dict[Node, Any]) -> None:
        """Write what kernels cannot, and say that the tensors have changed."""
        with torch.no_grad():
            for i, dense in self._staged.items():
                if i < self._written:
                    inputs[i].copy_(dense)
            for node, target in self.plan.copies:
                inputs[target].copy_(values[node])
        increment_version(self._changing)


def _last_uses(nodes: Sequence[Node], kept: Set[Node]) -> dict[Node, list[Node]]:
    """Which opaque values nobody needs any more after each opaque node has run."""
    last = {parent: node for node in nodes for parent in node.parents() if parent.kind in ("opaque", "item")}
    released: dict[Node, list[Node]] = {}
    for parent, node in last.items():
        if parent not in kept:
            released.setdefault(node, []).append(parent)
    return released


def _spans(tensors: Iterable[Tensor]) -> Iterable[tuple[int, int]]:
    """Where the memory of each tensor begins and ends; nothing for those without."""
    for x in tensors:
        if x.numel():
            extent = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            yield x.data_ptr(), x.data_ptr() + (extent + 1) * x.itemsize
