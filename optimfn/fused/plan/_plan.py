"""What planning makes of a graph: stages, and what their rows and calls refer to.

Stage k runs in three steps: the opaque nodes whose operands are ready (ATen), the 0-dim arithmetic (tables of
calls), and the leaf kernels, in one parallel region. A reduction ends a stage. Pointwise values are computed
again in each stage that needs them, which is cheaper than storing them.

What is computed on one leaf in one stage is a row; rows with the same program are of one kernel. A kernel knows
neither how many leaves there are nor how large they are, so the C source does not depend on the model.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ..ir._graph import Node
from ..ir._kernels import Kernel, Output, Owner, Stage
from ._numbers import Number


@dataclass(frozen=True, eq=False)
class Plan:
    """The stages that compute the outputs of a graph, and what they work on."""

    nodes: Sequence[Node]  # all that are needed, parents first
    inputs: Sequence[Node]
    outputs: Sequence[Output]
    results: Sequence[Sequence[tuple[Owner, Any]]]  # for each its values, and under which owner it has them
    stages: Sequence[Stage]
    final: Stage  # stores of 0-dim values, which nobody reads any more
    buffers: int  # how many there are
    buffer_of: Mapping[Node, int]  # of inputs, folds and opaque nodes
    temporary: Mapping[Node, int]  # values that must lie in memory, and the buffer each is stored in
    folds: Mapping[Node, int]  # and those that kernels reduce over some axes
    copies: Sequence[tuple[Node, int, Owner]]  # outputs of dtypes without a C type, and their targets
    solid: AbstractSet[Node]  # opaque nodes whose result must be dense memory of its own
    places: Mapping[Node, Node]  # for some of those the temporary value in whose memory it may lie
    slot: Mapping[Node, int]  # of each 0-dim value
    numbers: Sequence[Number]  # in the slots after those
    kernels: Sequence[Kernel]
    lines: Mapping[Kernel, Sequence[str]]  # where the rule says what the entries of a kernel compute
    owners: Mapping[Node, Owner] | None  # of all nodes that have one; `None` if no part can be left out
    was: Mapping[Node, str]  # operators of rules that became reductions
