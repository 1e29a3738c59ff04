"""Which nodes an operator of ATen becomes: what kernels compute, and what they leave to ATen."""

from typing import Any

import torch

from ..ir import _ops
from ..ir._graph import Layout, Node
from ..ir._shapes import all_axes, contiguous_stride
from ._builder import Builder, wide_dtype
from ._infer import infer

FILLED: dict[str, float | None] = {  # the number, or None for that in the arguments
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "empty": 0,
    "empty_like": 0,
    "new_empty": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
    "full": None,
    "full_like": None,
    "new_full": None,
    "scalar_tensor": None,
}
_REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "max": "max", "min": "min", "mean": "mean"}
_VIEWS = {"view", "_unsafe_view", "unsqueeze", "squeeze"}
_TRANSPOSES = {"transpose", "t", "permute"}
_TRUTH_REDUCTIONS = {"all": "min", "any": "max"}


class Operators(Builder):
    """A graph under construction, by operators."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}  # operator -> why it is not generated

    def _fill(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        kwargs = {key: x for key, x in kwargs.items() if key != "pin_memory"}
        _, (layout,), _ = infer(func, name, args, kwargs)
        number = FILLED[name]
        if number is None:
            number = args[0] if name == "scalar_tensor" else kwargs.get("fill_value", args[-1])
        if layout.dtype not in _ops.DTYPES:
            self.opaque.setdefault(str(func), self._reason(name, args, layout))
            return self._add("opaque", func, args, kwargs, layout)
        if isinstance(number, Node):
            return self._add("pointwise", "copy", (number,), {}, layout)
        return self._add("pointwise", "fill", (number, layout.shape), {}, layout)

    def _reduction(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
        """A reduction of a whole tensor to a 0-dim one; `None` for everything else."""
        x = args[0] if args else None
        if not isinstance(x, Node) or x.dtype not in _ops.DTYPES or x.of_blocks:
            return None
        if name == "linalg_vector_norm":
            order, axes, keepdim = (*args[1:], *(2, None, False)[len(args) - 1 :])[:3]
            whole = not keepdim and (axes is None or all_axes(axes, x.layout.shape))
            return self._norm(x, order, kwargs.get("dtype"), None if whole else (axes or (), keepdim))
        if name in _TRUTH_REDUCTIONS and len(args) == 1 and x.dtype == torch.bool:
            return self._reduce(_TRUTH_REDUCTIONS[name], x)
        if name not in _REDUCTIONS or not x.dtype.is_floating_point or set(kwargs) - {"dtype"}:
            return None
        if func.__name__ in ("max.other", "min.other", "max.dim", "min.dim"):
            return None
        axes, keepdim = (*args[1:], None, False)[:2]
        if kwargs.get("dtype") is not None:
            x = self._cast(x, kwargs["dtype"])
        kind = _REDUCTIONS[name]
        if len(args) > 2 or (len(args) == 2 and not all_axes(axes, x.layout.shape)):
            return self._fold(kind, x, axes, keepdim)
        # ATen accumulates low precision in float32 and rounds once, at the end.
        total = self._reduce("sum" if kind == "mean" else kind, self._cast(x, wide_dtype(x.dtype)))
        if kind == "mean":
            total = self._apply("div", total.dtype, total, float(x.numel))
        return self._cast(total, x.dtype)

    def _pointwise(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], layout: Layout, compute: torch.dtype
    ) -> Node | None:
        """A node that kernels compute; `None` if they cannot."""
        if func.__name__ == "view.dtype" or (name == "_to_copy" and args[0].dtype == torch.float8_e4m3fn):
            return self._bits(name, args[0], layout)
        if name in ("_to_copy", "expand"):
            plain = set(kwargs) <= {"dtype", "layout", "device", "pin_memory", "non_blocking", "implicit"}
            old: Node = args[0]
            if not plain or self._foreign(old):
                return None
            if name == "expand" and not old.is_scalar and old.layout.shape != layout.shape:
                return self._spread(old, layout._replace(stride=contiguous_stride(layout.shape)))
            if not (old.is_scalar or old.layout[::2] == layout[::2]):
                return None
            if old.layout == layout:
                return old
            if old.op == "copy" and _is_narrower(layout.dtype, old.dtype) and old.args[0].layout == layout:
                before: Node = old.args[0]
                return before  # made wider, and narrow again
            if name == "expand" and layout.shape != ():
                layout = Layout(layout.shape, layout.dtype, contiguous_stride(layout.shape))
            return self._add("pointwise", "copy", args[:1], {}, layout) if layout.dtype in _ops.DTYPES else None
        if name in _TRANSPOSES and args[0].kind in ("pointwise", "fold") and not args[0].is_scalar:
            # Kernels go through memory in its own order, which stays as it is.
            return None if self._foreign(args[0]) else self._add("pointwise", "copy", args[:1], {}, layout)
        if name in _VIEWS and args[0].kind in ("pointwise", "fold") and () not in (args[0].layout.shape, layout.shape):
            # Kernels count elements, so another shape is the same.
            in_order = args[0].layout.stride == contiguous_stride(args[0].layout.shape)
            same_bits = args[0].dtype == layout.dtype and not self._foreign(args[0])  # else another dtype is asked for
            own = in_order and same_bits and layout.stride == contiguous_stride(layout.shape)
            return self._add("pointwise", "copy", args[:1], {}, layout) if own else None
        same = _unchanged(name, args, kwargs)
        if same is not None and same.layout == layout:
            return same
        if name not in _ops.POINTWISE or set(kwargs) - {"alpha", "value"} or layout.dtype not in _ops.DTYPES:
            return None
        if kwargs.get("alpha", 1) != 1:
            args = (*args, kwargs["alpha"])
        if name in ("addcmul", "addcdiv"):
            args = (*args, kwargs.get("value", 1))
        simple = all(isinstance(x, Node | int | float | None) for x in args)
        if not simple or any(isinstance(x, Node) and self._foreign(x) for x in args):
            return None
        if _ops.template(name, args, compute) is None:
            return None
        fits = [not isinstance(x, Node) or x.layout.shape in ((), layout.shape) for x in args]
        args = tuple(x if fit else self._spread(x, layout) for x, fit in zip(args, fits, strict=True))
        if any(x is None and not fit for x, fit in zip(args, fits, strict=True)):
            return None
        args = tuple(self._laid_out(x, layout) if isinstance(x, Node) else x for x in args)
        return self._add("pointwise", name, args, {}, layout, compute)

    def _bits(self, name: str, x: Node, layout: Layout) -> Node | None:
        """Bits seen as another dtype; `None` if kernels cannot.

        They have no float of 8 bits, but both its ends: what is cast to one whose bits are asked for, and bits that
        are one which is cast.
        """
        source = x
        if x.dtype == torch.float8_e4m3fn:
            by = x.op.__name__.split(".")[0] if x.kind == "opaque" else ""
            source = x.args[0] if by == ("view" if name == "_to_copy" else "_to_copy") else x
        target = x.dtype if name == "_to_copy" else layout.dtype
        cast = _ops.bit_cast(target, source.dtype if name == "_to_copy" else x.dtype)
        known = layout.dtype in _ops.DTYPES and source.dtype in _ops.DTYPES - {torch.float16}
        if cast is None or not known or source.layout[::2] != x.layout[::2]:
            return None
        return self._add("pointwise", cast, (source,), {}, layout, source.dtype)

    def _keeps_layout(self, x: Node, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("memory_format")
        return wanted in (None, torch.preserve_format) or (
            wanted is torch.contiguous_format and x.layout.stride == contiguous_stride(x.layout.shape)
        )

    @staticmethod
    def _foreign(x: Node) -> bool:
        return x.dtype not in _ops.DTYPES

    def _reason(self, name: str, args: tuple[Any, ...], layout: Layout) -> str:
        dtypes = {layout.dtype} | {x.dtype for x in args if isinstance(x, Node)}
        foreign = [str(dtype) for dtype in dtypes if dtype not in _ops.DTYPES]
        if foreign:
            return f"kernels have no type for {foreign[0]}"
        if name not in _ops.POINTWISE:
            return "not computed element by element"
        shapes = {x.layout.shape for x in args if isinstance(x, Node)} - {()}
        return "operands of several shapes" if len(shapes) > 1 else "kernels have no expression for these arguments"


def _is_narrower(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether all numbers of a dtype of low precision are numbers of another."""
    return dtype in _ops.LOW_PRECISION and other in (torch.float32, torch.float64)


def _unchanged(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
    """The operand that an operator gives back as it is, whatever the others are; `None` if there is none.

    Reductions over those leaves that are there begin with such an operator, at whichever leaf is the first.
    """
    first: Node
    if name == "where" and isinstance(args[1], Node) and args[1] is args[2]:
        return args[1]
    if name in ("logical_and", "logical_or"):
        neutral = name == "logical_and"
        pairs: list[tuple[Node, Node]] = [(args[0], args[1]), (args[1], args[0])]
        for own, other in pairs:
            if own.dtype == other.dtype == torch.bool and (own.op, own.args[:1]) == ("fill", (neutral,)):
                return other
    if name == "add" and isinstance(args[0], Node) and args[1] == 0 and not kwargs:
        total = first = args[0]
        while total.op == "copy":
            total = total.args[0]
        # A sum begins with 0, so it is never -0.0, the only number to which that makes a difference.
        return first if (total.kind, total.op) == ("reduce", "sum") else None
    return None
