"""A plan, compiled and laid out in tables, ready to run on leaves of one signature."""

import functools
import itertools
import operator
import struct
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..ir._graph import Layout, Misfit, Node, StepAside
from ..ir._kernels import Owner
from ..ir._shapes import dense_stride, overlaps_itself
from ..plan._plan import Plan
from ..plan._tables import is_present
from ..trace._trace import Graph
from ._cpu import Cpu
from ._cuda import Cuda
from ._process import Process
from ._signature import Signature

_requires_grad = operator.attrgetter("requires_grad")
_MOST_SELECTIONS = 16  # patterns of absent gradients whose tables are kept; others are put together again


class Machine(Protocol):
    """What runs the kernels of a plan: code, which programs share, and the memory of one program."""

    buffers: "array[int]"  # the address of each
    stages: int

    def run(self, first: int, last: int) -> None:
        """Run stages."""

    def choose(self, chosen: Any) -> None:
        """Run with a selection of the tables from now on, or those of the whole plan."""

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Take note of memory that stages use beside inputs and tables."""

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""


MACHINES: dict[str, Any] = {"cpu": Cpu, "cuda": Cuda}
"""By the type of device."""


class Code:
    """All of a program that does not depend on where tensors lie; the programs of many optimizers share it.

    Args:
        graph: What was traced.
        plan: Its stages.
        tensors: An example of each input.
        targets: For each parameter, and each leaf of the state, the number of its input. These come first, and are
            usually the same tensors in every step.
        grads: The numbers of the inputs that may be absent.
        donates: Whether the outputs are written over the targets.

    Raises:
        CannotBuild: if the kernels cannot be compiled.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        tensors: Sequence[Tensor],
        targets: Sequence[Any],
        grads: Sequence[int],
        *,
        donates: bool,
    ) -> None:
        self.graph, self.plan, self.captured, self.device = graph, plan, graph.captured, graph.device
        self.targets, self.decisions = targets, graph.decisions
        fixed = sum(target is not None for target in targets)
        self._leaf_at = {number - fixed: leaf for leaf, number in enumerate(grads)}
        self.leaf_of = {plan.inputs[number]: leaf for leaf, number in enumerate(grads)}
        self.kinds = [(node.dtype, len(node.layout.shape)) for node in self.leaf_of]
        self.trusted: dict[Any, bool] = {}  # kinds of patterns that were found to need nothing else
        self.written, self.fixed, self.given = fixed if donates else 0, fixed, len(tensors)
        inputs = [*tensors, *graph.captured]
        self.fixed_signature, self.other_signature = Signature(tensors[:fixed]), Signature(tensors[fixed:])
        self.captured_signature = Signature(graph.captured)
        self.staged = [
            (i, Layout.dense(x)) for i, x in enumerate(inputs) if dense_stride(x) is None or x.device != self.device
        ]
        self.new = [(out.value, out.node.layout) for out in plan.outputs if out.kind == "new" and out.node]
        self.opaque_stages = [(k, stage.opaque) for k, stage in enumerate(plan.stages) if stage.opaque]
        self.sizes = array("q", [x.nbytes for x in inputs])
        self.pack = struct.Struct(f"{len(inputs) - fixed}q")
        self.machine = MACHINES[self.device.type]
        self.for_machine = self.machine.code(plan, self.device)
        self.whole = Selection(self, None)
        self._selections: OrderedDict[tuple[bool, ...], Selection] = OrderedDict()

    def select(self, pattern: tuple[bool, ...]) -> "Selection":
        """What runs when only some of the gradients are there."""
        known = self._selections.get(pattern)
        if known is None:
            known = self._selections[pattern] = Selection(self, pattern)
            if len(self._selections) > _MOST_SELECTIONS:
                self._selections.pop(next(iter(self._selections)), None)
        return known

    def present(self, pattern: tuple[bool, ...]) -> frozenset[Owner]:
        """The owners that are present."""
        return frozenset([None, *(leaf for leaf, here in enumerate(pattern) if here)])

    def are_given(self, pattern: tuple[bool, ...]) -> list[bool]:
        """Which of the inputs that are not fixed are there."""
        others = range(self.given - self.fixed)
        return [i not in self._leaf_at or pattern[self._leaf_at[i]] for i in others]


class Selection:
    """What a step runs, of the whole or for one pattern of absent gradients.

    Args:
        code: The code of the whole.
        pattern: Which gradients are there; `None` stands for all.
    """

    def __init__(self, code: Code, pattern: tuple[bool, ...] | None) -> None:
        plan, owners = code.plan, code.plan.owners or {}
        present = None if pattern is None else code.present(pattern)
        there = [True] * (code.given - code.fixed) if pattern is None else code.are_given(pattern)

        def runs(node: Node) -> bool:
            return present is None or is_present(owners.get(node), present)

        self.opaque_stages = [(k, [node for node in nodes if runs(node)]) for k, nodes in code.opaque_stages]
        self.released = _last_uses([node for _, nodes in self.opaque_stages for node in nodes], plan.solid)
        self.copies = [(node, target) for node, target in plan.copies if runs(node)]
        self.staged = [i for i, _ in code.staged if not code.fixed <= i < code.given or there[i - code.fixed]]
        self.signature = code.other_signature if present is None else code.other_signature.of_some(there)
        self.is_whole = present is None
        self.tables = None if present is None else code.for_machine.select(present)
        self.kept = {i: code.targets[i] for i, x in enumerate(plan.outputs) if x.node is not None and not runs(x.node)}


class Program:
    """Code at work on the tensors of one optimizer.

    Args:
        code: The code.
    """

    lock: threading.Lock

    def __init__(self, code: Code) -> None:
        self.code, self.plan = code, code.plan
        self._captured = code.captured
        self._written, self._fixed = code.written, code.fixed
        self._last: list[Tensor] | None = None
        self._token: object = None
        self._staged = {i: layout.empty(code.device) for i, layout in code.staged}
        self._temporary = {node: node.layout.empty(code.device) for node in (*code.plan.temporary, *code.plan.folds)}
        self._pointers: list[int] = []
        self._machine: Machine = code.machine(code.for_machine)
        self._buffers = self._machine.buffers
        self._machine.hold([*self._temporary.values(), *self._staged.values()])
        for node, buffer in (*code.plan.temporary.items(), *code.plan.folds.items()):
            self._buffers[buffer] = self._temporary[node].data_ptr()
        Process.give_lock(self)

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return self._machine.sources

    def __call__(self, inputs: list[Any], token: object = None, selection: Selection | None = None) -> list[Any]:
        """The leaves of the result; none if they were written over the inputs.

        Args:
            inputs: The inputs; `None` for those that the selection does not have.
            token: Stands for those that are fixed: they are the same wherever it is the same.
            selection: What runs; all by default.

        Raises:
            Misfit: if a tensor is of another kind than the program was made for.
            StepAside: if the rule itself must run this time. Nothing has been written, in either case.
        """
        chosen = selection or self.code.whole
        inputs = inputs + self._captured if self._captured else inputs
        with self.lock:
            self._look_up(inputs, token, chosen)
            for i in chosen.staged:
                self._buffers[i] = self._staged[i].copy_(inputs[i].detach()).data_ptr()
            new = {}
            for buffer, layout in self.code.new:
                new[buffer] = made = layout.empty(self.code.device)
                self._buffers[buffer] = made.data_ptr()
            self._machine.choose(chosen.tables)
            values = self._run(inputs, chosen)
            if self._written:
                self._finish(inputs, values, chosen)
                return []
        outputs: list[Any] = []
        for i, (kind, value, _) in enumerate(self.plan.outputs):
            if kind == "buffer" or i in chosen.kept:
                outputs.append(inputs[value if kind == "buffer" else chosen.kept[i]])
            elif kind == "new":
                outputs.append(new[value])
            else:
                outputs.append(values[value] if kind == "opaque" else value)
        return outputs

    def _look_up(self, inputs: list[Any], token: object, chosen: Selection) -> None:
        """Fill in the addresses of the inputs, after a check that they are what kernels expect.

        The tensors that a donating step knows from its last call are checked again only when an address has
        changed: `.data` was set, or one was resized.
        """
        code = self.code
        fixed, others = inputs[: self._fixed], inputs[self._fixed : code.given]
        known = self._last is not None and (
            (token is not None and token is self._token) or all(map(operator.is_, fixed, self._last))
        )
        self._token = token if known else None
        here = others if chosen.is_whole else [x for x in others if x is not None]
        if not (known or code.fixed_signature.match(fixed)) or not chosen.signature.match(here):
            raise Misfit
        if not self._written and torch.is_grad_enabled() and any(_requires_grad(x) for x in inputs if x is not None):
            raise StepAside("gradients are to flow through it")
        pointers = list(map(Tensor.data_ptr, fixed))
        if self._captured and not code.captured_signature.match(self._captured):
            raise Misfit
        if not known or pointers != self._pointers or self._is_turned():
            if known and not code.fixed_signature.match(fixed):
                raise Misfit
            self._learn(fixed, pointers)
        rest = inputs[self._fixed :]
        addresses = map(Tensor.data_ptr, rest) if chosen.is_whole else [0 if x is None else x.data_ptr() for x in rest]
        code.pack.pack_into(self._buffers, 8 * self._fixed, *addresses)
        if self._written and self._machine.clash(self._spans, self._written, code.sizes):
            raise StepAside("an argument shares memory with what is written")

    def _is_turned(self) -> bool:
        """Whether the order of memory of a parameter has changed: `.data` was set to a transpose of itself."""
        dense = all(map(Tensor.is_contiguous, self._dense))
        return not dense or list(map(Tensor.stride, self._others)) != self._strides

    def _learn(self, fixed: list[Tensor], pointers: list[int]) -> None:
        """Take note of tensors, or addresses, that differ from those of the last step."""
        self._buffers[: self._fixed] = array("q", pointers)
        if self._written:
            spans = sorted(_spans(fixed[: self._written]))
            refused = any(map(overlaps_itself, fixed[: self._written])) or (
                not torch.is_inference_mode_enabled() and any(x.is_inference() for x in fixed[: self._written])
            )
            if refused or any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
                self._last = None
                raise StepAside("some of the tensors to be written cannot be")
            self._spans = array("q", itertools.chain.from_iterable(spans))
            self._changing = [x for x in fixed[: self._written] if not x.is_inference()]
            self._last, self._pointers = fixed, pointers
            named = [x for x, node in zip(fixed, self.plan.inputs, strict=False) if node.name == "param" and x.ndim > 1]
            self._dense = [x for x in named if x.is_contiguous()]
            self._others = [x for x in named if not x.is_contiguous()]
            self._strides = list(map(Tensor.stride, self._others))

    def _run(self, inputs: list[Any], chosen: Selection) -> dict[Node, Any]:
        """Run the stages; returns the values of the opaque nodes."""
        values: dict[Node, Any] = {}
        first = 0
        for k, nodes in chosen.opaque_stages:
            self._machine.run(first, k)
            first = k
            with torch.no_grad():
                for node in nodes:
                    values[node] = self._evaluate(node, inputs, values)
                    for parent in chosen.released.get(node, ()):
                        del values[parent]
        self._machine.run(first, self._machine.stages)
        return values

    def _evaluate(self, node: Node, inputs: list[Any], values: dict[Node, Any]) -> Any:
        # Not a nested function that calls itself: that is a cycle, which holds these tensors until it is collected.
        value = functools.partial(self._value, inputs, values)
        if node.kind == "item":
            result = values[node.args[0]][node.op]
        else:
            result = node.op(*map(value, node.args), **{key: value(x) for key, x in node.kwargs.items()})
        if node in self.plan.solid and isinstance(result, Tensor):
            fits = result.device == self.code.device and dense_stride(result) == node.layout.stride
            if not fits or node.borrows_memory():
                result = node.layout.empty(self.code.device).copy_(result)
            self._buffers[self.plan.buffer_of[node]] = result.data_ptr()
        return result

    def _value(self, inputs: list[Any], values: dict[Node, Any], x: Any) -> Any:
        """What an opaque node is given for an argument."""
        if isinstance(x, tuple):
            return [self._value(inputs, values, member) for member in x]
        if not isinstance(x, Node):
            return x
        if x.kind == "input":
            return inputs[self.plan.buffer_of[x]].detach()
        return self._temporary[x] if x in self._temporary else values[x]

    def _finish(self, inputs: list[Any], values: dict[Node, Any], chosen: Selection) -> None:
        """Write what kernels cannot, and say that the tensors have changed."""
        with torch.no_grad():
            for i in chosen.staged:
                if i < self._written:
                    inputs[i].copy_(self._staged[i])
            for node, target in chosen.copies:
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
