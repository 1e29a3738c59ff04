"""Work that is not done in every step, chosen by a count on the host."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._torch import is_batched, is_watched, unwrapped
from .._typing import Params, Tree
from ._arithmetic import carry
from ._core import leaves, map, unflatten


def host_count(params: Params) -> Tensor:
    """A step counter at zero for `every`: 0-dim int64, on the CPU whatever the device of the parameters."""
    del params  # named, so that a rule says of both kinds of counters what they belong to
    return torch.zeros((), dtype=torch.int64)


def every(
    period: int | Callable[..., Tensor],
    count: Tensor | tuple[Tensor, ...],
    compute: Callable[..., Tree],
    kept: Tree,
    *given: Tree,
    offset: int = 0,
) -> Tree:
    """What `compute(kept, *given)` returns in one step of `period`, and `kept` in the others, without calling it.

    The choice is made on the host: `count` is a `host_count`, as it stands in the state, and reading it waits for no
    device. A fused step has one program for either choice; a compiled one has a branch. Where the count cannot be read
    or is not on the host (members of a `vmap` have a count each), both are computed in every step, and one is taken:
    the result is the same, the work is not saved.

    Args:
        period: Steps from one call to the next, >= 1; or a function of the counts that says in a 0-dim bool tensor
            whether it is called, as a schedule that becomes sparser does.
        count: Steps taken, a 0-dim integer tensor out of the state; or several, which the function is given.
        compute: A pure function, of tensors that it is given and of nothing else that lies in a state or a gradient. It
            returns a tree in the structure and shapes of `kept`. For `torch.compile`, which takes `x.mT` for one more
            tensor that is handed over, transposes are written `x.transpose(-1, -2)`.
        kept: What there is in the other steps; the result has its dtypes.
        given: Further trees that it is called with.
        offset: Number of steps by which it comes earlier, so that work of several leaves need not fall together.

    Example:
        >>> import torch, optimfn as of
        >>> for count in range(4):
        ...     print(of.tree.every(3, torch.tensor(count), lambda old: old + 1, torch.tensor(7)).item(), end=" ")
        8 7 7 8
    """
    counts = count if isinstance(count, tuple) else (count,)

    def chosen(*counts: Tensor) -> Tensor:
        return period(*counts) if callable(period) else (counts[0] + offset) % period == 0

    def is_due(counts: tuple[Tensor, ...]) -> bool:
        return bool(chosen(*counts)) if callable(period) else (int(counts[0]) + offset) % period == 0

    def fresh(kept: Tree, *given: Tree) -> Tree:
        return carry(compute(kept, *given), kept)

    if period == 1:
        return fresh(kept, *given)
    # That of a symbol of a fused step, which notes what was decided, and the leaves that they stand for.
    decide, own = getattr(counts[0], "decide", None), [getattr(x, "leaf", None) for x in counts]
    if decide is not None and all(leaf is not None and leaf.is_cpu for leaf in own):
        due: bool = decide(is_due, counts)
    elif torch.compiler.is_compiling():
        return _branch(chosen(*counts), fresh, (kept, *given))
    elif not all(_can_be_read(x) for x in counts):
        taken = chosen(*counts)
        # What belongs to leaves without a gradient is handed on as it is.
        either = map(lambda new, old: old if new is old else torch.where(taken, new, old), fresh(kept, *given), kept)
        return carry(either, kept)
    else:
        due = is_due(counts)
    return fresh(kept, *given) if due else kept


def _branch(condition: Tensor, fresh: Callable[..., Tree], given: tuple[Tree, ...]) -> Tree:
    """The same as a branch of a compiled graph, to which all tensors are handed over in a list."""

    def one(*tensors: Tensor) -> list[Tensor]:
        return [x.clone(memory_format=torch.contiguous_format) for x in leaves(fresh(*unflatten(given, [*tensors])))]

    def other(*tensors: Tensor) -> list[Tensor]:
        return [x.clone(memory_format=torch.contiguous_format) for x in leaves(unflatten(given, [*tensors])[0])]

    return unflatten(given[0], torch.cond(condition, one, other, tuple(leaves(given))))


def _can_be_read(count: Tensor) -> bool:
    """Whether its value is at hand, without waiting for a device."""
    return count.is_cpu and not is_batched(count) and type(unwrapped(count)) is Tensor and not is_watched()
