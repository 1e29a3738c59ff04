"""Compressors in which every replica is the owner of a part of all gradients, which it averages for the others.

Each sends every owner what it has of that part, compressed; the owner decompresses, averages, compresses the mean, and
sends it to all. The owner's error is fed back like that of the senders, so nothing is lost but for a while.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tree
from .._checks import check_steps
from .._recipe import factory
from .._state_spec import LeafSpec
from .._typing import State, Tree
from ._comm import Peers, all_gather, all_to_all
from ._compressors import Compressor, Leaves, cut


class OwnerState(NamedTuple):
    """What an owner has not yet passed on."""

    owned: Annotated[Tensor, LeafSpec("flat_shard")]  # its part of one vector of all leaves


class Code(NamedTuple):
    """How rows become bytes, and back."""

    # (rows, how many numbers all rows have) -> (bytes of each row, one number that goes with them or nothing)
    encode: Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
    decode: Callable[[Tensor, Tensor | None, int, torch.dtype], Tensor]  # (bytes, numbers, length, dtype) -> rows


@factory
def sign_1bit() -> Compressor:
    """Send the sign of every element, and one length for all of them.

    A sixteenth of a bit-for-bit all-reduce and less; meant for error feedback, and for gradients, or momenta behind
    Adam's second moment, of one scale. One all-to-all and three all-gathers.

    Maths:
        sent <- s sign(c),  s = |c| / sqrt(n) over all leaves, sign(0) = 1
        of its part the owner: v <- mean_r sent_r + o;  mean <- s' sign(v), s' alike;  o <- v - mean

    Source: Tang et al. 2021, arXiv 2102.02888, algorithm 1, its compressed all-reduce.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.sign_1bit())
        >>> g = torch.tensor([1.0, -7.0])
        >>> tx.update(g, tx.init(g))[0]
        tensor([ 5., -5.])
    """

    def encode(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return _pack(rows >= 0), torch.linalg.vector_norm(rows) / max(count, 1) ** 0.5

    def decode(code: Tensor, scale: Tensor | None, length: int, dtype: torch.dtype) -> Tensor:
        sign = _unpack(code, length).to(dtype) * 2 - 1
        return sign if scale is None else scale.reshape(-1, 1) * sign

    return _by_owners(Code(encode, decode))


@factory
def int8_block(size: int = 512) -> Compressor:
    """Send every element as a whole number of 8 bits, times one float32 for each block of elements.

    A quarter of the bytes of float32, twice: to the owners, and from them. One all-to-all and one all-gather.

    Maths:
        sent <- s round(c / s),  s = max |c| / 127 of the block
        of its part the owner: v <- mean_r sent_r + o;  mean <- v rounded alike;  o <- v - mean

    Args:
        size: The elements of a block, >= 1.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Dettmers 2015, arXiv 1511.04561, section 2, with a linear code.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.compressed_mean(None, of.distributed.int8_block())
        >>> g = torch.tensor([127.0, 3.2])
        >>> tx.update(g, tx.init(g))[0]
        tensor([127.,   3.])
    """
    check_steps(size=size, at_least=1)

    def encode(rows: Tensor, count: int) -> tuple[Tensor, None]:
        length = rows.shape[1]
        blocks = F.pad(rows, (0, -length % size)).reshape(len(rows), -1, size)
        scale = (blocks.abs().amax(-1) / 127).to(torch.float32)
        whole = torch.round(blocks / torch.where(scale == 0, 1.0, scale)[..., None]).clamp(-127, 127).to(torch.int8)
        own = whole.reshape(len(rows), -1)[:, :length].contiguous().view(torch.uint8)
        return torch.cat([own, scale.contiguous().view(torch.uint8)], 1), None

    def decode(code: Tensor, scale: Tensor | None, length: int, dtype: torch.dtype) -> Tensor:
        whole = code[:, :length].contiguous().view(torch.int8).to(dtype)
        scales = code[:, length:].clone(memory_format=torch.contiguous_format).view(torch.float32).to(dtype)
        return whole * scales.repeat_interleave(size, 1)[:, :length]

    return _by_owners(Code(encode, decode))


def _by_owners(code: Code) -> Compressor:
    def init(params: Tree, peers: Peers) -> State:
        leaves = tree.leaves(params)
        total = sum(x.numel() for x in leaves)
        part = -(-total // peers.size)
        length = max(min(part, total - peers.rank * part), 0)
        return OwnerState(torch.cat([x.reshape(-1) for x in leaves]).new_zeros(length) if leaves else torch.zeros(0))

    def average(leaves: Leaves, state: OwnerState, peers: Peers) -> tuple[list[Tensor], list[Tensor], State]:
        flat = torch.cat([x.reshape(-1) for x in leaves]) if leaves else torch.zeros(0)
        total, own_length = flat.numel(), state.owned.numel()
        if not total:
            return [*leaves], [*leaves], state
        part = -(-total // peers.size)
        rows = F.pad(flat, (0, peers.size * part - total)).reshape(peers.size, part)
        code_of_all, scale = code.encode(rows, total)
        sent = code.decode(code_of_all, scale, part, flat.dtype).reshape(-1)[:total]
        arrived = code.decode(all_to_all(code_of_all, peers), _gathered(scale, peers), part, flat.dtype)
        owned = (arrived.sum(0) / peers.size)[:own_length] + state.owned
        back, scale = code.encode(F.pad(owned, (0, part - own_length))[None], own_length)
        kept = owned - code.decode(back, scale, part, flat.dtype)[0, :own_length]
        means = code.decode(all_gather(back[0], peers), _gathered(scale, peers), part, flat.dtype)
        return cut(means.reshape(-1)[:total], leaves), cut(sent, leaves), OwnerState(kept)

    return Compressor(init, average, shards="none")


def _gathered(scale: Tensor | None, peers: Peers) -> Tensor | None:
    return None if scale is None else all_gather(scale, peers)


def _pack(flags: Tensor) -> Tensor:
    """Eight flags of a row in one byte."""
    eights = F.pad(flags.to(torch.uint8), (0, -flags.shape[1] % 8)).reshape(len(flags), -1, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(-1, dtype=torch.uint8)


def _unpack(code: Tensor, length: int) -> Tensor:
    flags = (code[..., None] >> torch.arange(8, dtype=torch.uint8, device=code.device)) & 1
    return flags.reshape(len(code), -1)[:, :length]
