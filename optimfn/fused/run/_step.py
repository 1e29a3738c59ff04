"""One call for update and apply, pure or in place, run as generated kernels where that can be."""

import itertools
import os
import re
import threading
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ... import tree
from ..._base import GradientTransformation, apply_updates, check_transformation
from ..._checks import check_choice
from ..._typing import Params, State, Updates
from ..ir._graph import Layout, Misfit, Misshapen, NoShapes, SeveralDevices, StepAside, Untraceable
from ..plan._plan import Plan
from ..trace._trace import Graph, trace
from ._cache import CannotBuild
from ._explain import explain
from ._flatten import Structure
from ._process import Process
from ._program import MACHINES, Program
from ._write import overwrite

BACKENDS = ("auto", "fused", "eager")
_MOST_PROGRAMS = 64  # signatures a step remembers; beyond, the oldest is traced again when it comes back


class Step:
    """What `make_step` returns: `step(params, state, grads, **extra) -> (params, state)`.

    It may be pickled and copied, and shared between threads. A donating step keeps a reference to the tensors it
    wrote last.

    Args:
        tx: The optimizer.
        donate: Whether to write the new values into the old tensors.
        backend: `"auto"`, `"fused"` or `"eager"`.
    """

    lock: threading.Lock

    def __init__(self, tx: GradientTransformation, *, donate: bool, backend: str) -> None:
        self._tx, self._donate, self._backend = tx, donate, backend
        self._structures: list[_Known] = []
        Process.give_lock(self)
        self._warned: set[str] = set()

    def __reduce__(self) -> Any:
        return _remake, (self._tx, self._donate, self._backend)

    def __call__(self, params: Params, state: State, grads: Updates, **extra: Any) -> tuple[Params, State]:
        """Take one optimizer step."""
        if self._backend != "eager" and not _must_step_aside():
            done = self._run(*self._known_for(params, state, grads, _live(extra)))
            if done is not None:
                return done if not self._donate else (params, state)
        return self._eager(params, state, grads, extra)

    def bind(self, params: Params, state: State) -> "BoundStep":
        """Prepare to step these very trees again and again, each time with new gradients.

        The trees are taken apart once, so they must keep their structure and their tensors from then on; the
        values, and the memory behind the tensors, may change. For `Optimizer` and the like.

        Raises:
            ValueError: if the step does not donate: its results are new trees each time.
        """
        if not self._donate:
            raise ValueError("only a step with donate=True can be bound")
        return BoundStep(self, params, state)

    def explain(self) -> str:
        """Describe how the last step ran, for readers: stages, kernels, opaque nodes, and where the source is."""
        if self._backend == "eager":
            return "eager: chosen by the backend"
        traced = [known.last for known in self._structures if known.last is not None]
        return explain(traced[-1].program or traced[-1].reason) if traced else "not traced yet: take a step first"

    # Ways to run

    def _pure(self, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> tuple[Params, State]:
        updates, new_state = self._tx.update(grads, state, params, **extra)
        return apply_updates(params, updates), new_state

    def _eager(self, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> tuple[Params, State]:
        if not self._donate:
            return self._pure(params, state, grads, extra)
        with torch.no_grad():
            overwrite((params, state), self._pure(params, state, grads, extra))
        return params, state

    def _run(self, known: "_Known", leaves: list[Any], token: object = None) -> Any:
        """The new trees, or `True` if they were written; `None` if the rule itself must run."""
        traced = known.last
        if traced is None or not traced.agrees(leaves):
            traced = self._find(known, leaves)
        for _ in range(2):
            if traced.program is None:
                if traced.reason and self._backend == "fused":
                    raise RuntimeError(f"{self._tx!r} cannot run fused: {traced.reason}")
                return None
            try:
                outputs = traced.program(traced.pick(leaves), token)
            except StepAside:
                return None
            except Misfit:
                traced = self._find(known, leaves)
                continue
            assert traced.result is not None
            return traced.result.unflatten(outputs) if not self._donate else True
        return None

    # Tracing

    def _known_for(self, *trees: Any) -> tuple["_Known", list[Any]]:
        """What is known about parameters, state, gradients and extra arguments of this structure, and their leaves."""
        for known in self._structures:
            leaves = known.structure.flatten(trees)
            if leaves is not None:
                return known, leaves
        known = _Known(trees)
        self._structures = [*self._structures, known][-_MOST_PROGRAMS:]
        leaves = known.structure.flatten(trees)
        assert leaves is not None
        return known, leaves

    def _find(self, known: "_Known", leaves: list[Any]) -> "_Traced":
        """The trace for leaves of this signature: an old one, or a new one."""
        signature = _signature(leaves)
        if signature is None:
            return _Traced(leaves)
        with self.lock:
            traced = known.traced.get(signature)
            if traced is None:
                traced = known.traced[signature] = self._trace(known, leaves)
                if len(known.traced) > _MOST_PROGRAMS:
                    del known.traced[next(iter(known.traced))]
            known.last = traced
        if traced.reason and not traced.quiet and self._backend == "auto" and traced.reason not in self._warned:
            self._warned.add(traced.reason)
            warnings.warn(f"{self._tx!r} runs eagerly: {traced.reason}", RuntimeWarning, stacklevel=4)
        return traced

    def _trace(self, known: "_Known", leaves: list[Any]) -> "_Traced":
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        numbers = itertools.count()
        targets = [next(numbers) if isinstance(x, Tensor) else None for x in leaves[: known.fixed_size]]
        fixed = next(numbers)
        try:
            graph, result = self._record(known, leaves, tensors, targets)
            names = [known.names[i] if i < known.fixed_size else "new" for i in range(len(graph.outputs))]
            plan = Plan(graph.nodes, graph.outputs, targets if self._donate else [None] * len(names), names)
            program = Program(graph, plan, tensors, fixed if self._donate else 0, fixed)
        except Misshapen:
            return _Traced(leaves)
        except Exception as problem:
            expected = isinstance(problem, Untraceable | CannotBuild)
            if not expected or isinstance(problem, NoShapes):
                with torch.no_grad():
                    self._pure(*known.structure.unflatten(leaves))  # if the rule is to blame, it says so itself
            reason = str(problem) if expected else f"tracing it raised {type(problem).__name__}: {problem}"
            # Whoever hands over the loss as a function, or has counts on the host, does not expect kernels.
            quiet = any(map(callable, leaves)) or isinstance(problem, SeveralDevices)
            return _Traced(leaves, reason=reason, quiet=quiet)
        return _Traced(leaves, program, result)

    def _record(
        self, known: "_Known", leaves: list[Any], tensors: list[Tensor], targets: list[int | None]
    ) -> tuple[Graph, Structure]:
        results: list[Structure] = []

        def function(symbols: list[Any]) -> list[Any]:
            params, state, grads, extra = known.structure.unflatten(symbols)
            out: Any = self._pure(params, state, grads, extra)
            if self._donate:
                if tree.structure(out) != tree.structure((params, state)):
                    raise Misshapen
                # In the order of what it overwrites; where that is None, so is this.
                out = tree.map(lambda old, new: new, (params, state), out)
            results.append(Structure(out))
            flat = results[0].flatten(out)
            assert flat is not None
            return flat

        leaves = [_refuse if callable(x) else x for x in leaves]
        for x in leaves:
            if not (isinstance(x, Tensor | bool | str | None) or callable(x)):
                raise Untraceable(f"an argument holds {x!r}; pass numbers that may change as 0-dim tensors")
        layouts = [Layout.dense(x) for x in tensors]
        names = [name for name, x in zip(known.names, leaves, strict=True) if isinstance(x, Tensor)]
        device = _device(tensors, sum(target is not None for target in targets))
        graph = trace(function, leaves, layouts, names, device, targets if self._donate else None)
        return graph, results[0]


class BoundStep:
    """A donating step on trees that stay: `bound(grads)` writes the new values into them.

    Args:
        step: The step.
        params: The parameters.
        state: The state.
    """

    def __init__(self, step: Step, params: Params, state: State) -> None:
        self._step, self._params, self._state = step, params, state
        self._leaves = tree_leaves(params, state)
        self._token = object()  # stands for these leaves, where a comparison one by one would take longer
        self._known: _Known | None = None
        self._grads: Structure | None = None

    def __call__(self, grads: Updates, **extra: Any) -> None:
        """Take one optimizer step."""
        step = self._step
        if extra or step._backend == "eager" or _must_step_aside():
            step(self._params, self._state, grads, **extra)
            return
        flat = None if self._grads is None else self._grads.flatten(grads)
        if flat is None:
            self._grads = Structure(grads)
            self._known, _ = step._known_for(self._params, self._state, grads, {})
            flat = self._grads.flatten(grads)
        assert flat is not None
        assert self._known is not None
        if step._run(self._known, self._leaves + flat, self._token) is None:
            step._eager(self._params, self._state, grads, {})


class _Known:
    """What a step knows about arguments of one structure."""

    def __init__(self, trees: tuple[Any, ...]) -> None:
        self.structure = Structure(trees)
        self.fixed_size = len(tree_leaves(*trees[:2]))  # leaves of parameters and state, which come first
        self.traced: dict[Any, _Traced] = {}
        self.last: _Traced | None = None
        self.names = _names(self.structure, len(tree_leaves(*trees)))


class _Traced:
    """What came of tracing leaves of one signature: a program, or the reason why there is none."""

    def __init__(
        self,
        leaves: list[Any],
        program: Program | None = None,
        result: Structure | None = None,
        reason: str = "",
        *,
        quiet: bool = False,
    ) -> None:
        self.program, self.result, self.reason, self.quiet = program, result, reason, quiet
        self._positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        # Functions do not count: a rule that calls one has no program.
        self._others = [(i, x) for i, x in enumerate(leaves) if not (isinstance(x, Tensor) or callable(x))]
        self._default_dtype = torch.get_default_dtype()

    def agrees(self, leaves: list[Any]) -> bool:
        """Whether the leaves that are no tensors, and the settings that rules may look at, are those of the trace."""
        same = all(leaves[i] is x for i, x in self._others)
        return same and torch.get_default_dtype() == self._default_dtype

    def pick(self, leaves: list[Any]) -> list[Any]:
        """The leaves where the trace had tensors."""
        return leaves if len(self._positions) == len(leaves) else [leaves[i] for i in self._positions]


def make_step(tx: GradientTransformation, *, donate: bool = False, backend: str = "auto") -> Step:
    """Make one function of a whole optimizer step: transform the gradients and apply them.

    The rule is traced once per signature (structure, shapes, dtypes), and generated code runs in its place, C on
    the CPU and Triton on a CUDA device: one multi-tensor kernel per stage instead of an operator at a time. Values
    that change from step to step, such as counts, learning rates and other 0-dim tensors, are read anew at every
    step.

    The rule itself runs instead, without a word, under `torch.func` transforms, inside `torch.compile`, under
    another dispatch mode or autocast, when gradients are to flow through the update, on other devices or several,
    and on other classes of tensors. It also runs, with one warning that says why, if it cannot be traced (it reads
    a tensor on the host, or writes in place) or there is no compiler: none for C, or no Triton.

    Args:
        tx: The optimizer.
        donate: Write the new values into the old tensors and return the same objects. The step then
            allocates no parameters and no state, and the caller gives up the old values. Without it
            nothing that is passed in is written to.
        backend: How the step runs. `"auto"` is as above, unless the environment variable `OPTIMFN_BACKEND`
            names another backend; `"fused"` raises where `"auto"` would warn; `"eager"` runs the rule's own
            torch operations.

    Returns:
        A `Step`, `step(params, state, grads, **extra) -> (params, state)`. Where a gradient is `None` the
        parameter and its state stay as they are. If a step raises, nothing has been written.

    Raises:
        TypeError: if `tx` is not a `GradientTransformation`.
        ValueError: if there is no such backend; or, from a donating step, if two tensors to be written
            share memory, naming both.
        RuntimeError: from a step with `backend="fused"` that cannot be traced or compiled, saying why.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.sgd(0.5)
        >>> step = of.make_step(tx)
        >>> params = torch.tensor([2.0])
        >>> params, state = step(params, tx.init(params), torch.tensor([1.0]))
        >>> params
        tensor([1.5000])
    """
    check_transformation(tx=tx)
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = os.environ.get("OPTIMFN_BACKEND") or "auto"
        check_choice("OPTIMFN_BACKEND", backend, BACKENDS)
    return Step(tx, donate=donate, backend=backend)


def tree_leaves(*trees: Any) -> list[Any]:
    """The leaves of several trees, `None` among them, in the order of `Structure`."""
    leaves = Structure(trees).flatten(trees)
    assert leaves is not None
    return leaves


def _remake(tx: GradientTransformation, donate: bool, backend: str) -> Step:
    return Step(tx, donate=donate, backend=backend)


def _must_step_aside() -> bool:
    """Whether something watches or transforms operators, so that the rule itself must run."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or forward_ad._current_level >= 0
    )


def _signature(leaves: list[Any]) -> Any:
    """What a trace depends on; `None` if a leaf is not for kernels."""
    kinds: list[Any] = [torch.get_default_dtype()]
    for x in leaves:
        if not isinstance(x, Tensor):
            kinds.append((type(x), x if isinstance(x, bool | str) else None))
        elif not _is_ordinary(x):
            return None
        else:
            kinds.append((type(x), x.dtype, x.shape, x.stride(), x.device))
    return tuple(kinds)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    """Stands for every function among the arguments while a rule is traced."""
    raise Untraceable("it calls a function that it was given")


def _live(extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments with tensors for floats, such as a loss, which differ from step to step."""
    return {key: torch.tensor(x, dtype=torch.float64) if type(x) is float else x for key, x in extra.items()}


def _is_ordinary(x: Tensor) -> bool:
    """Whether kernels can read and write a tensor."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type in MACHINES and x.layout == torch.strided
    return plain and not (x.is_conj() or x.is_neg())


def _device(tensors: list[Tensor], fixed: int) -> torch.device:
    """Where all tensors are; only 0-dim ones that are no part of parameters and state may be on the CPU instead."""
    devices = dict.fromkeys(x.device for i, x in enumerate(tensors) if i < fixed or x.ndim or not x.is_cpu)
    if len(devices) > 1:
        raise SeveralDevices(f"its tensors are on {' and '.join(map(str, devices))}")
    return next(iter(devices), torch.device("cpu"))


def _names(structure: Structure, size: int) -> list[str]:
    """A name for every leaf of `(params, state, grads, extra)`: in a state, the field that holds it."""
    named = tree.leaves_with_path(structure.unflatten([*range(size)]))
    like_params = {path[1:] for path, _ in named if path[0] == 0}
    names = [""] * size
    for path, i in named:
        own = path
        if path[0] == 1:
            cut = next(cut for cut in range(1, len(path) + 1) if path[cut:] in like_params or cut == len(path))
            own = path[:cut]
        words = [word for word in own[1:] if isinstance(word, str)]
        name = "param" if path[0] == 0 else "grad" if path[0] == 2 else words[-1] if words else "state"
        names[i] = re.sub(r"\W|^(?=\d)", "_", name)
    return names
