"""Print kernels, the programs of leaves, and forms, those of 0-dim values: one walk, in the words of a writer.

The walk knows what stands in a program and where its row in the tables says so. A writer knows a language: how a
value is loaded, named, stored and reduced there, and what loops look like.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch

from ..ir._kernels import Chain, Form, Kernel, Link
from ._expression import Language, entry_expression, form_expression
from ._function import Function


class LeafWriter(Protocol):
    """Writes the program of a leaf. Buffers, slots and extents are given by their position in the row of a leaf."""

    def extents(self, positions: Sequence[int]) -> None:
        """Those of the loop: the length of a run, or how many elements are folded, and how many lie between them."""

    def scalar(self, name: str, dtype: torch.dtype, slot: int) -> None:
        """A 0-dim value."""

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        """An element of a buffer that is like the leaf."""

    def spread(self, name: str, dtype: torch.dtype, buffer: int, extents: tuple[int, int], axis: str) -> None:
        """An element of a buffer that is repeated along some axes."""

    def index(self, name: str) -> None:
        """The number of the element, as int64."""

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        """What is computed, and where the rule says so."""

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        """Write a value into a buffer that is like the leaf, and perhaps such as nobody has read."""

    def reduce(self, name: str, how: str, value: str, dtype: torch.dtype) -> None:
        """Reduce a value to one partial result."""

    def fold(self, name: str, how: str, value: str, dtype: torch.dtype, buffer: int, to: torch.dtype) -> None:
        """Reduce a value to the elements of a buffer."""

    def text(self) -> str:
        """The function, with `$` for its name."""


class BlockWriter(LeafWriter, Protocol):
    """Writes a program that goes over blocks, each in several passes."""

    def enter(self, number: int, of_block: bool) -> None:
        """What follows belongs to a pass, and is there once for each block or for each element."""

    def packed(self, name: str, buffer: int) -> None:
        """An element of a buffer that has two in each byte."""

    def pack(self, name: str, value: str, buffer: int) -> None:
        """Write a value into such a buffer."""

    def largest(self, name: str, dtype: torch.dtype, value: str) -> None:
        """The largest magnitude of a value of the pass before."""

    def keep(self, name: str, dtype: torch.dtype, passes: Sequence[int]) -> None:
        """Later passes need a value too."""


class ScalarWriter(Protocol):
    """Writes the program of 0-dim values. Slots and buffers are given by their position in a row."""

    def slot(self, name: str, dtype: torch.dtype, position: int) -> None:
        """Read a value from a slot."""

    def load(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        """Read one from a buffer."""

    def value(self, name: str, dtype: torch.dtype, text: str) -> None:
        """Compute one."""

    def keep(self, name: str, dtype: torch.dtype, slot: int) -> None:
        """Write one into a slot."""

    def store(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        """Write one into a buffer."""

    def text(self, fields: int) -> str:
        """The function, with `$` for its name, for rows of so many fields."""


class Writers(Language, Protocol):
    """The writers of a language."""

    def leaf(self, kernel: Kernel) -> LeafWriter:
        """For a kernel that does not go over blocks."""

    def blocks(self, kernel: Kernel) -> BlockWriter:
        """For one that does."""

    def scalars(self, form: Form | Chain) -> ScalarWriter:
        """For a form that is no reduction."""

    def reduction(self, form: Form) -> str:
        """The function that reduces 0-dim values to one: a row is the slot of the result, then those of the values."""


def print_kernel(language: Writers, kernel: Kernel, lines_of_rule: Sequence[str]) -> Function:
    """The program of a leaf as a function of one chunk."""
    in_blocks = language.blocks(kernel) if kernel.block else None
    write = in_blocks or language.leaf(kernel)
    passes, later = kernel.passes(), _later(kernel)
    # A name of an entry ends in its number, so no other name may.
    names = [f"{entry.name}{number}" for number, entry in enumerate(kernel.entries)]
    buffers, slots = itertools.count(), itertools.count()
    extents = itertools.count(sum(entry.kind == "scalar" for entry in kernel.entries))
    write.extents([next(extents) for _ in range({"flat": 0, "runs": 1, "blocks": 1}.get(kernel.loop, 2))])
    for number, (name, entry, line) in enumerate(zip(names, kernel.entries, lines_of_rule, strict=True)):
        if in_blocks:
            in_blocks.enter(passes[number], entry.of_block)
        if entry.kind == "scalar":
            write.scalar(name, entry.dtype, next(slots))
        elif entry.kind == "buffer":
            write.element(name, entry.dtype, next(buffers))
        elif in_blocks and entry.kind == "packed":
            in_blocks.packed(name, next(buffers))
        elif entry.kind == "spread":
            write.spread(name, entry.dtype, next(buffers), (next(extents), next(extents)), entry.op)
        elif entry.op == "index":
            write.index(name)
        elif in_blocks and entry.op == "largest" and isinstance(entry.args[0], int):
            in_blocks.largest(name, entry.dtype, names[entry.args[0]])
        else:
            write.value(name, entry.dtype, entry_expression(language, entry, kernel.entries, names), line)
        if in_blocks and later[number]:
            in_blocks.keep(name, entry.dtype, later[number])
    for number, result in enumerate(kernel.results):
        if in_blocks:
            in_blocks.enter(passes[result.entry], kernel.entries[result.entry].of_block)
        name, value, own = f"{result.name}{number}", names[result.entry], kernel.entries[result.entry].dtype
        if result.kind == "store":
            write.store(f"new_{name}", result.dtype, value, next(buffers), result.is_new)
        elif in_blocks and result.kind == "pack":
            in_blocks.pack(f"new_{name}", value, next(buffers))
        elif kernel.loop in ("rows", "columns"):
            write.fold(f"{result.kind}{number}", result.kind, value, own, next(buffers), result.dtype)
        else:
            write.reduce(f"{result.kind}{number}", result.kind, value, own)
    return Function.named("_".join(dict.fromkeys(result.name for result in kernel.results)), write.text())


def _later(kernel: Kernel) -> list[list[int]]:
    """For each entry the later passes over a block whose elements need it; what is there once is at hand."""
    passes, found = kernel.passes(), [set[int]() for _ in kernel.entries]
    for entry, number in zip(kernel.entries, passes, strict=True):
        own = number - (entry.op == "largest")
        for x in entry.args:
            if isinstance(x, int) and not kernel.entries[x].of_block and kernel.entries[x].kind != "scalar":
                found[x] |= {own} - {passes[x]}
    return [sorted(passes) for passes in found]


def print_form(language: Writers, form: Form | Chain) -> Function:
    """The program of 0-dim values as a function of rows: one for a chain or a reduction, else many."""
    if isinstance(form, Form) and form.kind == "reduce":
        return Function.named(_stem(form), language.reduction(form))
    write = language.scalars(form)
    links = form.links if isinstance(form, Chain) else (Link(form, (None,) * len(form.values)),)
    names: list[str] = []
    field = 0
    for number, (one, operands) in enumerate(links):
        name, given = f"{one.op or one.kind}{number}", list[str]()
        names.append(name)
        for k, (operand, dtype) in enumerate(zip(operands, one.values, strict=True)):
            given.append(f"{name}_{k}x" if operand is None else names[operand])
            if operand is None:
                write.slot(given[-1], dtype, field + k + (one.kind != "store"))
        if one.kind == "store":
            write.store(given[0], one.dtype, field + 1)
        elif one.kind == "load":
            write.load(name, one.dtype, field + 1)
        else:
            write.value(name, one.dtype, form_expression(language, one, given))
        if one.kind != "store":
            write.keep(name, one.dtype, field)
        field += 1 + len(operands) if one.kind == "compute" else 2
    return Function.named("chain" if isinstance(form, Chain) else _stem(form), write.text(field))


def _stem(form: Form) -> str:
    return f"{form.kind}_{form.op or str(form.dtype).removeprefix('torch.')}"
