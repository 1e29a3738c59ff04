"""Optimistic steps: a gradient moved on by its last change, for games."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_nonnegative, check_number
from ..._recipe import factory
from ..._transforms._rate import descend, scale
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates
from ..adam._adam import scale_by_adam


class ScaleByOptimisticGradientState(NamedTuple):
    """The last gradient."""

    is_initial_step: Tensor  # () bool, whether there is none yet
    previous_gradient: Updates  # the last gradient, like params


@factory
def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0) -> GradientTransformation:
    """Add to the updates what they have changed by since the last step.

    Maths:
        update <- alpha g + beta (g - g_prev),  g_prev = g at the first step

    Args:
        alpha: Weight of the update, no unit.
        beta: Weight of its change, no unit.

    Shapes:
        state: is_initial_step () bool; previous_gradient like params (float32 for float16 and bfloat16).
        Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Mokhtari, Ozdaglar and Pattathil, 2019, arXiv:1901.08511.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_optimistic_gradient()
        >>> _, state = tx.update(torch.tensor([1.0]), tx.init(torch.ones(1)))
        >>> tx.update(torch.tensor([3.0]), state)[0]
        tensor([5.])
    """
    check_number(alpha=alpha, beta=beta)

    def init(params: Params) -> ScaleByOptimisticGradientState:
        return ScaleByOptimisticGradientState(tree.count(params) == 0, tree.init_moment(params))

    def update(
        updates: Updates, state: ScaleByOptimisticGradientState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByOptimisticGradientState]:
        first = state.is_initial_step
        change = tree.map(
            lambda g, was: torch.where(first, torch.zeros_like(was), g - was), updates, state.previous_gradient
        )
        ahead = tree.add_scale(tree.scale(alpha, updates), beta, change)
        return tree.cast_like(ahead, updates), ScaleByOptimisticGradientState(
            torch.zeros_like(first), tree.keep(updates, state.previous_gradient)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule, alpha: Scalar = 1.0, beta: Scalar = 1.0
) -> GradientTransformation:
    """Step against the gradient as it will be if it changes again as it just did: for saddle points.

    Maths:
        update <- -learning_rate (alpha g + beta (g - g_prev)),  g_prev = g at the first step

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number, a 0-dim tensor or a schedule.
        alpha: Weight of the gradient, no unit.
        beta: Weight of its change, no unit.

    Shapes:
        state: that of `scale_by_optimistic_gradient`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Mokhtari, Ozdaglar and Pattathil, 2019, arXiv:1901.08511.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.optimistic_gradient_descent(0.5)
        >>> tx.update(torch.tensor([1.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.5000])
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), descend(learning_rate))


@factory
def optimistic_adam(
    learning_rate: Scalar,
    optimism: Scalar | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """Step in Adam's direction as it will be if it changes again as it just did.

    `optimistic_adam_v2` says the same with a learning rate that may be a schedule.

    Maths:
        update <- -learning_rate d - optimism (d - d_prev),  d as in `scale_by_adam`, d_prev = d at first

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number or a 0-dim tensor.
        optimism: Weight of the change of direction, in parameter units, >= 0; `None` means `learning_rate`.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: those of `scale_by_adam` and `scale_by_optimistic_gradient`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, which warns that it is deprecated.

    Source: Daskalakis et al., 2018, arXiv:1711.00141, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.optimistic_adam(0.1, nesterov=False)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    check_nonnegative(learning_rate=learning_rate)
    optimism = learning_rate if optimism is None else optimism
    check_nonnegative(optimism=optimism)
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(learning_rate, optimism),
        scale(-1.0),
    )


@factory
def optimistic_adam_v2(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    nesterov: bool = True,
) -> GradientTransformation:
    """Step in Adam's direction as it will be if it changes again as it just did.

    Maths:
        update <- -learning_rate (alpha d + beta (d - d_prev)),  d as in `scale_by_adam`, d_prev = d at first

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        alpha: Weight of the direction, no unit.
        beta: Weight of its change, no unit.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        mu_dtype: Dtype of the mean; `None` means that of the leaf, float32 for float16 and bfloat16.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: those of `scale_by_adam` and `scale_by_optimistic_gradient`. Memory: 3 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Daskalakis et al., 2018, arXiv:1711.00141, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.optimistic_adam_v2(0.1, nesterov=False)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.1000])
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        descend(learning_rate),
    )
