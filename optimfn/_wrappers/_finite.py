"""Leave out steps whose gradients are not finite."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import choose
from .._base import GradientTransformation, check_transformation
from .._checks import check_steps
from .._evaluation import eval_within
from .._recipe import factory
from .._typing import Params, State, Tree, Updates


class ApplyIfFiniteState(NamedTuple):
    """How often the updates were not finite, and the state of the transformation inside."""

    notfinite_count: Tensor  # () int64, steps left out in a row
    last_finite: Tensor  # () bool, whether the last updates were finite
    total_notfinite: Tensor  # () int64, updates that were not finite, in all
    inner_state: State


@factory
def apply_if_finite(inner: GradientTransformation, max_consecutive_errors: int) -> GradientTransformation:
    """Leave out a step whose incoming updates hold a NaN or an infinity: zero updates, and the old state.

    After `max_consecutive_errors` such steps in a row one is let through, so that a run that has become
    useless shows it; then the counting begins anew.

    Args:
        inner: The transformation to protect.
        max_consecutive_errors: Steps to leave out in a row, >= 0.

    Shapes:
        state: that of `inner`, two counts and a bool.

    Raises:
        TypeError: at construction if `inner` is not a `GradientTransformation`.
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax, where the counter goes on after a bad update was let through, so that all that
        follow pass too, until a finite one comes (optax#1746).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.apply_if_finite(of.sgd(1.0), max_consecutive_errors=3)
        >>> updates, state = tx.update(torch.tensor([float("nan")]), tx.init(torch.ones(1)))
        >>> updates, state.notfinite_count
        (tensor([0.]), tensor(1))
    """
    check_transformation(inner=inner)
    check_steps(max_consecutive_errors=max_consecutive_errors, at_least=0)

    def init(params: Params) -> ApplyIfFiniteState:
        count = tree.count(params)
        return ApplyIfFiniteState(count, torch.ones_like(count, dtype=torch.bool), count.clone(), inner.init(params))

    def update(
        updates: Updates, state: ApplyIfFiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:
        finite = _all_finite(updates, state.last_finite)
        passes = finite | (state.notfinite_count >= max_consecutive_errors)
        new_updates, new_state = inner.rule(updates, state.inner_state, params, **extra)
        return choose(passes, new_updates, 0.0, params), ApplyIfFiniteState(
            torch.where(passes, 0, state.notfinite_count + 1),
            finite,
            state.total_notfinite + ~finite,
            tree.where(passes, new_state, state.inner_state),
        )

    last = eval_within(inner, "inner_state")
    return GradientTransformation(init, update, elementwise=inner.elementwise, takes_assigned=True, eval_params=last)


def _all_finite(updates: Tree, like: Tensor) -> Tensor:
    verdict = tree.reduce(lambda u: torch.isfinite(u).all(), "all", updates, empty=True)
    return torch.logical_and(torch.ones_like(like), verdict)
