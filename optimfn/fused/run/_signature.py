"""What tensors are like without their values: what a trace depends on, and what kernels expect."""

import operator
from collections.abc import Callable, Collection, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..._torch import like_these
from ..ir._shapes import is_dense

_dtype, _shape, _device = operator.attrgetter("dtype"), operator.attrgetter("shape"), operator.attrgetter("device")
_is_cpu, _layout = operator.attrgetter("is_cpu"), operator.attrgetter("layout")  # is_cpu is faster than device
_requires_grad = operator.attrgetter("requires_grad")
_MOST_TRIES = 4  # to make a function in C++ that knows tensors of a signature by flags that do not belong to it


class Signature:
    """The classes, dtypes, shapes, strides and devices of tensors. Equal signatures share a trace.

    Args:
        tensors: The tensors.
    """

    __slots__ = (
        "_are_plain",
        "_classes",
        "_devices",
        "_dtypes",
        "_hash",
        "_may_be_negated",
        "_shapes",
        "_strides",
        "_tries",
    )

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Columns, not a record for each tensor: a step compares them at the speed of C.
        self._dtypes, self._shapes = list(map(_dtype, tensors)), list(map(_shape, tensors))
        self._strides = list(map(Tensor.stride, tensors))
        self._classes = list(map(type, tensors))
        self._devices = None if all(map(_is_cpu, tensors)) else list(map(_device, tensors))
        self._hash: int | None = None
        self._may_be_negated: list[bool] | None = None
        self._are_plain: Callable[..., bool] | None = None
        self._tries = 0

    @property
    def _columns(self) -> tuple[Any, ...]:
        return self._classes, self._dtypes, self._shapes, self._strides, self._devices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self._columns == other._columns

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((tuple(self._dtypes), tuple(self._shapes)))
        return self._hash

    def are_plain(self, tensors: Sequence[Any]) -> bool:
        """Whether tensors have this signature, and none requires a gradient. In C++, for what is asked at every step.

        It may say no of those of which `match` says yes; from the second time on it then knows them.
        """
        if self._are_plain is None or len(tensors) != len(self._classes):  # of another number the guard raises
            return False
        return self._are_plain(*tensors)

    def match(self, tensors: Sequence[Any]) -> bool:
        """Whether tensors have this signature; a leaf that is no tensor has none."""
        matches = self._match(tensors)
        if matches and tensors and self._tries < _MOST_TRIES:
            self._tries += 1
            if self._tries > 1 and not any(map(_requires_grad, tensors)):  # many signatures are met once only
                self._are_plain = like_these(tensors)
        return matches

    def _match(self, tensors: Sequence[Any]) -> bool:
        if list(map(type, tensors)) != self._classes:
            return False
        try:
            strides = list(map(Tensor.stride, tensors))
        except RuntimeError:  # sparse tensors have none
            return False
        return (
            strides == self._strides
            and list(map(_shape, tensors)) == self._shapes
            and list(map(_dtype, tensors)) == self._dtypes
            and (all(map(_is_cpu, tensors)) if self._devices is None else list(map(_device, tensors)) == self._devices)
            and not any(map(Tensor.is_neg, compress(tensors, self._doubtful())))
        )

    def _doubtful(self) -> list[bool]:
        """Which may be negated: a negated view of an imaginary part has holes, unless it has one element."""
        if self._may_be_negated is None:
            kinds = zip(self._shapes, self._strides, strict=True)
            self._may_be_negated = [shape.numel() < 2 or not is_dense(shape, stride) for shape, stride in kinds]
        return self._may_be_negated

    def of_some(self, present: Sequence[bool]) -> "Signature":
        """The signature of some of the tensors."""
        some = Signature.__new__(Signature)
        some._dtypes, some._shapes = list(compress(self._dtypes, present)), list(compress(self._shapes, present))
        some._strides, some._classes = list(compress(self._strides, present)), list(compress(self._classes, present))
        some._devices = None if self._devices is None else list(compress(self._devices, present))
        some._hash, some._may_be_negated = None, list(compress(self._doubtful(), present))
        some._are_plain, some._tries = None, 0
        return some


def are_ordinary(tensors: Sequence[Tensor], devices: Collection[str]) -> bool:
    """Whether kernels can read and write tensors."""
    return (
        set(map(type, tensors)) <= {Tensor, torch.nn.Parameter}
        and set(map(_layout, tensors)) <= {torch.strided}
        and (all(map(_is_cpu, tensors)) or all(x.device.type in devices for x in tensors))
        and not (any(map(Tensor.is_conj, tensors)) or any(map(Tensor.is_neg, tensors)))
    )
