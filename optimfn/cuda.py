"""CUDA graphs: a training step recorded once, and replayed without the host's work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import tree
from ._checks import check_callable, check_steps
from .optim._contract import watch_steps


class CapturedFunction:
    """A function as a CUDA graph; `capture` makes it.

    Every call does what a call of the function does, once. The first `warmup` calls run it as it is, on a stream of
    their own; the next one captures it, which executes nothing, and replays the graph; the others replay it.
    """

    def __init__(self, fn: Callable[..., Any], example_inputs: tuple[Any, ...], warmup: int) -> None:
        self.fn = fn
        self.warmup = warmup
        self._static = tree.map(_own, list(example_inputs))
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._optimizers: list[Any] = []
        self._reset()

    def __call__(self, *inputs: Any) -> Any:
        """Take a step with these inputs, shaped as the examples.

        Returns:
            What the function returns. From the first replay on these are always the same tensors, which the next
            call overwrites.
        """
        self._copy_in(list(inputs))
        if self._graph is not None and self._has_moved():
            self.release()
        if self._graph is None:
            if self._calls < self.warmup:
                self._calls += 1
                return self._run_eagerly()
            self._capture()
        self._fill_gradients()
        self._graph.replay()
        return self._output

    def release(self) -> None:
        """Give the memory of the graph back; the next calls warm up and capture anew.

        Call it before `torch.distributed.destroy_process_group`, which waits for captured collectives.
        """
        if self._graph is not None:
            torch.cuda.synchronize()
            self._graph.reset()
        self._reset()

    def _reset(self) -> None:
        self._graph: Any = None
        self._output: Any = None
        self._calls = 0
        self._addresses: list[Any] = []
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def _copy_in(self, inputs: list[Any]) -> None:
        if tree.structure(inputs) != tree.structure(self._static):
            raise ValueError(f"the inputs are {tree.structure(inputs)}, the examples {tree.structure(self._static)}")
        pairs = list(zip(tree.leaves(self._static), tree.leaves(inputs), strict=True))
        for position, (static, given) in enumerate(pairs):
            if not isinstance(static, Tensor):
                if given != static:
                    raise ValueError(
                        f"input {position} is {given!r}; {static!r} was captured, and only tensors may change"
                    )
            elif static.shape != given.shape or static.dtype != given.dtype:
                raise ValueError(
                    f"input {position} is {given.dtype} {tuple(given.shape)}, "
                    f"the example {static.dtype} {tuple(static.shape)}"
                )
        with torch.no_grad():
            for static, given in pairs:
                if isinstance(static, Tensor) and given is not static:
                    static.copy_(given)

    def _run_eagerly(self) -> Any:
        """Warm up: lazy state, workspaces and communicators must be there before a capture."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream), watch_steps() as optimizers:
            output = self.fn(*self._static)
        here.wait_stream(self._stream)
        self._optimizers = optimizers
        return output

    def _capture(self) -> None:
        params = [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]
        before = [(p, p.grad, None if p.grad is None else p.grad._version) for p in params]
        for optimizer in self._optimizers:
            optimizer.write_hyperparameters()
            optimizer.settle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the watchdog of NCCL, may go on using CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"), watch_steps():
                output = self.fn(*self._static)
        except Exception as error:
            raise RuntimeError(
                f"{getattr(self.fn, '__name__', self.fn)!r} cannot be captured: {error}. In a captured function no "
                "number may be read from the device, no shape may depend on data, and each parameter needs a gradient"
            ) from error
        self._graph, self._output = graph, output
        self._addresses = [optimizer.addresses() for optimizer in self._optimizers]
        # Gradients that the function read, and did not make, are inputs.
        self._gradients = [
            (p, g) for p, g, version in before if g is not None and p.grad is g and g._version == version
        ]

    def _has_moved(self) -> bool:
        """Bring the hyperparameters up to date, and see whether the graph still writes where the state lies."""
        return [optimizer.addresses() for optimizer in self._optimizers] != self._addresses

    def _fill_gradients(self) -> None:
        """Bring gradients in new memory, as autograd makes them after `zero_grad`, to where the graph reads."""
        for p, static in self._gradients:
            if p.grad is None:
                raise RuntimeError("a parameter has no gradient; the graph would take its step with the last one")
            if p.grad is not static:
                static.copy_(p.grad)
                p.grad = static


def capture(fn: Callable[..., Any], *example_inputs: Any, warmup: int = 3) -> CapturedFunction:
    """Make a CUDA graph of a function that takes optimizer steps, without losing or adding a step.

    `fn` may be a whole training step (forward, backward, `opt.step()`, `opt.zero_grad()`) or `opt.step` alone, after
    gradients computed outside. Hyperparameters stay live: what schedulers and assignments change in `param_groups`
    takes effect in the next call. `opt.load_state_dict` writes into the captured buffers. If state or parameters do
    come to lie elsewhere, as after `add_param_group`, the next calls warm up and capture anew.

    Args:
        fn: A function of tensors, with optimizers of optimfn in it.
        *example_inputs: Trees of tensors on the device, shaped as the inputs of every later call. Numbers among them
            are constants.
        warmup: Calls that run `fn` as it is before it is captured, >= 1.

    Returns:
        A function of the same inputs, with `release()`.

    Raises:
        RuntimeError: if there is no CUDA device; or, in the call that captures, if `fn` cannot be captured, for example
            because it reads a number from the device or a parameter has no gradient. Nothing has been executed then.
        ValueError: in a call, if an input has another shape or dtype than its example.

    Example:
        >>> import torch, optimfn as of
        >>> if torch.cuda.is_available():
        ...     model = torch.nn.Linear(4, 1, device="cuda")
        ...     opt = of.Optimizer(model.parameters(), of.adamw(1e-3))
        ...     def train_step(x):
        ...         opt.zero_grad()
        ...         loss = model(x).square().mean()
        ...         loss.backward()
        ...         opt.step()
        ...         return loss
        ...     step = of.cuda.capture(train_step, torch.ones(8, 4, device="cuda"))
        ...     losses = [step(torch.randn(8, 4, device="cuda")).item() for _ in range(10)]
    """
    check_callable(fn=fn)
    check_steps(warmup=warmup, at_least=1)
    if not torch.cuda.is_available():
        raise RuntimeError("capture needs a CUDA device; without one, call the function itself")
    return CapturedFunction(fn, example_inputs, warmup)


def _own(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
