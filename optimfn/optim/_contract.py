"""What the base class of torch expects of a step, and what capturing it needs."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import is_observed

_stepping = set[int]()  # no attribute of theirs: the compiler of torch 2.10 cannot set one on an optimizer


class FiresHooksOnce(torch.optim.Optimizer):
    """Step hooks that run once per step, also where a subclass calls `super().step()`.

    torch wraps the `step` of every class that has instances, so there one within the other runs them twice.
    """

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a `step`, as torch does, but not within a wrapped one, and not where nobody looks: it takes 15 us."""
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            own = id(self)
            if own in _stepping:
                return func(self, *args, **kwargs)
            _stepping.add(own)
            try:
                return (hooked if is_observed(self) else func)(self, *args, **kwargs)
            finally:
                _stepping.discard(own)

        return step


def every(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The parameters of all groups or, of those of a state dict, their numbers."""
    return [one for group in groups for one in group["params"]]


def is_capturing(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the step is being captured in a CUDA graph."""
    on_device = any(_is_on_device(p) for group in groups for p in group["params"][:1])
    return on_device and torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def watch_steps() -> Iterator[list[Any]]:
    """Collect the optimizers that make a step within the context."""
    seen: list[Any] = []
    _watchers.append(seen)
    before = _here.set((*_here.get(), seen))
    try:
        yield seen
    finally:
        _here.reset(before)
        _watchers[:] = [other for other in _watchers if other is not seen]


def is_watched() -> bool:
    """Whether somebody collects steps, who then sees to the hyperparameters of what is captured."""
    return bool(_watchers and _here.get())


def report_step(optimizer: Any) -> None:
    """Tell those who watch of a step."""
    for seen in _here.get() if _watchers else ():
        if not any(optimizer is one for one in seen):
            seen.append(optimizer)


# Of all threads; compilers, which cannot follow what belongs to a context, see that there is none.
_watchers: list[list[Any]] = []
_here: contextvars.ContextVar[tuple[list[Any], ...]] = contextvars.ContextVar("watchers", default=())


def _is_on_device(p: Tensor) -> bool:
    return p.is_cuda


def refuse_absent(params: Mapping[Any, Tensor]) -> None:
    """Raise for parameters without a gradient: a graph would leave them where they are for ever."""
    absent = [name for name, p in params.items() if p.requires_grad and p.grad is None]
    if absent:
        raise RuntimeError(f"no gradient for {', '.join(absent)} while the step is captured: it would never move")
