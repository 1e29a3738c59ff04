"""What torch does not promise: its private names, and where its versions differ. No other module uses them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._compile import _disable_dynamo as disable_dynamo
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["DispatchMode", "disable_dynamo", "without_modes"]

no_torch_function = torch._C._disabled_torch_function_impl  # for subclasses whose operators go to the dispatcher alone
foreach_add_ = torch._foreach_add_
make_wrapper_subclass = Tensor._make_wrapper_subclass
_modes, _level = torch._C._len_torch_dispatch_stack, _functorch.maybe_current_level


def is_intercepted() -> bool:
    """Whether a transformation of torch.func, forward mode or a dispatch mode sees the operators."""
    return _level() is not None or _modes() > 0 or forward_ad._current_level >= 0


def is_differentiating() -> bool:
    """Whether torch.func or forward mode is at work, apart from autograd itself."""
    return _level() is not None or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a dispatch mode sees the operators."""
    return _get_current_dispatch_mode() is not None


def unwrapped(x: Tensor) -> Tensor:
    """The tensor inside all wrappers of torch.func."""
    *_, inner = _layers(x)
    return inner


def is_batched(x: Tensor) -> bool:
    """Whether `vmap` has made one tensor of a batch."""
    return any(_functorch.is_batchedtensor(layer) for layer in _layers(x))


def is_tracked(x: Tensor) -> bool:
    """Whether torch.func or forward mode takes a derivative by the tensor."""
    layers = list(_layers(x))
    if any(_functorch.is_gradtrackingtensor(layer) for layer in layers):
        return True
    unpack: Any = forward_ad.unpack_dual
    return forward_ad._current_level >= 0 and unpack(layers[-1]).tangent is not None


def _layers(x: Tensor) -> Iterator[Tensor]:
    yield x
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
        yield x
