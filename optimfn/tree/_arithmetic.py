"""Leafwise arithmetic and reductions over whole trees.

A scalar is a Python number or a 0-dim tensor; it never changes the dtype of a leaf, not even of a
0-dim leaf. Sums accumulate float16 and bfloat16 leaves in float32; norms and inner products accumulate everything in
float64, whose range holds the square of every float32, and are rounded once, at the end.
"""

import builtins
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_choice
from .._torch import is_dtensor, placed_like
from .._typing import Scalar, Tree
from ._core import at_least_float32, cast_leaf, leaves, map, real_dtype, wide_dtype
from ._shards import COMBINE, reduce, reduce_each, reduced, together

_NORMS: dict[float, str] = {1: "sum", 2: "norm", math.inf: "max"}


def add(tree_x: Tree, tree_y: Tree, *other_trees: Tree) -> Tree:
    """`x + y + ...`, leaf by leaf."""
    return map(lambda *xs: functools.reduce(torch.add, xs), tree_x, tree_y, *other_trees)


def sub(tree_x: Tree, tree_y: Tree) -> Tree:
    """`x - y`, leaf by leaf."""
    return map(torch.sub, tree_x, tree_y)


def mul(tree_x: Tree, tree_y: Tree) -> Tree:
    """`x * y`, leaf by leaf."""
    return map(torch.mul, tree_x, tree_y)


def div(tree_x: Tree, tree_y: Tree) -> Tree:
    """`x / y`, leaf by leaf."""
    return map(torch.div, tree_x, tree_y)


def scale(scalar: Scalar, tree: Tree) -> Tree:
    """`scalar * x` in the dtype of `x`."""
    return map(lambda x: cast_leaf(x * scalar, x.dtype), tree)


def add_scale(tree_x: Tree, scalar: Scalar, tree_y: Tree) -> Tree:
    """`x + scalar * y`; `x` itself where `y` is `None`."""

    def leaf(x: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            return x
        # torch.add would multiply a float32 moment in the dtype of a float64 update; optax multiplies it in its own.
        if isinstance(scalar, Tensor) or (y.dtype, x.dtype) == (torch.float32, torch.float64):
            return cast_leaf(x + y * scalar, torch.promote_types(x.dtype, y.dtype))
        return torch.add(x, y, alpha=scalar)

    return map(leaf, tree_x, tree_y)


def conj(tree: Tree) -> Tree:
    """Complex conjugate of every leaf."""
    return map(torch.conj, tree)


def real(tree: Tree) -> Tree:
    """Real part of every leaf."""
    return map(torch.real, tree)


def sign(tree: Tree) -> Tree:
    """Sign of every element, `x / |x|` where it is complex; a NaN stays one, where `torch.sgn` says 0."""
    return map(lambda x: torch.where(torch.isnan(x), x, torch.sgn(x)), tree)


def clip(tree: Tree, min_value: Scalar | None = None, max_value: Scalar | None = None) -> Tree:
    """Every element moved into `[min_value, max_value]`; a bound of `None` does not bind."""

    def leaf(x: Tensor) -> Tensor:
        # clamp would promote a leaf to the dtype of a batched bound, so the bound takes the leaf's.
        low, high = (b.to(x.dtype) if isinstance(b, Tensor) else b for b in (min_value, max_value))
        if not (isinstance(low, Tensor) or isinstance(high, Tensor)):
            return x if low is None and high is None else torch.clamp(x, low, high)
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))

    return map(leaf, tree)


def shrink(tree: Tree, size: Tensor, bound: Scalar) -> Tree:
    """The tree, whose size is given, times what makes its size at most `bound`; bit for bit itself within it."""
    limit = torch.zeros_like(size) + bound
    # Nothing is divided within the bound, which may be infinite, or 0 like the size. A quotient of tensors is rounded
    # once; a Python number over a tensor is a product with the reciprocal.
    within = size <= limit
    return scale(torch.where(within, 1.0, limit / torch.where(within, 1.0, size)), tree)


def where(condition: bool | Tensor, tree_x: Tree, tree_y: Tree) -> Tree:
    """All of `x` if the one scalar condition holds, else all of `y`; both are evaluated."""
    if not isinstance(condition, Tensor):
        return tree_x if condition else tree_y
    return map(lambda x, y: torch.where(condition, x, y), tree_x, tree_y)


def zeros_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """New zeros in the shapes, and unless `dtype` is given the dtypes, of the leaves."""
    return map(lambda x: torch.zeros_like(x, dtype=dtype, requires_grad=False), tree)


def scalars(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """A new 0-dim zero for each leaf, on its device, in float64 unless `dtype` is given; whole on every process."""

    def leaf(x: Tensor) -> Tensor:
        own = wide_dtype(torch.float32, x.device) if dtype is None else dtype
        return torch.zeros((), dtype=own, device=x.device) if is_dtensor(x) else x.new_zeros((), dtype=own)

    return map(leaf, tree)


def ones_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """New ones in the shapes, and unless `dtype` is given the dtypes, of the leaves."""
    return map(lambda x: torch.ones_like(x, dtype=dtype, requires_grad=False), tree)


def full_like(tree: Tree, fill_value: Scalar, dtype: torch.dtype | None = None) -> Tree:
    """New leaves filled with one number."""
    if isinstance(fill_value, Tensor):
        return map(lambda zero: cast_leaf(zero + fill_value, zero.dtype), zeros_like(tree, dtype))
    return map(lambda x: torch.full_like(x, fill_value, dtype=dtype, requires_grad=False), tree)


def cast(tree: Tree, dtype: torch.dtype | None) -> Tree:
    """Every leaf in `dtype`; the tree itself if `dtype` is `None`."""
    return tree if dtype is None else map(lambda x: cast_leaf(x, dtype), tree)


def cast_like(tree: Tree, other_tree: Tree) -> Tree:
    """Every leaf in the dtype of its fellow in `other_tree`; `None` where the fellow is `None`."""
    return map(lambda x, y: None if y is None else placed_like(cast_leaf(x, y.dtype), y), tree, other_tree)


def carry(new: Tree, old: Tree) -> Tree:
    """The state to carry to the next step: `new` in the dtypes of `old`, and `old` where `new` is `None`.

    An update function ends with it, so that a state keeps its dtypes whatever the gradients are, its shards whatever
    the operators made of them, and leaves without a gradient keep their state.
    """
    return map(lambda was, now: was if now is None else placed_like(cast_leaf(now, was.dtype), was), old, new)


def keep(given: Tree, old: Tree) -> Tree:
    """As `carry`, for gradients, parameters and whatever else was given: it is copied.

    A state never shares memory with what the caller may write to afterwards. In a kernel the copy costs nothing.

    Example:
        >>> import torch, optimfn as of
        >>> gradient = torch.ones(1)
        >>> kept = of.tree.keep(gradient, torch.zeros(1))
        >>> gradient.zero_(), kept
        (tensor([0.]), tensor([1.]))
    """
    return map(lambda was, now: was if now is None else placed_like(now.to(was.dtype, copy=True), was), old, given)


def batch_shape(tree: Tree, shape: tuple[int, ...] = ()) -> Tree:
    """Every leaf repeated along new leading axes, as the start of a stack for `vmap`."""
    return map(lambda x: x.expand(*shape, *x.shape).clone(memory_format=torch.contiguous_format), tree)


def size(tree: Tree) -> int:
    """Number of elements of all leaves together."""
    return builtins.sum(x.numel() for x in leaves(tree))


def dtype(tree: Tree, mixed_dtype_handler: str | None = None) -> torch.dtype:
    """The one dtype of the leaves; of an empty tree, the default dtype.

    Args:
        tree: The tree.
        mixed_dtype_handler: What to answer if they differ: `"promote"` (the dtype that holds them all),
            `"highest"`, `"lowest"` (by the order of promotion), or `None` to raise.

    Raises:
        ValueError: if the dtypes differ and no handler, or an unknown one, is given.
    """
    check_choice("mixed_dtype_handler", mixed_dtype_handler, (None, "promote", "highest", "lowest"))
    found: list[torch.dtype] = sorted({x.dtype for x in leaves(tree)}, key=str)
    if not found:
        return torch.get_default_dtype()
    if len(found) == 1:
        return found[0]
    if mixed_dtype_handler is None:
        raise ValueError(f"the leaves have different dtypes: {', '.join(str(d) for d in found)}")
    if mixed_dtype_handler == "promote":
        return functools.reduce(torch.promote_types, found)
    ranked = sorted(found, key=lambda d: [torch.promote_types(d, other) for other in found].count(d))
    return ranked[-1] if mixed_dtype_handler == "highest" else ranked[0]


def vdot(tree_x: Tree, tree_y: Tree, wide: bool = False) -> Tensor:
    """Inner product of two trees as if each were one long vector; the first is conjugated.

    Args:
        tree_x: Any tree.
        tree_y: Another like it.
        wide: Return it in float64, in which it is computed, rather than in the dtype of the leaves.
    """

    def leaf(x: Tensor, y: Tensor) -> Tensor:
        # Only one factor is copied: a product of tensors of two dtypes converts the other as it goes.
        dtype = torch.promote_types(x.dtype, y.dtype)
        return (cast_leaf(x, wide_dtype(dtype, x.device)).conj() * y).sum()

    total = reduce(leaf, "sum", tree_x, tree_y)
    return total if wide else cast_leaf(total, _common_dtype([*leaves(tree_x), *leaves(tree_y)]))


def sum(tree: Tree) -> Tensor:
    """Sum of all elements of all leaves."""
    return _total(lambda x: x.sum(dtype=at_least_float32(x.dtype)), "sum", leaves(tree), 0.0)


def max(tree: Tree) -> Tensor:
    """Largest element; leaves without elements are skipped, and an empty tree gives -inf."""
    return _total(torch.amax, "max", [x for x in leaves(tree) if x.numel()], -math.inf)


def min(tree: Tree) -> Tensor:
    """Smallest element; leaves without elements are skipped, and an empty tree gives inf."""
    return _total(torch.amin, "min", [x for x in leaves(tree) if x.numel()], math.inf)


def norm(tree: Tree, ord: float | None = None, squared: bool = False, wide: bool = False) -> Tensor:
    """Vector norm of a tree as if it were one long vector, with a zero gradient at zero.

    Args:
        tree: Any tree. It is accumulated in float64, in which the squares of all float32 have room.
        ord: 1, 2 or inf; `None` means 2.
        squared: Return the square of the norm.
        wide: Return it in float64 rather than in the dtype of the leaves, at least float32; there it may be infinite.

    Raises:
        ValueError: if `ord` is another number.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    check_choice("ord", ord, (None, 1, 2, math.inf))
    power = 2 if ord is None else ord
    own = leaves(tree)
    rows = [(x,) for x in own if x.numel() or power != math.inf]
    parts = reduced(lambda x: _leaf_norm(x, power), _NORMS[power], rows)
    if power == math.inf:
        total = functools.reduce(torch.maximum, together(parts)) if parts else torch.tensor(0.0)
    elif power == 1:
        total = functools.reduce(torch.add, together(parts)) if parts else torch.tensor(0.0)
    elif len(parts) == 1:
        (total,) = parts
    else:
        total = torch.linalg.vector_norm(torch.stack(together(parts))) if parts else torch.zeros(())
    if wide:
        total = cast_leaf(total, wide_dtype(total.dtype, total.device))
    total = total * total if squared else total
    return total if wide else cast_leaf(total, real_dtype(_common_dtype(own)))


def norms(tree: Tree, *, squared: bool = False, mean: bool = False, wide: bool = False) -> Tree:
    """The 2-norm of each leaf by itself, as `norm` of it: a tree of 0-dim tensors.

    Where leaves lie in shards on several processes, it takes one collective for all of them.

    Args:
        tree: Any tree.
        squared: Return the squares of the norms.
        mean: Return the root mean squares, as `rms`.
        wide: Return them in float64 rather than in the dtypes of the leaves, at least float32.

    Example:
        >>> import torch, optimfn as of
        >>> of.tree.norms({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])})
        {'w': tensor(5.), 'b': tensor(1.)}
    """
    if not any(is_dtensor(x) for x in leaves(tree)):
        return map(lambda x: rms(x, wide) if mean else norm(x, squared=squared, wide=wide), tree)
    sizes = reduce_each(lambda x: _leaf_norm(x, 2), "norm", tree)

    def leaf(x: Tensor, size: Tensor) -> Tensor:
        size = size / math.sqrt(builtins.max(x.numel(), 1)) if mean else size * size if squared else size
        return size if wide else cast_leaf(size, real_dtype(_common_dtype([x])))

    return map(leaf, tree, sizes)


def rms(tree: Tree, wide: bool = False) -> Tensor:
    """Root mean square of all elements of all leaves; 0 if there are none. With `wide`, as that of `norm`."""
    root = norm(tree, wide=True) / math.sqrt(builtins.max(size(tree), 1))
    return root if wide else cast_leaf(root, real_dtype(_common_dtype(leaves(tree))))


def allclose(a: Tree, b: Tree, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether all elements are close, as a 0-dim bool tensor, so that nothing is read back."""
    return reduce(
        lambda x, y: torch.isclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan).all(), "all", a, b, empty=True
    )


def _leaf_norm(x: Tensor, power: float) -> Tensor:
    if not (x.is_floating_point() or x.is_complex()):
        x = x.to(torch.get_default_dtype())
    dtype = None if power == math.inf else wide_dtype(x.dtype, x.device)
    norm: Tensor = torch.linalg.vector_norm(x, ord=power, dtype=dtype)
    return norm


def _common_dtype(parts: list[Tensor]) -> torch.dtype:
    """What a reduction of these leaves is returned in."""
    dtypes = [x.dtype if x.is_floating_point() or x.is_complex() else torch.get_default_dtype() for x in parts]
    if not dtypes:
        return torch.get_default_dtype()
    return at_least_float32(functools.reduce(torch.promote_types, dtypes))


def _total(f: Callable[..., Tensor], how: str, own: list[Tensor], empty: float) -> Tensor:
    parts = reduced(f, how, [(x,) for x in own])
    return functools.reduce(COMBINE[how], together(parts)) if parts else torch.tensor(empty)
