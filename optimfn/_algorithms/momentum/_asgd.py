"""ASGD: gradient descent with averaged parameters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tree
from ..._base import GradientTransformation
from ..._checks import check_nonnegative, need_params
from ..._recipe import factory
from ..._typing import Count, Params, Scalar, Updates


class ASGDState(NamedTuple):
    """The average, and the two rates of the next step."""

    count: Count  # () int64, steps taken
    eta: Tensor  # () float32, or float64 where that is the default dtype: step size of the next step
    mu: Tensor  # (), in the dtype of eta: weight of the next parameters in their average
    ax: Params  # average of the parameters, like params


@factory
def asgd(
    learning_rate: Scalar = 1e-2, lambd: Scalar = 1e-4, alpha: Scalar = 0.75, t0: Scalar = 1e6
) -> GradientTransformation:
    """Descend with a falling step size and a pull to zero, and keep the average of the parameters in the state.

    The answer is the average, `tree.get(state, "ax")`; up to step `t0` it is the parameters themselves.

    Maths:
        p <- p - eta (g + lambd p)
        ax <- ax + mu (p - ax)
        eta <- learning_rate / (1 + lambd learning_rate t)^alpha
        mu <- 1 / max(1, t - t0)
        from eta = learning_rate, mu = 1 at the first step

    Args:
        learning_rate: Parameter units per unit of gradient, >= 0; a number or a 0-dim tensor. A change is
            felt one step later, since `eta` was fixed the step before.
        lambd: Pull towards zero, in units of gradient per unit of parameter, >= 0; it also sets how soon
            the step size falls.
        alpha: Power with which the step size falls, no unit, >= 0.
        t0: Step at which averaging begins, in steps, >= 0.

    Shapes:
        params: needed. state: count () int64; eta, mu () in the default dtype, float32 at least and float64
            at most; ax like params (float32 for float16 and bfloat16). Memory: 1 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: torch.optim.ASGD, whose float32 rates are kept here for equal numbers, in its
        `weight_decay`: here `chain(add_decayed_weights(...), asgd(...))`.

    Source: Polyak and Juditsky, 1992; Xu, 2011, arXiv:1107.2490; the rule is that of torch.optim.ASGD.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.asgd(0.5, lambd=0.5)
        >>> updates, state = tx.update(torch.tensor([1.0]), tx.init(torch.ones(1)), torch.ones(1))
        >>> updates, state.ax
        (tensor([-0.7500]), tensor([0.2500]))
    """
    check_nonnegative(learning_rate=learning_rate, lambd=lambd, alpha=alpha, t0=t0)

    def init(params: Params) -> ASGDState:
        count = tree.count(params)
        mu = torch.ones((), dtype=tree.scalar_dtype(), device=count.device)
        return ASGDState(count, (mu * learning_rate).to(mu.dtype), mu, tree.init_moment(params))

    def update(
        updates: Updates, state: ASGDState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ASGDState]:
        need_params("asgd", params)
        count, dtype = state.count + 1, state.eta.dtype
        g, p = tree.cast_like(updates, state.ax), tree.cast_like(params, state.ax)
        direction = tree.scale(-tree.wide(state.eta), tree.add_scale(g, lambd, p))
        ax = tree.lerp(state.ax, tree.add(direction, p), state.mu)
        t = tree.wide(count)
        eta = (learning_rate / (1 + lambd * learning_rate * t) ** alpha).to(dtype)
        mu = (1 / torch.clamp(t - t0, min=1.0)).to(dtype)
        return tree.cast_like(direction, updates), ASGDState(count, eta, mu, tree.carry(ax, state.ax))

    return GradientTransformation(init, update, leafwise=True, elementwise=True)
