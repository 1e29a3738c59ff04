"""What operators return: the layouts of their results, found without values and remembered for all traces."""

import functools
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..ir import _ops
from ..ir._graph import Layout, Node, NoShapes, Untraceable
from ..ir._shapes import broadcast, contiguous_stride

_RULES_DO_NOT_LIVE_IN = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),  # all of fused
    str(Path(__file__).parents[2] / "tree"),
    str(Path(__file__).parents[2] / "_assign.py"),
    str(Path(__file__).parents[2] / "_base.py"),
    str(Path(__file__).parents[2] / "_gate.py"),
    str(Path(__file__).parents[2] / "_recipe.py"),
)

# Running operators on the meta device is most of the cost of a trace, and models repeat their shapes.
_inferred: dict[Any, tuple[bool, list[Layout], torch.dtype]] = {}
_MOST = 8192  # layouts that are remembered; when there are more, it begins anew


def infer(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, list[Layout], torch.dtype]:
    """Whether an operator returns several tensors, their layouts, and the dtype it computes in."""
    call = (func, key(args, layouts=True), key(kwargs, layouts=True), torch.get_default_dtype())
    known = _inferred.get(call)
    if known is None:
        if len(_inferred) >= _MOST:  # sizes that follow the gradients that are there never come to an end
            _inferred.clear()
        known = _inferred[call] = _run_without_values(func, name, args, kwargs)
    return known


def _run_without_values(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, list[Layout], torch.dtype]:
    large = [x for x in args if isinstance(x, Node) and not x.is_scalar]
    shapes, strides = {x.layout.shape for x in large}, {x.layout.stride for x in large}
    regular = all(x.layout.stride == contiguous_stride(x.layout.shape) for x in large)
    alike = (name in _ops.POINTWISE or _is_like(name, kwargs)) and (len(shapes) <= 1 or regular)

    def example(x: Any) -> Any:
        if isinstance(x, Node):
            # One element tells the dtype. The first meta kernel imports sympy, or all of dynamo: up to a second.
            return torch.ones((1,) * len(x.layout.shape), dtype=x.dtype) if alike else x.layout.empty("meta")
        if isinstance(x, tuple):
            return [example(member) for member in x]
        return torch.device("cpu" if alike else "meta") if isinstance(x, torch.device) else x

    examples = [example(x) for x in args]
    try:
        result = func(*examples, **{key: example(x) for key, x in kwargs.items() if key != "generator"})
        shape = broadcast(shapes) if alike else ()
    except Exception as error:
        raise NoShapes(f"{func} has no rule for shapes ({error}), {line_of_rule('in ')}") from error
    multiple = isinstance(result, tuple | list)
    results = result if multiple else [result]
    if not all(isinstance(x, Tensor) for x in results):
        raise Untraceable(f"{func} returns a Python value, {line_of_rule('in ')}")
    layouts = [Layout.dense(x) for x in results]
    compute = layouts[0].dtype
    if _ops.judges(name):
        compute = torch.result_type(examples[-2], examples[-1]) if len(examples) > 1 else examples[0].dtype
    if alike and large:
        # Of several orders of memory the usual one: it is that of most others, and of the parameters.
        stride = contiguous_stride(shape) if len(strides) > 1 else strides.pop()
        layouts = [Layout(shape, layouts[0].dtype, stride)]
    return multiple, layouts, compute


def _is_like(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether an operator makes a tensor that lies as its argument does."""
    return name.endswith("_like") and kwargs.get("memory_format") in (None, torch.preserve_format)


def key(x: Any, layouts: bool = False) -> Any:
    """A hashable value that tells arguments apart: -0.0 from 0.0, True from 1, NaN equal to itself."""
    if isinstance(x, Node):
        return x.layout if layouts else x.number
    if isinstance(x, tuple):
        numbers = not layouts  # the most frequent case by itself
        return tuple([m.number if numbers and type(m) is Node else key(m, layouts) for m in x])
    if isinstance(x, dict):
        return tuple([(name, key(member, layouts)) for name, member in x.items()])
    return (float, x.hex()) if type(x) is float else (type(x), x)


def line_of_rule(prefix: str = "") -> str:
    """The innermost line of the rule that is running, as `file.py:12`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_of_rule(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{prefix}{_name_of(frame.f_code.co_filename)}:{frame.f_lineno}" if frame is not None else ""


@functools.cache
def _is_of_rule(file: str) -> bool:
    return not file.startswith(_RULES_DO_NOT_LIVE_IN)


@functools.cache
def _name_of(file: str) -> str:
    return Path(file).name
