"""When each output is written, so that nobody finds the new contents of a leaf where the old ones are meant.

A donating step writes over what it reads. Three things decide when a store may run:

- Its level: a value exists from the stage on that computes it. What ends a stage (a reduction, a fold, a value that an
  opaque node reads) puts all that depends on it one level up.
- The last opaque node: ATen may raise, and a step that raises has written nothing. Stores into what was given
  therefore wait for the stage of the last one.
- Old contents: pointwise values are computed again in every stage that needs them, so a leaf is read in later stages
  too. A store waits for the last stage that reads what it overwrites. Within one stage the row that reads an element
  may write it, because it loads before it stores and rows of one leaf are one row; but what is spread or folded is read
  by other rows, or at other places, in an order that nobody knows, and what overwrites it waits for the next stage.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..ir._graph import Node, Untraceable
from ..ir._kernels import Owner


@dataclass
class Store:
    """A value and the buffer that it goes to."""

    node: Node
    buffer: int
    stage: int
    name: str
    owner: Owner
    is_new: bool = False  # whether it is a result in memory of its own


def delay(
    stores: Sequence[Store],
    stages: int,
    most: int,
    read: Callable[[int], tuple[Iterable[int], Iterable[int]]],
) -> int:
    """Put stores off until nobody reads any more what they overwrite; returns how many stages there are then.

    Args:
        stores: The stores, each in the first stage that has its value.
        stages: How many stages there are.
        most: How many there may be.
        read: The buffers of inputs that the rows of a stage read, and those that they read out of order.
    """
    moved = True
    while moved:
        # A store that moves takes along the stage in which its own operands are read, so this may take several rounds.
        moved, first_free = False, dict[int, int]()
        for k in range(stages):
            in_order, out_of_order = read(k)
            first_free.update(dict.fromkeys(in_order, k))
            first_free.update(dict.fromkeys(out_of_order, k + 1))
        for store in stores:
            if first_free.get(store.buffer, 0) > store.stage:
                store.stage, moved = first_free[store.buffer], True
                stages = max(stages, store.stage + 1)
        if stages > most:
            raise Untraceable("leaves are overwritten with what is computed from each other's rows")
    return stages
