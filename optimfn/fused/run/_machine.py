"""What all machines that run plans have in common, whatever their language."""

import struct
from array import array
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..emit._function import Function
from ..emit._print import Writers, print_form, print_kernel
from ..ir._kernels import Chain, Form, Kernel, Owner, Stage
from ..plan._plan import Plan


class MachineCode:
    """The functions of a plan in one language, and its tables: what programs of equal traces have in common.

    Args:
        plan: The plan.
        stages: Its stages, and last the stores, as the machine runs them.
        language: The language.
        format_of: The eight bytes in which a slot holds numbers of a dtype.
    """

    def __init__(
        self, plan: Plan, stages: Sequence[Stage], language: Writers, format_of: Callable[[torch.dtype], str]
    ) -> None:
        self.stages, self.buffers = stages, plan.buffers
        forms = dict.fromkeys(call.form for stage in stages for call in stage.calls)
        self.functions: dict[Kernel | Form | Chain, Function] = {
            **{kernel: print_kernel(language, kernel, plan.lines[kernel]) for kernel in plan.kernels},
            **{form: print_form(language, form) for form in forms},
        }
        # What the slots hold before the first step: numbers, which stay.
        self.values = array("q", bytes(8 * len(plan.slot)))
        for number in plan.numbers:
            self.values.frombytes(struct.pack(format_of(number.dtype), number.value))

    @property
    def sources(self) -> list[Path]:
        """The files in which its kernels can be read."""
        raise NotImplementedError

    def select(self, present: Set[Owner]) -> Any:
        """The tables for a step that has these gradients."""
        raise NotImplementedError


class Machine:
    """Code, and the memory that one program needs for it.

    Args:
        code: The code.
    """

    def __init__(self, code: MachineCode) -> None:
        self.stages = len(code.stages)
        self.buffers = array("q", bytes(8 * code.buffers))  # the address of each

    def run(self, first: int, last: int) -> None:
        """Run stages."""
        raise NotImplementedError

    def choose(self, chosen: Any, past_caches: bool = False) -> None:
        """Run with a selection of the tables from now on, or those of the whole plan.

        Large results in new memory may go past the caches.
        """
        raise NotImplementedError

    def clash(self, spans: "array[int]", skipped: int, sizes: "array[int]") -> bool:
        """Whether a buffer after the first `skipped` overlaps one of the spans of memory, sorted starts and ends."""
        raise NotImplementedError

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Take note of memory that stages use beside inputs and tables."""
