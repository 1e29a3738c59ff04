"""AdaHessian: Adam with the curvature in the place of the squared gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain, check_transformation
from ..._checks import check_callable, check_decay, check_fraction, check_nonnegative, need_params
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, State, Updates
from ._adam_mini import Blocks, block_means, row_means
from ._sophia import hutchinson_estimator_diag_hessian


class ScaleByAdaHessianState(NamedTuple):
    """AdaHessian's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of the squared curvatures, with one element along axes that are averaged
    hessian_fn_state: State  # that of the estimator


def kernels(path: str, x: Tensor) -> tuple[int, ...] | None:
    """The axes of the kernels of two-dimensional convolutions."""
    return (2, 3) if x.ndim == 4 else None


@factory
def scale_by_adahessian(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    hessian_power: Scalar = 1.0,
    hessian_diagonal_fn: GradientTransformation | None = None,
    blocks: Blocks | None = None,
) -> GradientTransformation:
    """Divide the mean of the updates by the root mean square of the diagonal of the Hessian.

    The estimator gets the extra arguments of `update`: `obj_fn`, the loss, for that of Hutchinson.

    Maths:
        h = |diagonal|, averaged over the kernels of convolutions
        mu <- b1 mu + (1 - b1) g,  nu <- b2 nu + (1 - b2) h^2
        update <- mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t))^hessian_power + eps)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added to the power of the root, in its unit, >= 0.
        hessian_power: Power of the curvature, no unit, in [0, 1].
        hessian_diagonal_fn: A transformation that returns the diagonal; `None` means that of Hutchinson.
        blocks: Function of path and leaf that says what is averaged, as for `scale_by_adam_mini`; `None` means the last
            two axes of leaves with four.

    Shapes:
        params: needed, real leaves. state: count () int64; mu like params; nu with one element along averaged axes;
            that of the estimator. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or what the estimator needs.

    Source: Yao et al., 2021, arXiv:2006.00719, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, x = of.scale_by_adahessian(eps=0.0), torch.tensor([1.0, -2.0])
        >>> tx.update(2 * x, tx.init(x), x, obj_fn=lambda x: (x**2).sum())[0]
        tensor([ 1., -2.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)
    check_fraction(hessian_power=hessian_power)
    estimator = hutchinson_estimator_diag_hessian() if hessian_diagonal_fn is None else hessian_diagonal_fn
    check_transformation(hessian_diagonal_fn=estimator)
    chosen = kernels if blocks is None else blocks
    check_callable(blocks=chosen)

    def init(params: Params) -> ScaleByAdaHessianState:
        nu = tree.outline(lambda x: row_means(x, chosen), tree.init_moment(params, real=True))
        return ScaleByAdaHessianState(
            tree.count(params), tree.init_moment(params), tree.zeros_like(nu), estimator.init(params)
        )

    def over(m: Tensor, v: Tensor) -> Tensor:
        # A power has no derivative at 0; that of the root of 0 stays out of sight behind it.
        root = torch.sqrt(v)
        root = root if not isinstance(hessian_power, Tensor) and hessian_power == 1 else root**hessian_power
        return tree.cast_leaf(m / (root + eps), m.dtype)

    def update(
        updates: Updates, state: ScaleByAdaHessianState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdaHessianState]:
        need_params("scale_by_adahessian", params)
        count = state.count + 1
        diagonal, inner = estimator.rule(updates, state.hessian_fn_state, params, **extra)
        size = block_means(tree.map(torch.abs, diagonal), chosen)
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(size, state.nu, b2, 2)
        direction = tree.map(over, tree.bias_correction(mu, b1, count), tree.bias_correction(nu, b2, count))
        state = ScaleByAdaHessianState(count, tree.carry(mu, state.mu), tree.carry(nu, state.nu), inner)
        return tree.cast_like(direction, updates), state

    return GradientTransformation(init, update)


@factory
def adahessian(
    learning_rate: ScalarOrSchedule = 0.15,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    hessian_power: Scalar = 1.0,
    hessian_diagonal_fn: GradientTransformation | None = None,
    blocks: Blocks | None = None,
) -> GradientTransformation:
    """Step by the mean gradient over the root mean square of the diagonal of the Hessian: `scale_by_adahessian`.

    Args:
        learning_rate: Steps of Newton's method per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square of the curvature, no unit, in [0, 1).
        eps: Added to the power of the root, in its unit, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        hessian_power: Power of the curvature, no unit, in [0, 1].
        hessian_diagonal_fn: A transformation that returns the diagonal; `None` means that of Hutchinson.
        blocks: Function of path and leaf that says what is averaged; `None` means the last two axes of four.

    Shapes:
        params: needed, real leaves. state: that of `scale_by_adahessian`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or what the estimator needs.

    Source: Yao et al., 2021, arXiv:2006.00719, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx, x = of.adahessian(0.5, eps=0.0), torch.tensor([1.0, -2.0])
        >>> tx.update(2 * x, tx.init(x), x, obj_fn=lambda x: (x**2).sum())[0]
        tensor([-0.5000,  1.0000])
    """
    rule = scale_by_adahessian(b1, b2, eps, hessian_power, hessian_diagonal_fn, blocks)
    return chain(rule, add_decayed_weights(weight_decay, mask), descend(learning_rate))
