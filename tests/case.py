"""What a case of the table is."""

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import optimfn as of

NEGATIVE = "must be a number >= 0, got -1.0"
NO_DECAY = r"must be in \[0, 1\), got 1.0"

# The keys of `skips`: what a case may say that it does not do, with the reason. A key skips every law under it.
LAWS = {
    "absent": "a leaf whose gradient is absent keeps its state and gets no update",
    "alone": "leaves do not see each other: a leaf steps alone as it does among others",
    "checkpoint": "a state survives a file, and goes on from it",
    "compile": "one graph of `torch.compile` serves every step, and makes the state",
    "complex": "complex leaves keep their dtypes, and are stepped by kernels too",
    "differentiable": "derivatives flow through updates, by parameters, gradients and numbers, in both modes",
    "dtype": "float16, bfloat16, float32 and float64 are kept, and half precision is rounded once",
    "fused": "kernels give what the rule gives",
    "live": "a number may be a tensor, which is read at every step",
    "meta": "tensors without values do: nothing is read on the host",
    "oracle": "the parameters are those of the oracle, and of every other way to take the steps",
    "pure": "nothing that is given is written to or kept, and results repeat",
    "ragged": "trees of any form, empty ones and leaves of any strides do",
    "range": "gradients of any size give finite updates in the right direction",
    "recorded": "`repr`, equality, pickling and copies know the arguments",
    "sensitive": "the parameters feel a small change of a gradient",
    "vmap": "models run together step as they do one by one",
}


@dataclass(frozen=True)
class Case:
    """One way to make a transformation, and what is known about it."""

    name: str
    make: Callable[..., of.GradientTransformation]
    kwargs: dict[str, Any] = field(default_factory=dict)
    oracle: Callable[..., Any] | None = None  # (params, gradients) -> parameters after every step
    rtol: float = 1e-12  # of the largest number of a leaf, in float64, over 50 steps
    layouts: float = 0.0  # absolute tolerance between leaves that lie otherwise in memory, in float64
    batched: float = 1e-12  # tolerance between models run together under vmap and one by one, in float64
    live: tuple[str, ...] = ()  # arguments that may be 0-dim tensors
    covers: tuple[str, ...] = ()  # public names this case stands for, besides `make`
    needs_params: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # given to every update, such as `value`
    skips: dict[str, str] = field(default_factory=dict)  # a key of LAWS -> why it does not hold
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...] = ()  # changed arguments, error, its words

    def plain(self) -> of.GradientTransformation:
        """Make the transformation; whoever uses it hands over the extra arguments."""
        return self.make(**self.kwargs)

    def tx(self, **changes: Any) -> of.GradientTransformation:
        """Make the transformation; its update takes the extra arguments of the case by itself."""
        tx = self.make(**{**self.kwargs, **changes})
        return replace(tx, update=functools.partial(tx.update, **self.extra)) if self.extra else tx

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live arguments as 0-dim float64 tensors."""
        return {name: torch.tensor(self.kwargs[name], dtype=torch.float64) for name in self.live}

    def floats(self) -> dict[str, float]:
        """Every argument that is a float and may be a 0-dim tensor, whether it was given or not."""
        signature = inspect.signature(self.make)
        bound = signature.bind(**self.kwargs)
        bound.apply_defaults()
        may = {n for n, p in signature.parameters.items() if torch.Tensor in typing.get_args(p.annotation)}
        return {n: v for n, v in bound.arguments.items() if isinstance(v, float) and n in may.union(self.live)}


@dataclass(frozen=True)
class ScheduleCase:
    """One way to make a schedule, and its value as a function of an int in plain Python."""

    name: str
    make: Callable[..., Any]
    kwargs: dict[str, Any]
    value: Callable[[int], float]
    live: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...] = ()

    def schedule(self, **changes: Any) -> Any:
        """Make the schedule."""
        return self.make(**{**self.kwargs, **changes})
