"""What torch does not promise: its private names, and where its versions differ. No other module uses them."""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C import _functorch
from torch._compile import _disable_dynamo as disable_dynamo
from torch.autograd import forward_ad
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["DispatchMode", "disable_dynamo", "without_modes"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

no_torch_function = torch._C._disabled_torch_function_impl  # for subclasses whose operators go to the dispatcher alone
foreach_add_, foreach_copy_ = torch._foreach_add_, torch._foreach_copy_
make_wrapper_subclass = Tensor._make_wrapper_subclass
_modes, _level = torch._C._len_torch_dispatch_stack, _functorch.maybe_current_level


_optimizers: Any = sys.modules[torch.optim.Optimizer.__module__]  # which the name in `torch.optim` is not
_of_all_optimizers = _optimizers._global_optimizer_pre_hooks, _optimizers._global_optimizer_post_hooks
_is_profiling = torch._C._autograd._profiler_enabled
_guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
_frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
_compiler = getattr(_frames, "get_eval_frame_callback", lambda: True)  # there may be one
_empty_strided_cpu = getattr(_guards, "_empty_strided_cpu", None)


def empty_strided_cpu(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor on the CPU."""
    return torch.empty_strided(shape, stride, dtype=dtype, device="cpu")


if _empty_strided_cpu is not None:  # what torch.compile calls for its results: half the time, and no other device
    empty_strided_cpu = _empty_strided_cpu


def constant(function: F) -> F:
    """Have compilers call a function of constants, such as types, instead of tracing it.

    This is `torch.compiler.assume_constant_result`, which imports dynamo for it.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def constants(kind: type[T]) -> type[T]:
    """Have compilers take the instances of a class, such as one of strings, for constants; those of 2.10 do not."""
    _pytree.register_constant(kind)
    return kind


def like_these(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """A function, in C++, of as many tensors: whether all are like their examples; it may say no without reason.

    That is of the same class, dtype, device, shape and strides, and with the same flags: conjugated, negated, requiring
    a gradient. `None` if this version of torch has no such function.
    """
    make = getattr(_guards, "TensorGuards", None)
    if make is None:
        return None
    try:
        sizes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
        guard = make(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        check: Callable[..., bool] = guard.check
        return check if check(*tensors) else None
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None


def unseen(function: F, *, recursive: bool = True) -> F:
    """Have compilers leave a function alone, or its own frame only; where none is at work it costs nothing."""
    hidden = disable_dynamo(function, recursive)

    def call(*args: Any) -> Any:
        return (hidden if torch.compiler.is_compiling() or _compiler() is not None else function)(*args)

    functools.update_wrapper(call, function)
    if hasattr(_frames, "_FrameAction"):  # this frame is nothing to compile either
        skip, default = _frames._FrameAction.SKIP, _frames._FrameAction.DEFAULT
        _frames.set_code_exec_strategy(call.__code__, _frames._FrameExecStrategy(skip, default))
    return cast(F, call)


def is_observed(optimizer: Any) -> bool:
    """Whether hooks wait for a step of an optimizer, or somebody records what runs."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *_of_all_optimizers
    return torch.compiler.is_compiling() or any(hooks) or _is_profiling()


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


# DTensors, the shards of torch.distributed.tensor. That module takes as long to import as this package; whoever has a
# DTensor has imported it.

_ORDINARY = (Tensor, torch.nn.Parameter)


def is_dtensor(x: Any) -> bool:
    """Whether a tensor is a shard of one that lies on several processes."""
    # Only of tensors: the compiler of torch 2.10 cannot ask the type of None.
    return type(x) not in _ORDINARY and isinstance(x, Tensor) and hasattr(type(x), "_local_tensor")


def are_cut(leaves: Iterable[Any]) -> bool:
    """Whether some leaves are such shards."""
    kinds = set(map(type, leaves))
    return any(kind not in _ORDINARY and issubclass(kind, Tensor) and hasattr(kind, "_local_tensor") for kind in kinds)


def local_shard(x: Any) -> Tensor:
    """What a DTensor has here; no derivative flows through it."""
    local: Tensor = x.to_local() if torch.compiler.is_compiling() else x._local_tensor
    return local.detach()


def wrapped_like(local: Tensor, like: Any, shape: Sequence[int], placements: Sequence[Any]) -> Any:
    """A DTensor on the mesh of another, made of what it has here; without a check, and without communication."""
    if torch.compiler.is_compiling():
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return _dtensors().DTensor.from_local(
            local, like.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(strides)
        )
    tensors = _dtensors()
    spec, size = like._spec, torch.Size(shape)
    meta = type(spec.tensor_meta)(size, _contiguous(tuple(shape)), local.dtype)
    return tensors.DTensor(local, type(spec)(spec.mesh, tuple(placements), tensor_meta=meta), requires_grad=False)


def placed_like(x: Tensor, like: Any) -> Tensor:
    """The same values where another leaf has its own: as the same shards, or whole where that is whole."""
    if (type(like) in _ORDINARY and type(x) in _ORDINARY) or not (is_dtensor(like) or is_dtensor(x)):
        return x
    own: Any = x
    if not is_dtensor(like):
        return _whole(own)
    if is_dtensor(own) and own.device_mesh != like.device_mesh:
        own = _whole(own)
    if not is_dtensor(own):
        if x.shape != like.shape:
            return x
        own = wrapped_like(own, like, own.shape, [replicate()] * like.device_mesh.ndim)
    placed: Tensor = own if own.placements == like.placements else own.redistribute(placements=like.placements)
    return placed


def _whole(x: Any) -> Tensor:
    full: Tensor = x.full_tensor()
    return full


def without_parts(x: Any) -> Any:
    """A DTensor of the same values that are nowhere in parts which are still to be added up."""
    if not any(p.is_partial() for p in x.placements):
        return x
    return x.redistribute(placements=[replicate() if p.is_partial() else p for p in x.placements])


def _dtensors() -> Any:
    return sys.modules["torch.distributed.tensor"]


def replicate() -> Any:
    """The placement of what every process has whole."""
    return _dtensors().Replicate()


def shard(axis: int) -> Any:
    """The placement of what is cut along an axis."""
    return sys.modules["torch.distributed.tensor"].Shard(axis)


def shard_like(placement: Any, axis: int) -> Any:
    """The placement of what is cut along an axis in the way that another is cut along one of its own."""
    if placement.dim == axis:
        return placement
    factor = getattr(placement, "split_factor", None)
    return type(placement)(axis) if factor is None else type(placement)(axis, split_factor=factor)


@functools.cache
def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


# Collectives as operators that compilers follow. The names of the functions around them change from version to version.


def collective(name: str, x: Tensor, *args: Any) -> Tensor:
    """Begin a collective on a tensor and return its result, which may be read only after `wait_for`."""
    made: Tensor = getattr(torch.ops._c10d_functional, name)(x, *args)
    return made


def wait_for(x: Any) -> Tensor:
    """The result of a collective, when it has arrived."""
    own = x.elem if is_in_flight(x) else x
    if own.requires_grad and not torch.compiler.is_compiling():  # autograd has waited for it
        here: Tensor = own
        return here
    arrived: Tensor = torch.ops._c10d_functional.wait_tensor(own)
    return arrived


def is_in_flight(x: Any) -> bool:
    """Whether a tensor is the result of a collective that may still be on its way."""
    return type(x) not in _ORDINARY and hasattr(type(x), "trigger_wait")


def assert_later(condition: Tensor, message: str) -> None:
    """Raise when the condition turns out not to hold, also in a compiled graph."""
    torch._assert_async(condition, message)


def brief(x: Tensor) -> str:
    """A tensor in a word: the value of one number on the host, else dtype and shape; nothing is read from a device."""
    hidden = is_batched(x) or is_tracked(x)
    if x.ndim == 0 and type(x) is Tensor and x.device.type == "cpu" and not hidden:
        return repr(x.detach())
    kind = "" if type(x) in _ORDINARY else f"{type(x).__name__} "
    place = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{kind}{str(x.dtype).removeprefix('torch.')}{list(x.shape)}{place}"
