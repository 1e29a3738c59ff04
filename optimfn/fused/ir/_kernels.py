"""What plans are made of: programs of leaves and of 0-dim values, and the tables of where they work."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from ._graph import Node

Owner = int | frozenset[int] | None
"""Whose gradient something is computed from: that of one leaf, or those of any of several; `None` if of no special one.

What has an owner is left out of a step in which that gradient is absent; `~leaf` owns what is computed only then.
"""


class Constant(NamedTuple):
    """A Python number in a program; the text tells 0.0 from -0.0 and 1 from True."""

    value: Any
    text: str


class Entry(NamedTuple):
    """One value of a leaf program: a scalar, an element of a buffer, or an operator on earlier entries.

    A buffer that is `spread` has fewer elements than the leaf: its op is "row" if it stays the same along the last
    axes of the leaf, and "column" if it goes along with them. What is there once for each block is `of_block`, whether
    it is computed or a buffer. A "packed" buffer has two elements in a byte.
    """

    kind: Literal["scalar", "buffer", "spread", "packed", "compute"]
    op: str
    args: tuple[int | Constant, ...]
    dtype: torch.dtype
    compute: torch.dtype
    name: str
    of_block: bool = False


class Result(NamedTuple):
    """What becomes of an entry: it is stored, alone or two in a byte, or reduced over what the kernel loops over."""

    kind: Literal["store", "pack", "sum", "mean", "max", "min"]
    entry: int
    dtype: torch.dtype
    name: str
    is_new: bool = False  # whether it is stored where nobody has read


class Kernel(NamedTuple):
    """The program of a leaf.

    It goes over all elements ("flat"), in runs along which what is spread stays or goes along ("runs"), or has one
    result for each row ("rows") or column ("columns"). In blocks ("blocks") it goes over each block as often as it
    needs the largest magnitude in it to go on, while that is in the cache, and over runs in it if something is spread.
    """

    entries: tuple[Entry, ...]
    results: tuple[Result, ...]
    loop: Literal["flat", "runs", "rows", "columns", "blocks"]
    block: int = 0  # elements of a block

    def passes(self) -> list[int]:
        """For each entry of a kernel in blocks, in which of the passes over a block it is computed.

        That is the first that needs it, so that as little as possible is kept from one pass to the next. What lies in
        memory is read in the first: it may be written over in the next.
        """
        first: list[int] = []
        for entry in self.entries:
            before = max([first[x] for x in entry.args if not isinstance(x, Constant)], default=0)
            first.append(before + (entry.op == "largest"))
        needed = [set[int]() for _ in self.entries]
        for result in self.results:
            needed[result.entry].add(first[result.entry])
        found = [*first]
        for i, entry in reversed([*enumerate(self.entries)]):
            if entry.kind == "compute" and not entry.of_block:
                found[i] = min(needed[i], default=first[i])
            for x in entry.args:
                if not isinstance(x, Constant):
                    needed[x].add(found[i] - (entry.op == "largest"))
        return found


class Form(NamedTuple):
    """The program of a 0-dim value: load it, store it, reduce several, or apply an operator."""

    kind: Literal["load", "store", "reduce", "compute"]
    op: str
    args: tuple[torch.dtype | Constant, ...]
    dtype: torch.dtype
    compute: torch.dtype

    @property
    def values(self) -> list[torch.dtype]:
        """The dtypes of the 0-dim values that it takes."""
        return [self.dtype] if self.kind == "store" else [x for x in self.args if not isinstance(x, Constant)]


class Link(NamedTuple):
    """One value of a chain; the operands are earlier links, or `None` for one that a slot holds."""

    form: Form
    operands: tuple[int | None, ...]


class Chain(NamedTuple):
    """Several forms, each at work on one value, without tables in between."""

    links: tuple[Link, ...]


@dataclass
class Row:
    """A kernel at work on one leaf.

    The extents are the length of a run, and `times` and `inner` of every spread entry; those of the fold. Blocks are
    the runs where nothing is spread.
    """

    kernel: Kernel
    buffers: list[int]
    slots: list[int]
    extents: list[int]
    numel: int
    reductions: list[Node]
    owner: Owner = None


@dataclass
class Call:
    """A form at work on a list of 0-dim values; each row is a slot and what it is made from.

    A chain has one row, which holds those of its links. A reduction has one as well; the owners are those of its
    operands.
    """

    form: Form | Chain
    rows: list[list[int]]
    owners: list[Owner]

    @property
    def reduces(self) -> bool:
        """Whether it makes one value of as many as it is given."""
        return isinstance(self.form, Form) and self.form.kind == "reduce"


@dataclass
class Stage:
    """Opaque nodes, then 0-dim arithmetic, then rows."""

    opaque: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class Output(NamedTuple):
    """Where a leaf of the result comes from."""

    kind: Literal["value", "buffer", "new", "opaque"]
    value: Any  # the value, the number of the buffer, or the opaque node
    node: Node | None = None
