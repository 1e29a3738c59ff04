"""One call for update and apply, pure or in place, run as generated kernels where that can be."""

import contextlib
import os
import threading
import warnings
from typing import Any, TypeVar

import torch

from ..._base import GradientTransformation, check_transformation
from ..._checks import check_choice, check_flag
from ..._in_place._parts import Parts
from ..._in_place._write import overwrite, settle
from ..._rows import are_sparse, donating
from ..._torch import is_differentiating, is_intercepted
from ..._typing import Params, State, Updates
from ..ir._graph import Misfit, StepAside
from ._explain import explain
from ._flatten import Form, OtherStructure, Structure, are_leaves
from ._known import Known, pure
from ._process import Process
from ._program import Program
from ._shared import Keys, itself
from ._traced import Traced
from ._unread import Opened, live_arguments

T = TypeVar("T")
S = TypeVar("S")

BACKENDS = ("auto", "fused", "eager")
_MOST_STRUCTURES = 64  # that a step remembers


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
        self._structures: list[Known] = []
        self._keys: Keys | None = None
        self._parts = Parts(tx)
        Process.give_lock(self)
        self._warned: set[str] = set()
        self._ran: Program | str | None = None  # what ran in the last step, or why the rule itself did

    def __reduce__(self) -> Any:
        return _remake, (self._tx, self._donate, self._backend)

    def __repr__(self) -> str:
        return f"make_step({self._tx!r}, donate={self._donate}, backend={self._backend!r})"

    def __call__(self, params: T, state: S, grads: Updates, **extra: Any) -> tuple[T, S]:
        """Take one optimizer step."""
        if not self._steps_aside():
            done = self._run_with(params, state, grads, extra)
            if done is not None:
                return done if not self._donate else (params, state)
        return self._eager(params, state, grads, extra)

    __call__.__qualname__ = "step"  # by which Python speaks of an argument that is missing

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
        return "not traced yet: take a step first" if self._ran is None else explain(self._ran)

    # Ways to run

    def _steps_aside(self) -> bool:
        """Whether the rule itself must run, whatever the arguments are."""
        aside = "chosen by the backend" if self._backend == "eager" else _reason_to_step_aside()
        if aside and not torch.compiler.is_compiling():
            self._ran = aside
        return bool(aside)

    def _eager(self, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> tuple[Params, State]:
        if not self._donate:
            return pure(self._tx, params, state, grads, extra)
        with torch.no_grad():
            if not are_sparse(grads) and self._parts.take(params, state, grads, extra):
                return params, state
            with contextlib.nullcontext() if torch.compiler.is_compiling() else donating():
                new = pure(self._tx, params, state, grads, extra)
            state, new_state = settle(state, new[1])
            overwrite((params, state), (new[0], new_state))
        return params, state

    def _run_with(self, params: Params, state: State, grads: Updates, extra: dict[str, Any]) -> Any:
        """`_run`, with the arguments open into which the rule looks."""
        own, exactly = itself(self._tx), False
        while True:
            try:
                return self._run(
                    *self._known_for(
                        params, state, grads, live_arguments(extra, own.opened, own.is_own), exactly=exactly
                    )
                )
            except Opened as found:
                own.opened |= found.keys
            except OtherStructure:
                exactly = True

    def _run(self, known: Known, leaves: list[Any], token: object = None) -> Any:
        """The new trees, or `True` if they were written; `None` if the rule itself must run."""
        traced = known.last
        if traced is None or traced.program is None or not traced.agrees(leaves):
            traced = self._find(known, leaves)
        for _ in range(3):
            if traced.program is None:
                self._ran = traced.reason or traced.aside
                if traced.reason and self._backend == "fused":
                    raise RuntimeError(f"{self._tx!r} cannot run fused: {traced.reason}")
                return None
            try:
                outputs = traced.run(leaves, token)
            except StepAside as problem:
                self._ran = str(problem) or "this step cannot be captured"
                return None
            except Misfit:
                traced = self._find(known, leaves, traced)
                continue
            assert traced.result is not None
            self._ran = traced.program
            return traced.result.unflatten(outputs) if not self._donate else True
        self._ran = "tensors changed while the step began"
        return None

    # Programs

    def _known_for(self, *trees: Any, exactly: bool = False) -> tuple[Known, list[Any]]:
        """What is known about parameters, state, gradients and extra arguments of this structure, and their leaves."""
        own = itself(self._tx)
        for known in self._structures:
            leaves = known.form.flatten(trees) if known.form.opened == own.opened else None
            if leaves is not None and not (exactly and not are_leaves(leaves)):
                if exactly:  # it comes first from now on
                    self._structures = [known, *[x for x in self._structures if x is not known]]
                return known, leaves
        for form in own.forms:
            leaves = form.flatten(trees) if form.opened == own.opened else None
            if leaves is not None and are_leaves(leaves):
                break
        else:
            form = Form(trees, own.opened)
            leaves = form.flatten(trees) or []
            own.forms = [*own.forms, form][-_MOST_STRUCTURES:]
        known = Known(self._tx, self._donate, form)
        self._structures = [known, *self._structures][:_MOST_STRUCTURES]
        return known, leaves

    def _find(self, known: Known, leaves: list[Any], misfit: Traced | None = None) -> Traced:
        """The trace for leaves of this signature: an old one, or a new one."""
        with self.lock:
            self._keys = self._keys or Keys(self._tx)
            traced = known.find(leaves, self._keys, misfit)
        if traced.reason and not traced.quiet and self._backend == "auto" and traced.reason not in self._warned:
            self._warned.add(traced.reason)
            warnings.warn(f"{self._tx!r} runs eagerly: {traced.reason}", RuntimeWarning, stacklevel=4)
        return traced


class BoundStep:
    """A donating step on trees that stay: `bound(grads)` writes the new values into them.

    Args:
        step: The step.
        params: The parameters.
        state: The state.
    """

    def __init__(self, step: Step, params: Params, state: State) -> None:
        self._step, self._params, self._state = step, params, state
        self._leaves: list[Any] = []
        self._token = object()  # stands for these leaves, where a comparison one by one would take longer
        self._known: Known | None = None
        self._grads: Structure | None = None

    def __call__(self, grads: Updates, **extra: Any) -> None:
        """Take one optimizer step."""
        step = self._step
        if extra or step._steps_aside():
            step(self._params, self._state, grads, **extra)
            return
        flat = None if self._grads is None else self._grads.flatten(grads)
        if flat is None:
            self._known, leaves = step._known_for(self._params, self._state, grads, {}, exactly=True)
            self._leaves, self._grads = leaves[: self._known.form.fixed_size], self._known.form.structures[2]
            flat = self._grads.flatten(grads)
        assert flat is not None
        assert self._known is not None
        try:
            done = step._run(self._known, self._leaves + flat, self._token)
        except OtherStructure:  # of the gradients, about which the rule has a word
            done = None
        if done is None:
            step._eager(self._params, self._state, grads, {})


def make_step(tx: GradientTransformation, *, donate: bool = False, backend: str = "auto") -> Step:
    """Make one function of a whole optimizer step: transform the gradients and apply them.

    The rule is traced once per signature (structure, shapes, dtypes), and generated code runs in its place, C on
    the CPU and Triton on a CUDA device: one multi-tensor kernel per stage instead of an operator at a time. Values
    that change from step to step, such as counts, learning rates and other 0-dim tensors, and numbers among the extra
    arguments, are read anew at every step. Python numbers that a rule finds elsewhere, as in `cfg.lr`, are constants of
    the trace: a later change is not seen, so hold a 0-dim tensor there. Extra arguments that are no numbers and that
    nobody reads do not matter.

    The rule itself runs instead, without a word, under `torch.func` transforms, inside `torch.compile`, under
    another dispatch mode or autocast, when gradients are to flow through the update, on other devices or several,
    and on other classes of tensors. It also runs, with one warning that says why, if it cannot be traced (it reads
    a tensor on the host, or writes in place) or there is no compiler: none for C, or no Triton.

    A donating step of the rule itself, on half a megabyte of parameters or more, goes through the leaves some at a
    time, and so holds less than twice the parameters beside the state, if the end of the chain is `leafwise` and the
    rule is made of this package's factories alone. A function of yours among their arguments may raise, extra arguments
    may be anything, and tensors may be of other classes or on several devices: there all new values are computed before
    the first is written, which takes several times the parameters.

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
        parameter and its state stay as they are. If a step raises, nothing has been written, unless memory runs
        out while the rule itself runs some leaves at a time.

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
    check_flag(donate=donate)
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = os.environ.get("OPTIMFN_BACKEND") or "auto"
        check_choice("OPTIMFN_BACKEND", backend, BACKENDS)
    return Step(tx, donate=donate, backend=backend)


def _remake(tx: GradientTransformation, donate: bool, backend: str) -> Step:
    return Step(tx, donate=donate, backend=backend)


def _reason_to_step_aside() -> str:
    """What watches or transforms operators, so that the rule itself must run; empty if nothing does."""
    if torch.compiler.is_compiling():
        return "torch.compile compiles it"
    if is_differentiating():
        return "torch.func, or forward mode, transforms it"
    if is_intercepted():
        return "another dispatch mode watches the operators"
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return "it is under autocast" if autocast else ""
