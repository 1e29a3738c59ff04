"""A loop that the values decide the end of, in every execution."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._torch import is_batched, is_watched, unwrapped
from .._typing import Tree
from ._arithmetic import carry, where


def while_loop(condition: Callable[[Tree], Tensor], body: Callable[[Tree], Tree], state: Tree, at_most: int) -> Tree:
    """Apply `body` as long as `condition` holds, but at most so many times.

    Run eagerly, the loop ends when the condition fails, for which its value is read back once a round. Where it cannot
    be read, since it is batched, traced, compiled, captured or on the `meta` device, all rounds are computed and those
    after the end are dropped. The result is the same.

    Args:
        condition: `condition(state)`, a 0-dim bool tensor.
        body: `body(state)`, the next state, of the same structure and shapes.
        state: Any tree; it keeps its dtypes.
        at_most: Largest number of rounds.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.while_loop(lambda x: x < 100, lambda x: 2 * x, torch.tensor(3), at_most=10)
        tensor(192)
    """
    for _ in range(at_most):
        go_on = condition(state)
        if not _can_be_read(go_on):
            state = carry(where(go_on, body(state), state), state)
        elif go_on:
            state = carry(body(state), state)
        else:
            break
    return state


def _can_be_read(flag: Tensor) -> bool:
    if torch.compiler.is_compiling() or flag.is_meta:
        return False
    if flag.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return not is_batched(flag) and type(unwrapped(flag)) is Tensor and not is_watched()
