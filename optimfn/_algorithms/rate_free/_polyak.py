"""Polyak's step size: as far as the linear model of the loss says it is to the minimum."""

from typing import Any

import torch

from ... import tree
from ..._base import EmptyState, GradientTransformation, chain, init_empty_state
from ..._checks import check_choice, check_nonnegative, check_number, check_rate
from ..._recipe import factory
from ..._transforms._rate import scale_by_learning_rate
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates


@factory
def scale_by_polyak(
    f_min: Scalar = 0.0, max_learning_rate: Scalar = 1.0, eps: Scalar = 0.0, variant: str = "sps"
) -> GradientTransformation:
    """Multiply the updates, which must be gradients, by the step at which their linear model reaches a lower bound.

    Every update takes the loss as an extra argument: `tx.update(grads, state, params, value=loss)`.

    Maths:
        step = min((value - f_min) / (|g|^2 + eps), max_learning_rate),  |g| over all leaves
               0 where |g|^2 + eps is below 2.2e-16
        with variant "sps+", max(value - f_min, 0) for the difference
        update <- step g

    Args:
        f_min: Lower bound of the loss, in its unit.
        max_learning_rate: Longest step, parameter units per unit of gradient, >= 0.
        eps: Added to the squared norm, in the unit of `|g|^2`, >= 0.
        variant: `"sps"`, or `"sps+"` for losses that may fall below `f_min`.

    Shapes:
        state: empty.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is no `value`.

    Source: Loizou et al., 2021, arXiv:2002.10542 ("sps"); Garrigos, Gower and Schaipp, 2023,
        arXiv:2307.14528 ("sps+").

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.scale_by_polyak(), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, value=(w**2).sum())[0]
        tensor([1.])
    """
    check_number(f_min=f_min)
    check_nonnegative(max_learning_rate=max_learning_rate, eps=eps)
    check_choice("variant", variant, ("sps", "sps+"))

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, *, value: Any = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        if value is None:
            raise ValueError("scale_by_polyak needs the loss: call tx.update(updates, state, params, value=loss)")
        size = tree.norm(updates, squared=True, wide=True) + eps
        gap = tree.wide(value).to(size.device) - f_min
        gap = torch.clamp(gap, min=0) if variant == "sps+" else gap
        flat = size <= torch.finfo(torch.float64).eps
        step = torch.minimum(gap / torch.where(flat, 1.0, size), torch.zeros_like(size) + max_learning_rate)
        # In two products: the step of a large gradient is too small for float32, that of its direction is not.
        norm = torch.sqrt(torch.where(flat, 1.0, size))
        return tree.scale(torch.where(flat, 0.0, step * norm), tree.scale(1 / norm, updates)), state

    return GradientTransformation(init_empty_state, update, elementwise=True)


@factory
def polyak_sgd(
    max_learning_rate: Scalar = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: Scalar = 0.0,
    eps: Scalar = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """Step against the gradient, as far as its linear model needs to reach a lower bound of the loss.

    For models that can reach the bound, such as those that interpolate their data. Every update takes the loss:
    `tx.update(grads, state, params, value=loss)`.

    Maths:
        update <- -min((value - f_min) / (scaling |g|^2), scaling max_learning_rate) g,  as in `scale_by_polyak`

    Args:
        max_learning_rate: Longest step, parameter units per unit of gradient, >= 0.
        scaling: The paper's c, no unit, > 0: divides the step, and multiplies the longest one; a number, a 0-dim
            tensor or a schedule.
        f_min: Lower bound of the loss, in its unit.
        eps: Added to the squared norm, in the unit of `|g|^2`, >= 0.
        variant: `"sps"`, or `"sps+"` for losses that may fall below `f_min`.

    Shapes:
        state: empty; with a schedule, count () int64.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if there is no `value`.

    Source: Loizou et al., 2021, arXiv:2002.10542.

    Example:
        >>> import torch, optimfn as of
        >>> tx, w = of.polyak_sgd(), torch.tensor([2.0])
        >>> tx.update(2 * w, tx.init(w), w, value=(w**2).sum())[0]
        tensor([-1.])
    """
    check_rate(scaling=scaling)
    return chain(scale_by_learning_rate(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
