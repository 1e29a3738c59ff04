"""One call for update and apply, pure or in place."""

from typing import Any, Protocol

import torch

from .._base import GradientTransformation, apply_updates, check_transformation
from .._checks import check_choice
from .._typing import Params, State, Updates
from ._write import overwrite


class Step(Protocol):
    """What `make_step` returns: `step(params, state, grads, **extra) -> (params, state)`."""

    def __call__(self, params: Params, state: State, grads: Updates, **extra: Any) -> tuple[Params, State]:
        """Take one optimizer step."""


def make_step(tx: GradientTransformation, *, donate: bool = False, backend: str = "eager") -> Step:
    """Make one function of a whole optimizer step: transform the gradients and apply them.

    Args:
        tx: The optimizer.
        donate: Write the new values into the old tensors and return the same objects. The step then
            allocates no parameters and no state, and the caller gives up the old values. Without it
            nothing that is passed in is written to.
        backend: How the step runs; `"eager"` runs the rule's own torch operations.

    Returns:
        `step(params, state, grads, **extra) -> (params, state)`. Where a gradient is `None` the
        parameter and its state stay as they are. If a step raises, nothing has been written.

    Raises:
        TypeError: if `tx` is not a `GradientTransformation`.
        ValueError: if there is no such backend; or, from a donating step, if two tensors to be written
            share memory, naming both.

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
    check_choice("backend", backend, ("eager",))

    def step(params: Params, state: State, grads: Updates, **extra: Any) -> tuple[Params, State]:
        updates, new_state = tx.update(grads, state, params, **extra)
        return apply_updates(params, updates), new_state

    def donating_step(params: Params, state: State, grads: Updates, **extra: Any) -> tuple[Params, State]:
        with torch.no_grad():
            overwrite((params, state), step(params, state, grads, **extra))
        return params, state

    return donating_step if donate else step
