"""Where Python numbers of a rule stand: in the source, or in the table of 0-dim values.

A number that only takes part in arithmetic, such as a learning rate, is no part of the source: it has a slot, which is
filled when the tables are made, and never written. So what differs in such numbers only is compiled once. One that
decides what is computed, such as the 2 of a square, stays, and so do whole numbers in the programs of leaves, where
compilers make something of them; in 0-dim arithmetic, such as that of schedules, they have slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..ir import _ops
from ..ir._graph import Node
from ..ir._kernels import Constant
from ..ir._numbers import in_registers


class Number(NamedTuple):
    """A number in the table of 0-dim values, as it is in registers; the text tells 0.0 from -0.0."""

    value: int | float
    text: str
    dtype: torch.dtype  # that of the arithmetic it takes part in


class Numbers:
    """The slots of numbers, with one for all that are equal bit by bit.

    Args:
        first: The first slot; those before hold what is computed.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._slots: dict[tuple[str, torch.dtype], int] = {}
        self.held: list[Number] = []

    def slot(self, number: Number) -> int:
        """The slot of a number."""
        slot = self._slots.setdefault((number.text, number.dtype), self._first + len(self.held))
        if slot == self._first + len(self.held):
            self.held.append(number)
        return slot


def settled(node: Node, *, whole: bool = False) -> tuple[str, list[Node | Number | Constant]]:
    """What a node is in a program: an operator, which may depend on numbers, and operands.

    Args:
        node: The node.
        whole: Whether whole numbers have slots too.
    """
    args = node.args[:1] if node.op == "fill" else node.args
    if all(isinstance(x, Node) for x in args):
        return node.op, [*args]
    op = _ops.settled(node.op, args)
    return op, [x if isinstance(x, Node) else _number(op, args, i, node.compute, whole) for i, x in enumerate(args)]


def _number(op: str, args: Sequence[Any], position: int, compute: torch.dtype, whole: bool) -> Number | Constant:
    value = args[position]
    if not _ops.is_free(op, args, position, compute, whole=whole):
        return Constant(value, _text(value))
    value = in_registers(_ops.as_operand(value, op, position, compute), compute)
    return Number(value, _text(value), compute)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, float) else repr(value)
