"""Write the program of a leaf that goes over blocks as C."""

from collections.abc import Sequence

import torch

from ..ir._kernels import Kernel
from ._c_leaf import BLOCK, Leaf, Total, loaded, pointer, stored
from ._types import C_MEMORY as MEMORY
from ._types import C_TYPES as COMPUTE


class _Pass:
    """One of the times that a kernel goes over a block."""

    def __init__(self) -> None:
        self.heads, self.runs, self.body, self.ends = list[str](), list[str](), list[str](), list[str]()
        self.totals: list[Total] = []
        self.largest: list[tuple[str, str]] = []  # names, and the suffix of their dtype


class Blocks(Leaf):
    """Writes the program of a leaf in blocks: what a later pass needs of an earlier one is kept on the stack."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self._size, self._passes, self._is_wide = kernel.block, [_Pass()], self._is_wide or kernel.block > BLOCK
        self._spreads = any(entry.kind == "spread" for entry in kernel.entries)
        self._of_block, self._kept = False, list[str]()

    def enter(self, number: int, of_block: bool) -> None:
        while len(self._passes) <= number:
            self._passes.append(_Pass())
        self._now, self._of_block = self._passes[number], of_block
        self._runs, self._body, self._totals = self._now.runs, self._now.body, self._now.totals

    def element(self, name: str, dtype: torch.dtype, buffer: int) -> None:
        if not self._of_block:
            super().element(name, dtype, buffer)
            return
        self._loads.append(f"const {MEMORY[dtype]} *{name}_of = {pointer(dtype, buffer)};")
        self._now.heads.append(f"const {COMPUTE[dtype]} {name} = {loaded(dtype, f'{name}_of[block]')};")

    def value(self, name: str, dtype: torch.dtype, text: str, line: str) -> None:
        if self._of_block:
            self._body = self._now.heads
        super().value(name, dtype, text, line)

    def store(self, name: str, dtype: torch.dtype, value: str, buffer: int, is_new: bool) -> None:
        if not self._of_block:
            super().store(name, dtype, value, buffer, is_new)
            return
        self._loads.append(f"{MEMORY[dtype]} *{name}_to = {pointer(dtype, buffer)};")
        self._now.heads.append(f"{name}_to[block] = {stored(dtype, value)};")

    def packed(self, name: str, buffer: int) -> None:
        self._loads.append(f"const uint8_t *{name}_of = {pointer(torch.uint8, buffer)} + start / 2;")
        self._kept.append(f"uint8_t {name}_two[{self._size}];")
        self._now.heads.append(f"unpack({name}_two, {name}_of + begin / 2, end - begin);")
        self._body.append(f"const uint8_t {name} = {name}_two[i - begin];")

    def pack(self, name: str, value: str, buffer: int) -> None:
        self._loads.append(f"uint8_t *{name}_to = {pointer(torch.uint8, buffer)} + start / 2;")
        self._kept.append(f"uint8_t {name}_two[{self._size}];")
        self._body.append(f"{name}_two[i - begin] = {value};")
        self._now.ends.append(f"pack({name}_to + begin / 2, {name}_two, end - begin);")

    def largest(self, name: str, dtype: torch.dtype, value: str) -> None:
        before, suffix = self._passes[self._passes.index(self._now) - 1], "f" if COMPUTE[dtype] == "float" else ""
        before.largest.append((f"{name}_bits", suffix))
        before.body.append(f"const Bits{suffix} {name}_own = magnitude{suffix}({value});")
        before.body.append(f"{name}_bits = GREATER({name}_own, {name}_bits);")
        self._now.heads.append(f"const {COMPUTE[dtype]} {name} = from_magnitude{suffix}({name}_bits);")

    def keep(self, name: str, dtype: torch.dtype, passes: Sequence[int]) -> None:
        self._kept.append(f"{COMPUTE[dtype]} {name}_kept[{self._size}];")
        self._now.body.append(f"{name}_kept[i - begin] = {name};")
        for number in passes:
            while len(self._passes) <= number:
                self._passes.append(_Pass())
            self._passes[number].body.append(f"const {COMPUTE[dtype]} {name} = {name}_kept[i - begin];")

    def _loops(self) -> list[str]:
        everything = [total for one in self._passes for total in one.totals]
        lines = [line for one in self._passes for line in self._over_block(one)]
        # Compilers make better loops of blocks of a known length; only the last of a leaf may be short.
        return [
            *(f"double {total.name}_all = {total.empty};" for total in everything),
            *self._kept,
            f"int64_t begin = 0, block = start / {self._size};",
            f"for (; begin + {self._size} <= n; begin += {self._size}, block++) {{",
            f"  const int64_t end = begin + {self._size};",
            *(f"  {line}" for line in lines),
            "}",
            "if (begin < n) {",
            "  const int64_t end = n;",
            *(f"  {line}" for line in lines),
            "}",
        ]

    def _over_block(self, one: _Pass) -> list[str]:
        """What is there once for each block, and the loop over its elements."""
        lines = [*one.heads, *(f"Bits{suffix} {name} = 0;" for name, suffix in one.largest)]
        if not one.body:
            return lines
        self._body, sums = one.body, [total for total in one.totals if total.how == "sum"]
        lines += [f"{total.kind} {total.name}_part = 0;" for total in sums]
        self._totals, self._most = one.totals, [name for name, _ in one.largest]
        if self._spreads:
            lines += [
                "for (int64_t from = begin, to_; from < end; from = to_) {",
                "  to_ = from + LEAST(end - from, run - (start + from) % run);",
                "  const int64_t place = start + from;",
                *(f"  {line}" for line in [*one.runs, *self._elements("from", "to_")]),
                "}",
            ]
        else:
            lines += self._elements("begin", "end")
        return [*lines, *one.ends, *(f"{total.name}_all += {total.name}_part;" for total in sums)]
