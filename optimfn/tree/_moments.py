"""Counts and running moments: the memory of most rules.

Moments of float16 and bfloat16 leaves are kept and computed in float32: at a decay of 0.999 a bfloat16
moment stands still, because a change of one part in a thousand is lost in its 8 bits.
"""

import math

import torch
from torch import Tensor

from .._typing import Params, Scalar, Tree
from ._core import REAL, at_least_float32, cast_leaf, leaves, map, wide


def count(params: Params) -> Tensor:
    """A step counter at zero: 0-dim int64, on the device of the parameters.

    If the parameters lie on several devices it stays on the CPU, since only a 0-dim CPU tensor combines
    with tensors of every device.
    """
    devices = {x.device for x in leaves(params)}
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    return torch.zeros((), dtype=torch.int64, device=device)


def init_moment(params: Params, dtype: torch.dtype | None = None, *, real: bool = False) -> Tree:
    """Zeros to accumulate a moment in.

    Args:
        params: The tree to mirror.
        dtype: Dtype of the moment. `None` means the leaf's own, but float32 for float16 and bfloat16.
        real: For moments of magnitudes: real where the leaf is complex.
    """

    def leaf(x: Tensor) -> Tensor:
        own = at_least_float32(x.dtype) if dtype is None else dtype
        return torch.zeros_like(x, dtype=REAL.get(own, own) if real else own, requires_grad=False)

    return map(leaf, params)


def update_moment(updates: Tree, moments: Tree, decay: Scalar, order: int) -> Tree:
    """`(1 - decay) * g**order + decay * m`, in the wider dtype of the two and at least float32."""
    return map(lambda g, m: _lerp(m, g if order == 1 else g**order, 1 - decay), updates, moments)


def lerp(tree_x: Tree, tree_y: Tree, weight: Scalar) -> Tree:
    """`x + weight * (y - x)`, in the wider dtype of the two and at least float32; `None` where `y` is `None`."""
    return map(lambda y, x: _lerp(x, y, weight), tree_y, tree_x)


def update_moment_per_elem_norm(updates: Tree, moments: Tree, decay: Scalar, order: int) -> Tree:
    """`(1 - decay) * |g|**order + decay * m`; real also where `g` is complex."""

    def leaf(g: Tensor, m: Tensor) -> Tensor:
        if order == 2 and not g.is_complex() and not isinstance(decay, Tensor):
            g, m = _wider(g, m)
            return torch.addcmul(m * decay, g, g, value=1 - decay)
        # Cast first: the square of a float16 is infinite from 256 on. No lerp, which is NaN on the way to infinity.
        size, m = _wider(_magnitude(cast_leaf(g, at_least_float32(g.dtype)), order), m)
        return cast_leaf(m * decay + size * (1 - decay), m.dtype)

    return map(leaf, updates, moments)


def abs_sq(tree: Tree) -> Tree:
    """`|x|^2`, leaf by leaf, in at least float32; real also where `x` is complex."""
    return map(lambda x: _magnitude(cast_leaf(x, at_least_float32(x.dtype)), 2), tree)


def update_infinity_moment(updates: Tree, moments: Tree, decay: Scalar, eps: Scalar) -> Tree:
    """`max(|g| + eps, decay * m)`."""

    def leaf(g: Tensor, m: Tensor) -> Tensor:
        size, m = _wider(g.abs(), m)
        return cast_leaf(torch.maximum(size + eps, m * decay), m.dtype)

    return map(leaf, updates, moments)


def bias_correction(moment: Tree, decay: Scalar, count: int | Tensor) -> Tree:
    """`m / (1 - decay**count)`: what a running mean that began at zero would be, had it begun nowhere.

    The denominator comes from `one_minus_power`; in float32 `1 - decay**count` is wrong in the fourth digit
    at a decay of 0.9999.

    Args:
        moment: The tree to correct.
        decay: The decay it was accumulated with, in [0, 1).
        count: Number of values it has seen, at least 1.
    """
    correction = one_minus_power(decay, count)
    return map(lambda m: cast_leaf(m / correction, m.dtype), moment)


def debiased_mean(updates: Tree, mean: Tree, decay: Scalar, count: Tensor, *, nesterov: bool = False) -> Tree:
    """A running mean that has taken in `updates`, debiased; with `nesterov`, one step ahead, as in NAdam.

    The latter is `decay m / (1 - decay^(count + 1)) + (1 - decay) g / (1 - decay^count)`.
    """
    if not nesterov:
        return bias_correction(mean, decay, count)
    return update_moment(bias_correction(updates, decay, count), bias_correction(mean, decay, count + 1), decay, 1)


def scalar_dtype() -> torch.dtype:
    """The dtype that torch.optim gives to scalars in a state: float32, or float64 where that is the default dtype."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def one_minus_power(decay: Scalar, count: int | Tensor) -> Tensor:
    """`1 - decay**count` in float64, as `-expm1(count * log(decay))`."""
    n = wide(count)
    if not isinstance(decay, Tensor):
        return -torch.expm1(n * (math.log(decay) if decay > 0 else -math.inf))
    # A small power takes nothing away, and has a derivative by the decay also at 0, where the logarithm has none.
    b, small = wide(decay), wide(decay) < 0.5
    return torch.where(small, 1 - b**n, -torch.expm1(n * torch.log(torch.where(small, 1.0, b))))


def div_by_root(tree: Tree, moments: Tree, eps: Scalar, eps_root: Scalar = 0.0) -> Tree:
    """`m / (sqrt(v + eps_root) + eps)`: the step of Adam and its kin.

    Args:
        tree: `m`, what is divided.
        moments: `v`, a second moment, >= 0.
        eps: Added outside the root, in the unit of `sqrt(v)`, >= 0.
        eps_root: Added inside the root, in the unit of `v`, >= 0; above 0 the result has a gradient
            also where `v` is 0.
    """
    bare = not isinstance(eps_root, Tensor) and eps_root == 0

    def leaf(m: Tensor, v: Tensor) -> Tensor:
        return cast_leaf(m / (torch.sqrt(v if bare else v + eps_root) + eps), torch.promote_types(m.dtype, v.dtype))

    return map(leaf, tree, moments)


def _wider(g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    if g.dtype == m.dtype and g.dtype.itemsize >= 4:
        return g, m
    dtype = at_least_float32(torch.promote_types(g.dtype, m.dtype))
    return cast_leaf(g, dtype), cast_leaf(m, dtype)


def _lerp(x: Tensor, y: Tensor, weight: Scalar) -> Tensor:
    if (x.dtype, y.dtype) == (torch.float32, torch.float64):
        return y * weight + x * (1 - weight)  # as optax: the decay in the dtype of the moment, the sum in the wider
    y, x = _wider(y, x)
    # lerp wants a tensor weight in the dtype of the leaf.
    return torch.lerp(x, y, cast_leaf(weight, x.dtype) if isinstance(weight, Tensor) else weight)


def _magnitude(g: Tensor, order: int) -> Tensor:
    if order == 2:
        return torch.view_as_real(g).square().sum(-1) if g.is_complex() else g * g
    return g.abs() ** order
