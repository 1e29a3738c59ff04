"""What came of a trace, for one step."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir._graph import Misfit, StepAside
from ..trace._lower import Place, Shards, wrap
from ._code import Selection
from ._flatten import Structure
from ._program import Program

PLAIN = (Tensor, bool, str, type(None))  # what a trace may depend on, besides functions


class Traced:
    """What came of tracing leaves of one signature: a program, or the reason why there is none.

    Args:
        leaves: The leaves.
        program: The program.
        result: The structure of its result.
        reason: Why there is none.
        quiet: Whether that is no surprise.
        aside: Why the rule itself runs without a word, if there is neither.
        shards: Which of the tensors lie in shards, if some do.
        places: Where each leaf of the result lies, then.
    """

    def __init__(
        self,
        leaves: list[Any],
        program: Program | None = None,
        result: Structure | None = None,
        reason: str = "",
        *,
        quiet: bool = False,
        aside: str = "the rule itself runs for these arguments",
        shards: Shards | None = None,
        places: Sequence[Place | None] | None = None,
    ) -> None:
        self.aside = aside
        self._shards, self._places = shards, places or ()
        self.program, self.result = program, result
        self.selection: Selection | None = None  # what to run of it; all, if there is none
        self.reason, self.quiet = reason, quiet
        self.positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        # Functions and objects do not count: a rule that uses one has no program.
        plain = [(i, x) for i, x in enumerate(leaves) if isinstance(x, PLAIN) and not isinstance(x, Tensor)]
        self._others = [] if self.reason else plain
        self._default_dtype = torch.get_default_dtype()

    def select(self, program: Program, selection: Selection, absent: list[int]) -> "Traced":
        """The same with some of the tensors absent, and what runs then; these are their places among the leaves."""
        some = copy.copy(self)
        some.program, some.selection = program, selection
        some._others = self._others + [(i, None) for i in absent]
        return some

    def agrees(self, leaves: list[Any]) -> bool:
        """Whether the leaves that are no tensors, and what rules may look at besides numbers, are as in the trace."""
        same = all(leaves[i] is x for i, x in self._others) and torch.get_default_dtype() == self._default_dtype
        return same and self.holds(leaves)

    def holds(self, leaves: list[Any]) -> bool:
        """Whether masks and the like say of other leaves what they said of those of the trace."""
        if self.program is None or not self.program.code.decisions:
            return True
        tensors = self.pick(leaves)
        with torch.no_grad():
            return all(decision.holds(tensors) for decision in self.program.code.decisions)

    def run(self, leaves: list[Any], token: object) -> list[Any]:
        """What the program makes of leaves: the leaves of the result; none if they were written.

        Raises:
            Misfit, StepAside: as a `Program` does.
        """
        assert self.program is not None
        tensors = self.pick(leaves)
        if self._shards is None:
            return self.program(tensors, token, self.selection)
        own = self._shards.opened(tensors)
        if own is None:
            raise Misfit
        if (
            not self.program.writes
            and torch.is_grad_enabled()
            and any(x.requires_grad for x in tensors if x is not None)
        ):
            raise StepAside("gradients are to flow through it")
        outputs = self.program(own, token, self.selection)
        return wrap(outputs, self._places, self._shards.like(tensors)) if outputs else outputs

    def pick(self, leaves: list[Any]) -> list[Any]:
        """The leaves where the trace had tensors."""
        return leaves if len(self.positions) == len(leaves) else [leaves[i] for i in self.positions]
