"""What a step knows about arguments of one structure: the programs for their signatures, or why there are none."""

import itertools
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, apply_updates
from ..._in_place._write import is_number
from ..._torch import are_cut, is_dtensor
from ..._typing import Params, State, Updates
from ..ir._graph import Layout, Misshapen, NoShapes, SeveralBlocks, SeveralDevices, SeveralProcesses, Untraceable
from ..plan._owners import Absence
from ..plan._planner import make_plan
from ..trace._lower import InShards, Shards, local, lowered
from ..trace._trace import Graph, trace
from . import _build
from ._absent import Instead, code_for
from ._cache import CannotBuild
from ._code import MACHINES, Code
from ._flatten import Form, OtherStructure, Structure, are_leaves
from ._paths import belongings
from ._process import without_collecting
from ._program import Program
from ._shared import Keys, shared
from ._signature import Signature, are_ordinary
from ._traced import PLAIN, Traced
from ._unread import Held, Opened, Unread, UnreadHeld

_MOST_PROGRAMS = 16  # signatures that are remembered; beyond, the oldest is looked for anew when it comes back


class Known:
    """What is known about parameters, state, gradients and extra arguments of one structure.

    Args:
        tx: The optimizer.
        donate: Whether steps write into the old tensors.
        form: That structure.
    """

    def __init__(self, tx: GradientTransformation, donate: bool, form: Form) -> None:
        self._tx, self._donate, self.form = tx, donate, form
        self.traced: dict[Hashable, list[Traced]] = {}  # several of a signature where masks say something else
        self.last: Traced | None = None
        self._all: Traced | None = None  # what came of all gradients, once some have been absent
        self._slots: list[int] = []  # where they stand among the leaves
        self._joint: Program | None = None  # and what also knows what is computed for leaves without one
        self._in_blocks = True  # whether kernels go over blocks
        self._apart = False  # whether what leaves may share is computed for each alone, since gradients come and go
        self._unlike: dict[int, tuple[Any, ...]] = {}  # kinds of gradients that are not those of their parameters

    def find(self, leaves: list[Any], keys: Keys, misfit: Traced | None = None) -> Traced:
        """The trace for leaves of this signature: an old one, one that another step has made, or a new one.

        Args:
            leaves: The leaves.
            keys: Under what the transformation finds code.
            misfit: The trace that was tried, if the leaves are of another kind.

        Raises:
            OtherStructure: if there is a node among the leaves.
        """
        grads = leaves[self.form.grads.start : self.form.grads.stop]
        if any(map(operator.is_, grads, itertools.repeat(None))):
            found = self._find_pattern(leaves, keys, misfit)
            if found is not None:
                self.last = found
                return found
        self.last = self._find_signature(leaves, keys) or Traced(leaves)
        return self.last

    def _find_pattern(self, leaves: list[Any], keys: Keys, misfit: Traced | None) -> Traced | None:
        """What runs of the program for all gradients when some are absent; `None` if these leaves need their own."""
        known = self._all
        if known is None or not known.agrees(leaves) or (misfit and misfit.program in (known.program, self._joint)):
            # The same may be absent in every step: the first pattern is planned for itself, unless all is known.
            programs = [x.program for alike in self.traced.values() for x in alike if x.program is not None]
            self._apart = self._apart or any(program.code.graph.joins for program in programs)
            filled = self._with_stand_ins(leaves)
            if filled is None:
                return None
            known = self._find_signature(filled, keys, may_trace=bool(self.traced))
            if known is not None and known.program is not None and known.program.code.graph.joins:
                self._apart = True
                known = self._find_signature(filled, keys)
            if known is None:
                return None
            self._all, self._slots = known, [i for i in known.positions if i in self.form.grads]
        if known.program is None or known.result is None:
            return known
        slots = self._slots
        pattern = tuple([leaves[i] is not None for i in slots])
        if not any(pattern) or all(pattern) or not (self._donate or known.result.key == self.form.result_key):
            return None

        def trace(pattern: tuple[bool, ...]) -> Graph | None:
            absent = {i for i, here in zip(slots, pattern, strict=True) if not here}
            try:
                some = [None if i in absent else x for i, x in enumerate(self._with_stand_ins(leaves) or [])]
                graph = self._record(some)[0]
                return lowered(graph, [x for x in some if isinstance(x, Tensor)])[0] if are_cut(some) else graph
            except Exception:  # whatever it is, the step of this pattern meets it again
                return None

        def remake(graph: Graph, instead: Instead) -> Code:
            assert known.program is not None
            own = [local(x) for x in self._with_stand_ins(leaves) or []]
            return self._code(graph, own, known.program.code.targets, instead, known.program.plan.was)

        code = code_for(known.program.code, pattern, trace, remake)
        if code is None:
            return None
        program = known.program
        if code is not program.code:
            if self._joint is None or self._joint.code is not code:
                self._joint = Program(code)
            program = self._joint
        return known.select(
            program, code.select(pattern), [i for i, here in zip(slots, pattern, strict=True) if not here]
        )

    def _with_stand_ins(self, leaves: list[Any]) -> list[Any] | None:
        """The leaves, with something like them for gradients that are absent; `None` if it is not known what."""
        params = {path[1:]: i for path, i in self.form.paths if path[0] == 0}
        filled = [*leaves]
        for path, i in self.form.paths:
            param = leaves[params[path[1:]]] if path[0] == 2 and path[1:] in params else None
            if not isinstance(param, Tensor):
                continue
            if is_dtensor(param) or is_dtensor(leaves[i]):
                if leaves[i] is None:
                    filled[i] = param.detach()
                elif getattr(leaves[i], "_spec", None) != getattr(param, "_spec", None):
                    return None
                continue
            kind = (param.shape, param.stride(), param.dtype)
            if leaves[i] is None:
                shape, stride, dtype = self._unlike.get(i, kind)
                like = (shape, stride, dtype) == kind
                filled[i] = (
                    param.detach() if like else torch.empty_strided(shape, stride, dtype=dtype, device=param.device)
                )
            elif isinstance(leaves[i], Tensor):
                own = (leaves[i].shape, leaves[i].stride(), leaves[i].dtype)
                if own != kind:
                    self._unlike[i] = own
        return filled

    def _find_signature(self, leaves: list[Any], keys: Keys, *, may_trace: bool = True) -> Traced | None:
        if not are_leaves(leaves):
            raise OtherStructure
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        shards = Shards(tensors) if are_cut(tensors) else None
        tensors = (shards.opened(tensors) if shards else None) or tensors
        if not are_ordinary(tensors, MACHINES):
            return Traced(leaves, aside="kernels are not for tensors of this class, layout or device")
        kinds = tuple([None if isinstance(x, Tensor) else _constant(x) for x in leaves])
        signature = Signature(tensors), kinds, torch.get_default_dtype(), shards and shards.key, self._apart
        alike = self.traced.get(signature, [])
        traced = next((old for old in alike if old.holds(leaves)), None)
        if traced is None:
            # What is loaded belongs to it: code holds the addresses of its functions.
            rest = self._donate, self.form.key, signature, *MACHINES.values(), _build.loaded()
            found = shared.get(keys, rest)
            if found is None and not may_trace:
                return None
            if found is None:
                with without_collecting():
                    found = self._trace(leaves, shards)
                # Patterns that need their own come and go, and would push out all else.
                passing = self._all is not None and any(leaves[i] is None for i in self.form.grads)
                if not (passing or isinstance(found, Traced) or found[0].decisions):
                    shared.put(keys, rest, found, is_own=any(isinstance(held, int) for held in found[0].graph.captured))
            if isinstance(found, Traced):
                traced = found
            else:
                traced = Traced(leaves, Program(found[0]), found[1], shards=shards, places=found[2])
            self.traced[signature] = [*alike, traced][-_MOST_PROGRAMS:]
            if len(self.traced) > _MOST_PROGRAMS:
                del self.traced[next(iter(self.traced))]
        return traced

    def _trace(self, leaves: list[Any], shards: Shards | None) -> Any:
        params, _, grads, _ = self.form.unflatten(leaves)
        tree.check_tensors("params", params)
        tree.check_tensors("grads", grads)
        if any(map(is_number, leaves[: self.form.fixed_size])):
            return Traced(leaves)  # someone has put a number into the state; the rule makes a tensor of it
        try:
            graph, result, targets = self._record(leaves)
            if shards is None:
                return self._code(graph, leaves, targets), result, None
            graph, places = lowered(graph, [x for x in leaves if isinstance(x, Tensor)])
            return self._code(graph, [local(x) for x in leaves], targets), result, places
        except Opened:
            raise
        except SeveralBlocks:
            self._in_blocks = False
            return self._trace(leaves, shards)
        except Misshapen:
            return Traced(leaves, aside="it would change the structure, a shape or a dtype of what it writes to")
        except Exception as problem:
            if held := [x.key for x in leaves if isinstance(x, Held)]:
                raise Opened(*held) from problem  # what stands for it may be to blame
            expected = isinstance(problem, Untraceable | CannotBuild)
            if not expected or isinstance(problem, NoShapes):
                with torch.no_grad():
                    pure(self._tx, *self.form.unflatten(leaves))  # if the rule is to blame, it says so itself
            reason = str(problem) if expected else f"tracing it raised {type(problem).__name__}: {problem}"
            # Whoever hands over the loss as a function, or has counts on the host, does not expect kernels.
            quiet = any(map(callable, leaves)) or isinstance(problem, SeveralDevices | SeveralProcesses | InShards)
            return Traced(leaves, reason=reason, quiet=quiet)

    def _code(
        self,
        graph: Graph,
        leaves: list[Any],
        targets: Sequence[int | None],
        instead: Instead | None = None,
        was: Mapping[Any, str] | None = None,
    ) -> Code:
        """The code of a graph; if it is for some gradients only, with what is computed for leaves without one."""
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        may_go = [number for number, i in enumerate(positions) if i in self.form.grads]
        inputs = [node for node in graph.nodes if node.kind == "input"]
        labels = [self.form.names[i] if i < self.form.fixed_size else "new" for i in range(len(graph.outputs))]
        belongs = belongings(self.form.paths, {positions[number]: leaf for leaf, number in enumerate(may_go)})[
            : len(labels)
        ]
        absence = Absence(
            {inputs[number]: leaf for leaf, number in enumerate(may_go)}, belongs, instead or {}, was or {}
        )
        plan = make_plan(graph.nodes, graph.outputs, targets if self._donate else [None] * len(labels), labels, absence)
        if instead is not None and plan.owners is None:
            raise Untraceable("what is computed for leaves without a gradient needs what others have in common")
        return Code(graph, plan, tensors, targets, may_go, donates=self._donate)

    def _record(self, leaves: list[Any]) -> tuple[Graph, Structure, list[int | None]]:
        """The graph, the structure of what it computes, and the inputs in the place of parameters and state."""
        results: list[Structure] = []

        def function(symbols: list[Any]) -> list[Any]:
            symbols = [UnreadHeld(x) if isinstance(x, Held) else x for x in symbols]
            params, state, grads, extra = self.form.unflatten(symbols)
            out: Any = pure(self._tx, params, state, grads, extra)
            if self._donate:
                if tree.structure(out) != tree.structure((params, state)):
                    raise Misshapen
                # In the order of what it overwrites; where that is None, so is this.
                out = tree.map(lambda old, new: new, (params, state), out)
            results.append(Structure(out))
            flat = results[0].flatten(out)
            assert flat is not None
            return flat

        plain = (*PLAIN, Held)
        leaves = [x if isinstance(x, plain) else _refuse if callable(x) else Unread(x) for x in leaves]
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        numbers = itertools.count()
        targets = [next(numbers) if isinstance(x, Tensor) else None for x in leaves[: self.form.fixed_size]]
        names = [name for name, x in zip(self.form.names, leaves, strict=True) if isinstance(x, Tensor)]
        device = device_of(tensors, next(numbers))
        layouts = [Layout.dense(x) for x in tensors]
        graph = trace(
            function,
            leaves,
            layouts,
            names,
            device,
            targets,
            in_place=self._donate,
            apart=self._apart,
            in_blocks=self._in_blocks,
        )
        return graph, results[0], targets


def pure(
    tx: GradientTransformation, params: Params, state: State, grads: Updates, extra: dict[str, Any]
) -> tuple[Params, State]:
    """What a step computes."""
    updates, new_state = tx.update(grads, state, params, **extra)
    return apply_updates(params, updates), new_state


def device_of(tensors: list[Tensor], fixed: int) -> torch.device:
    """Where all tensors are; only 0-dim ones that are no part of parameters and state may be on the CPU instead."""
    devices = dict.fromkeys(x.device for i, x in enumerate(tensors) if i < fixed or x.ndim or not x.is_cpu)
    if len(devices) > 1:
        raise SeveralDevices(f"its tensors are on {' and '.join(map(str, devices))}")
    return next(iter(devices), torch.device("cpu"))


def _refuse(*args: Any, **kwargs: Any) -> Any:
    """Stands for every function among the arguments while a rule is traced."""
    raise Untraceable("it calls a function that it was given")


def _constant(x: Any) -> Any:
    """What a trace depends on of a leaf that is no tensor."""
    return type(x), x if isinstance(x, bool | str) else None
