"""Code at work on the tensors of one optimizer."""

import functools
import itertools
import operator
import threading
from array import array
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..._in_place._spans import overlaps_itself, span
from ..ir._graph import Misfit, Node, StepAside
from ..ir._shapes import dense_stride
from ..plan._plan import Plan
from ._code import MACHINES as MACHINES
from ._code import Code, Selection
from ._huge_pages import join_pages
from ._process import Process
from ._recycled import Pool

_SETTLED = 3
_requires_grad = operator.attrgetter("requires_grad")


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
        self._until_settled = 0  # steps after which tensors are taken to stay where they are
        self._token: object = None
        self._staged = {i: layout.empty(code.device) for i, layout in code.staged}
        self._temporary = _temporaries(code.plan, code.device)
        self._pointers: list[int] = []
        self._machine = code.machine()
        self._buffers = self._machine.buffers
        self._machine.hold([*self._temporary.values(), *self._staged.values()])
        for node, buffer in (*code.plan.temporary.items(), *code.plan.folds.items()):
            self._buffers[buffer] = self._temporary[node].data_ptr()
        Process.give_lock(self)

    @property
    def writes(self) -> bool:
        """Whether it writes over what it is given."""
        return bool(self._written)

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        return self.code.for_machine.sources

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
            results = chosen.results
            recycles = results.recycles
            made = results.make(self._buffers, self._pool if recycles else None)
            self._machine.choose(chosen.tables, recycles)
            values = self._run(inputs, chosen)
            if self._written:
                self._finish(inputs, values, chosen)
                if self._until_settled:
                    self._until_settled -= 1
                    if not self._until_settled:
                        join_pages([x for x in inputs[: self.code.given] if x is not None])
                return []
        return results.put_together(inputs, made, values)

    @functools.cached_property
    def _pool(self) -> Pool:
        """Memory for large results."""
        return Pool(self.code.whole.results.large)

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
        plain = known or code.fixed_signature.are_plain(fixed), chosen.signature.are_plain(here)
        if not (plain[0] or code.fixed_signature.match(fixed)) or not (plain[1] or chosen.signature.match(here)):
            raise Misfit
        if not self._written and torch.is_grad_enabled():
            doubtful = inputs[code.given :] if all(plain) else inputs
            if any(_requires_grad(x) for x in doubtful if x is not None):
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
            spans = sorted((start, end) for start, end in map(span, fixed[: self._written]) if start < end)
            refused = any(map(overlaps_itself, fixed[: self._written])) or (
                not torch.is_inference_mode_enabled() and any(x.is_inference() for x in fixed[: self._written])
            )
            if refused or any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
                self._last = None
                raise StepAside("some of the tensors to be written cannot be")
            self._spans = array("q", itertools.chain.from_iterable(spans))
            self._changing = [x for x in fixed[: self._written] if not x.is_inference()]
            self._last, self._pointers, self._until_settled = fixed, pointers, _SETTLED
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
            place = self.plan.places.get(node)
            if place is not None:
                result = self._temporary[place].as_strided(node.layout.shape, node.layout.stride).copy_(result)
            elif not fits or node.borrows_memory():
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


def _temporaries(plan: Plan, device: torch.device) -> dict[Node, Tensor]:
    """The memory of the values that kernels leave there; of those in the same buffer it is the same."""
    found: dict[Node, Tensor] = {}
    at: dict[int, Tensor] = {}
    for node, buffer in (*plan.temporary.items(), *plan.folds.items()):
        if buffer not in at:
            at[buffer] = node.layout.empty(device)
        found[node] = at[buffer].as_strided(node.layout.shape, node.layout.stride)
    return found
