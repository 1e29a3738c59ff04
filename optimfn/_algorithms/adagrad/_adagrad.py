"""AdaGrad: a learning rate for every element, which only falls."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Params, Scalar, ScalarOrSchedule, Updates


class ScaleByRssState(NamedTuple):
    """All gradients so far, squared."""

    sum_of_squares: Updates  # sum of squared magnitudes, like params but real


@factory
def scale_by_rss(
    initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7, *, eps_in_sqrt: bool = True
) -> GradientTransformation:
    """Divide the updates by the root of the sum of the squares of all updates so far.

    Maths:
        s <- s + |g|^2
        update <- g / sqrt(s + eps), and 0 where s = 0
                  g / (sqrt(s) + eps)  with `eps_in_sqrt=False`

    Args:
        initial_accumulator_value: Value `s` starts at, in the unit of `|g|^2`, >= 0.
        eps: Added inside the root (in the unit of `|g|^2`) or outside it (of `|g|`), >= 0.
        eps_in_sqrt: Whether `eps` is inside the root.

    Shapes:
        state: sum_of_squares like params but real (float32 for float16 and bfloat16). Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adagrad for complex leaves (squared magnitude here, real and imaginary parts
        apart there).

    Source: Duchi, Hazan and Singer, 2011, JMLR 12, Algorithm 1 with diagonal matrices.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_rss(initial_accumulator_value=11.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([0.8333])
    """
    check_nonnegative(initial_accumulator_value=initial_accumulator_value, eps=eps)

    def init(params: Params) -> ScaleByRssState:
        return ScaleByRssState(tree.full_like(tree.init_moment(params, real=True), initial_accumulator_value))

    def update(
        updates: Updates, state: ScaleByRssState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByRssState]:
        sums = tree.add(tree.abs_sq(updates), state.sum_of_squares)
        direction = tree.map(lambda g, s: divide(g, s, eps, eps_in_sqrt), updates, sums)
        return tree.cast_like(direction, updates), ScaleByRssState(tree.carry(sums, state.sum_of_squares))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> GradientTransformation:
    """Step by the gradient over the root of the sum of its squares so far.

    For sparse gradients and convex losses: an element that is seldom touched keeps its large steps. On long
    runs of deep networks the steps become too small; `rmsprop` and `adam` forget.

    `scale_by_rss` gives the maths; here the learning rate multiplies it.

    Args:
        learning_rate: Parameter units per step at first, >= 0; a number, a 0-dim tensor or a schedule.
        initial_accumulator_value: Value the sum starts at, in the unit of `|g|^2`, >= 0.
        eps: Added inside the root (in the unit of `|g|^2`) or outside it (of `|g|`), >= 0.
        eps_in_sqrt: Whether `eps` is inside the root.

    Shapes:
        state: that of `scale_by_rss`. Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: torch.optim.Adagrad, which has `initial_accumulator_value=0`, and `eps=1e-10` outside the
        root. With `eps_in_sqrt=False` and these the two agree; its `lr_decay` is a schedule here.

    Source: Duchi, Hazan and Singer, 2011, JMLR 12, Algorithm 1 with diagonal matrices.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adagrad(0.3, initial_accumulator_value=11.0)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.2500])
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt),
        descend(learning_rate),
    )


def divide(g: Tensor, s: Tensor, eps: Scalar, eps_in_sqrt: bool) -> Tensor:
    # The root is never taken of 0, not even where its value is thrown away: its gradient there is not finite.
    if eps_in_sqrt:
        seen = s > 0
        return g * torch.where(seen, torch.rsqrt(torch.where(seen, s, 1) + eps), 0)
    zero = s == 0
    return g / (torch.where(zero, 0, torch.sqrt(torch.where(zero, 1, s))) + eps)
