"""What is sent: calls and bytes of the collectives of a stretch of code."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from torch import Tensor

from .._torch import DispatchMode, is_dtensor

# The operators of torch.distributed by what they do, and which of their arguments is handed over.
_KINDS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "all_reduce": ("all_reduce", 0),
    "all_reduce_": ("all_reduce", 0),
    "all_reduce_coalesced": ("all_reduce", 0),
    "all_reduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 1),
    "_allgather_base_": ("all_gather", 1),
    "allgather_into_tensor_coalesced_": ("all_gather", 1),
    "all_gather_into_tensor": ("all_gather", 0),
    "all_gather_into_tensor_out": ("all_gather", 0),
    "all_gather_into_tensor_coalesced": ("all_gather", 0),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "reduce_scatter_tensor": ("reduce_scatter", 0),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 0),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 0),
    "broadcast": ("broadcast", 0),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "gather_": ("gather", 1),
    "scatter_": ("scatter", 1),
    "send": ("send", 0),
}
_SPACES = ("c10d", "_c10d_functional")


class Sent(NamedTuple):
    """How often, and how much."""

    calls: int  # collectives
    bytes: int  # of the tensors that this process handed to them


class CommTrace:
    """What this process has handed to collectives while the context was open; see `comm_trace`."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Sent] = {}
        """The calls and bytes of each kind of collective."""
        self._mode: Any = None

    @property
    def calls(self) -> int:
        """The collectives of all kinds."""
        return sum(one.calls for one in self.by_kind.values())

    @property
    def bytes(self) -> int:
        """The bytes handed to all of them."""
        return sum(one.bytes for one in self.by_kind.values())

    def __enter__(self) -> Self:
        listener: Any = _Listener
        self._mode = listener()
        self._mode.trace = self
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._mode.__exit__(*exception)
        self._mode = None

    def note(self, kind: str, size: int) -> None:
        """Add one collective."""
        before = self.by_kind.get(kind, Sent(0, 0))
        self.by_kind[kind] = Sent(before.calls + 1, before.bytes + size)


def comm_trace() -> CommTrace:
    """Count what this process hands to collectives while the context is open.

    Whoever sends them is counted: rules, DTensors, a module's own backward pass. The bytes are those of the tensors
    that go in; how many travel depends on the algorithm: 2 (W - 1) / W of them for an all-reduce around a ring. While
    it counts, steps run by their rules and not by kernels, with the same results.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.all_reduce_mean(None)
        >>> with of.distributed.comm_trace() as sent:
        ...     updates, state = tx.update({"w": torch.ones(3)}, tx.init({"w": torch.ones(3)}))
        >>> sent.calls, sent.bytes, sent.by_kind
        (0, 0, {})
    """
    return CommTrace()


class _Listener(DispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    trace: CommTrace

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch._dynamo, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a collective, and let everything be done."""
        if any(is_dtensor(x) for x in _tensors(args)):
            return NotImplemented  # it comes again as what it does to the shards
        if func.namespace in _SPACES:
            kind, place = _KINDS.get(func.overloadpacket.__name__, (None, 0))
            if kind is not None:
                self.trace.note(kind, sum(x.nbytes for x in _tensors(args[place])))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
