"""Tensors that are made when an operator asks for them, and mostly none does."""

from typing import Any

from torch import Tensor

from ._torch import make_wrapper_subclass


class Lazy(Tensor):
    """What stands for a tensor, in its shape and dtype, until an operator asks for its values."""

    def whole(self) -> Tensor:
        """The tensor that it stands for."""
        raise NotImplementedError

    @classmethod
    def in_place_of(cls, x: Tensor, device: Any = None) -> Any:
        """What stands for a tensor like this one."""
        where = x.device if device is None else device
        return make_wrapper_subclass(cls, x.shape, strides=x.stride(), dtype=x.dtype, device=where)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *given: Any) -> Any:
        """Run an operator on the tensor."""
        _, args, kwargs = given
        return func(*_looked_at(args), **_looked_at(kwargs or {}))


def _looked_at(x: Any) -> Any:
    if isinstance(x, Lazy):
        return x.whole()
    if type(x) is dict:
        return {key: _looked_at(value) for key, value in x.items()}
    return type(x)(map(_looked_at, x)) if type(x) in (list, tuple) else x
