"""Entries of a checkpoint in other bits than they are wanted in: codes where numbers are wanted, and so on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._quantize import Quantized, dequantize, kind_of, requantized, written
from ..tree._shards import silence

_FIELDS = Quantized._fields
_MARK = ".like"  # by which a quantised leaf is known


class Formats:
    """What is to be read in the place of some entries, and what becomes of it.

    Args:
        wanted: The entries that are wanted, by name.
        sizes: The shapes of those that there are.
    """

    def __init__(self, wanted: Mapping[str, Tensor], sizes: Mapping[str, torch.Size]) -> None:
        self.entries = dict(wanted)
        self._stored: dict[str, bool] = {}  # whether a leaf that is read otherwise lies in codes
        self._wanted: dict[str, Quantized | None] = {}
        marks = {name for name in (*wanted, *sizes) if name.endswith(_MARK)}
        for path in sorted(name[: -len(_MARK)] for name in marks):
            names = [f"{path}.{field}" for field in _FIELDS]
            in_codes, as_codes = (all(name in entries for name in names) for entries in (sizes, wanted))
            same = in_codes and as_codes and all(sizes[name] == wanted[name].shape for name in names)
            if same or not (in_codes or path in sizes) or not (as_codes or path in wanted):
                continue
            self._wanted[path] = Quantized(*[self.entries.pop(name) for name in names]) if as_codes else None
            with silence():
                own = self._wanted[path]
                x = self.entries.pop(path) if own is None else dequantize(own)
                self._stored[path] = in_codes
                if in_codes:
                    self.entries |= zip(names, written([(x, kind_of(sizes[names[-1]]))])[0], strict=True)
                else:
                    self.entries[path] = x

    def names(self) -> set[str]:
        """What is read otherwise."""
        return {name for path, in_codes in self._stored.items() for name in _names(path, in_codes)}

    def restore(self, read: dict[str, Any], given: Mapping[str, Tensor], donate: bool) -> None:
        """Put what is wanted in the place of what was read.

        Args:
            read: What was read, by name; it is changed.
            given: The entries that were wanted.
            donate: Whether to write into them.
        """
        found = {}
        for path, in_codes in self._stored.items():
            own = [read.pop(name) for name in _names(path, in_codes)]
            found[path] = dequantize(Quantized(*own)) if in_codes else own[0]
        as_codes = [path for path, own in self._wanted.items() if own is not None]
        made = requantized([(found.pop(path), own) for path, own in self._wanted.items() if own is not None])
        for path, codes in zip(as_codes, made, strict=True):
            found |= zip(_names(path, True), codes, strict=True)
        read |= {name: given[name].copy_(x) if donate else x.to(given[name].dtype) for name, x in found.items()}


def _names(path: str, in_codes: bool) -> list[str]:
    return [f"{path}.{field}" for field in _FIELDS] if in_codes else [path]
