"""Which values of a row are there once for each block of its leaf."""

from collections.abc import Callable, Iterable

from ..ir._graph import Node, SeveralBlocks


class Blocks:
    """What blocks have to do with the values of a row.

    Attributes:
        size: The elements of a block; 0 if there are none.
        values: The values of blocks: what is computed from the largest magnitudes, and what is repeated for the
            elements, with all that it is computed from.
        numels: How many elements the leaf has, as far as blocks know it.

    Args:
        nodes: All values of the row.
        is_given: Whether one lies in memory.

    Raises:
        SeveralBlocks: if there are several sizes.
    """

    def __init__(self, nodes: Iterable[Node], is_given: Callable[[Node], bool]) -> None:
        here = [x for x in nodes if not x.is_scalar]
        cuts = [x for x in here if x.op in ("largest", "to_blocks", "pack", "unpack") and not is_given(x)]
        sizes = {x.args[1] for x in cuts}
        if len(sizes) > 1:
            raise SeveralBlocks(f"a leaf is cut into blocks of {sorted(sizes)} elements")
        self.size: int = next(iter(sizes), 0)
        self.numels = {(x.args[0] if x.op in ("largest", "pack") else x).numel for x in cuts}
        self.values: set[Node] = set()
        found = [x if x.op == "largest" else x.args[0] for x in cuts if x.op in ("largest", "to_blocks")]
        families = _families(here, is_given) if cuts else {}
        for x in found:
            self.values |= families.get(x, {x})


def _families(nodes: list[Node], is_given: Callable[[Node], bool]) -> dict[Node, set[Node]]:
    """For each value those that have an element wherever it has one: all that are computed element by element."""
    family = {x: {x} for x in nodes}
    for x in nodes:
        if is_given(x) or x.op in ("largest", "to_blocks", "spread", "pack", "unpack"):
            continue
        for parent in x.parents():
            if parent in family and family[parent] is not family[x]:
                small, large = sorted((family[parent], family[x]), key=len)
                large |= small
                for member in small:
                    family[member] = large
    return family
