"""Where the memory of tensors lies, and what of it they share."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch import is_dtensor, local_shard, unwrapped


class Taken(NamedTuple):
    """Stretches of memory, apart and in order."""

    starts: Sequence[int]
    ends: Sequence[int]

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor has memory in them."""
        return self.meet(*span(value))

    def meet(self, start: int, end: int) -> bool:
        """Whether they overlap what lies between two addresses."""
        after = bisect_right(self.ends, start)
        return start < end and after < len(self.starts) and self.starts[after] < end


def span(x: Tensor) -> tuple[int, int]:
    """The addresses from the first to after the last element; empty if there is no memory of its own."""
    x = _here(unwrapped(x))
    start = 0 if x.is_meta else x.data_ptr()
    if start == 0:
        return 0, 0
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.itemsize


def share_elements(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors whose memory overlaps have an element in common; columns of one matrix have none."""
    own, other = _offsets(_here(x)), _offsets(_here(y))
    return bool(torch.isin(own, other).any())


def _here(x: Tensor) -> Tensor:
    """What has memory here: of a leaf in shards its own."""
    return local_shard(x) if is_dtensor(x) else x


def _offsets(x: Tensor) -> Tensor:
    """Where each element begins, in bytes."""
    found = torch.tensor(x.data_ptr())
    for size, stride in zip(x.shape, x.stride(), strict=True):
        found = found.unsqueeze(-1) + torch.arange(size) * stride * x.itemsize
    return found.flatten()


def overlaps_itself(x: Tensor) -> bool:
    """Whether several elements of a tensor lie in one place, so that only one of them can be written."""
    if x.numel() < 2 or x.is_contiguous():
        return False
    axes = sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)
    extent = 0
    for stride, size in axes:
        if stride <= extent:
            break  # axes are interleaved, so it must be counted
        extent += (size - 1) * stride
    else:
        return False
    places = torch.zeros((), dtype=torch.int64)
    for stride, size in axes:
        if stride == 0:
            return True
        places = (places.unsqueeze(-1) + stride * torch.arange(size)).flatten()
    return len(set(places.tolist())) < x.numel()
