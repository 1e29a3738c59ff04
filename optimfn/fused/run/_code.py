"""All of a program that does not depend on where tensors lie: a plan, compiled, and its tables."""

import struct
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor

from ..ir._graph import Layout, Node
from ..ir._kernels import Owner
from ..ir._shapes import dense_stride
from ..plan._plan import Plan
from ..trace._trace import Graph
from ._cpu import Cpu
from ._cuda import Cuda
from ._machine import Machine, MachineCode
from ._process import Process
from ._results import Results
from ._signature import Signature

_MOST_SELECTIONS = 16  # patterns of absent gradients whose tables are kept; others are put together again


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

    lock: threading.Lock

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
        self.graph, self.plan, self.captured, self.device = graph, plan, [*graph.captured.values()], graph.device
        self.targets, self.decisions = targets, graph.decisions
        fixed = sum(target is not None for target in targets)
        leaf_at = {number: leaf for leaf, number in enumerate(grads)}
        self._leaves = [leaf_at.get(number) for number in range(fixed, len(tensors))]
        self.leaf_of = {plan.inputs[number]: leaf for leaf, number in enumerate(grads)}
        self.kinds = [(node.dtype, len(node.layout.shape)) for node in self.leaf_of]
        self._joint = {own for own in (plan.owners or {}).values() if isinstance(own, frozenset)}
        self.trusted: dict[Any, bool] = {}  # kinds of patterns, and whether this serves them
        self.joint: Code | None = None  # knows also what is computed for leaves without a gradient, if something is
        self.written, self.fixed, self.given = fixed if donates else 0, fixed, len(tensors)
        inputs = [*tensors, *self.captured]
        self.fixed_signature, self.other_signature = Signature(tensors[:fixed]), Signature(tensors[fixed:])
        self.captured_signature = Signature(self.captured)
        self.staged = [
            (i, Layout.dense(x)) for i, x in enumerate(inputs) if dense_stride(x) is None or x.device != self.device
        ]
        self.opaque_stages = [(k, stage.opaque) for k, stage in enumerate(plan.stages) if stage.opaque]
        self.sizes = array("q", [x.nbytes for x in inputs])
        self.pack = struct.Struct(f"{len(inputs) - fixed}q")
        self._machine = MACHINES[self.device.type]
        self.for_machine: MachineCode = self._machine.code(plan, self.device)
        self.whole = Selection(self, None)
        self._selections: OrderedDict[tuple[bool, ...], Selection] = OrderedDict()
        Process.give_lock(self)

    def machine(self) -> Machine:
        """What runs it for one program."""
        made: Machine = self._machine(self.for_machine)
        return made

    def select(self, pattern: tuple[bool, ...]) -> "Selection":
        """What runs when only some of the gradients are there."""
        with self.lock:
            known = self._selections.get(pattern)
            if known is None:
                known = self._selections[pattern] = Selection(self, pattern)
                if len(self._selections) > _MOST_SELECTIONS:
                    self._selections.popitem(last=False)
            return known

    def present(self, pattern: tuple[bool, ...]) -> frozenset[Owner]:
        """The owners that are present; one of several leaves is with any of them."""
        leaves = frozenset([None, *[leaf if here else ~leaf for leaf, here in enumerate(pattern)]])
        return leaves.union(own for own in self._joint if not own.isdisjoint(leaves))

    def are_given(self, pattern: tuple[bool, ...]) -> list[bool]:
        """Which of the inputs that are not fixed are there."""
        return [leaf is None or pattern[leaf] for leaf in self._leaves]


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
            return present is None or owners.get(node) in present

        self.opaque_stages = [(k, [node for node in nodes if runs(node)]) for k, nodes in code.opaque_stages]
        self.released = _last_uses([node for _, nodes in self.opaque_stages for node in nodes], plan.solid)
        self.copies = [(x, target) for x, target, own in plan.copies if present is None or own in present]
        self.staged = [i for i, _ in code.staged if not code.fixed <= i < code.given or there[i - code.fixed]]
        self.signature = code.other_signature if present is None else code.other_signature.of_some(there)
        self.is_whole = present is None
        self.tables = None if present is None else code.for_machine.select(present)
        # What is written in place stays by itself.
        given = () if code.written or present is None else enumerate(zip(plan.outputs, plan.results, strict=True))
        kept = {
            i: code.targets[i]
            for i, (output, values) in given
            if output.node is not None and all(own not in (present or ()) for own, _ in values)
        }
        self.results = Results(plan.outputs, kept, len(plan.inputs), code.device)


def _last_uses(nodes: Sequence[Node], kept: Set[Node]) -> dict[Node, list[Node]]:
    """Which opaque values nobody needs any more after each opaque node has run."""
    last = {parent: node for node in nodes for parent in node.parents() if parent.kind in ("opaque", "item")}
    released: dict[Node, list[Node]] = {}
    for parent, node in last.items():
        if parent not in kept:
            released.setdefault(node, []).append(parent)
    return released
