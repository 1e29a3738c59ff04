"""Adan: Adam with a mean of its own for how gradients change."""

from typing import Annotated, Any, NamedTuple

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._decay_kinds import decay_proximally
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByAdanState(NamedTuple):
    """Adan's memory."""

    m: Updates  # running mean of the gradients, like params
    v: Annotated[Updates, "signed"]  # running mean of their changes, like params
    n: Updates  # running mean of the squared gradients, extrapolated, like params but real
    g: Updates  # the last gradient, like params
    t: Count  # () int64, steps taken


@factory
def scale_by_adan(
    b1: Scalar = 0.98, b2: Scalar = 0.92, b3: Scalar = 0.99, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> GradientTransformation:
    """Divide the mean of the updates, moved on by the mean of their changes, by their root mean square.

    Maths:
        d = g - g_prev, but 0 at the first step
        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) d
        n <- b3 n + (1 - b3) |g + b2 d|^2
        m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t),  n_hat = n / (1 - b3^t)
        update <- (m_hat + b2 v_hat) / (sqrt(n_hat + eps_root) + eps)

    Args:
        b1: Decay of `m`, no unit, in [0, 1); one minus the paper's beta_1.
        b2: Decay of `v` and weight of the changes, no unit, in [0, 1); one minus the paper's beta_2.
        b3: Decay of `n`, no unit, in [0, 1); one minus the paper's beta_3.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.

    Shapes:
        state: t () int64; m, v, n, g like params (n real; float32 for float16 and bfloat16).
        Memory: 4 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Differs from: optax (0.2.8 and before), where the changes weigh `1 - b2`, 0.08 instead of 0.92
        (google-deepmind/optax#1715).

    Source: Xie et al., 2022, arXiv:2208.06677, Algorithm 1, with the bias corrections of the authors' code.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_adan()
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)))[0]
        tensor([1.])
    """
    check_decay(b1=b1, b2=b2, b3=b3)
    check_nonnegative(eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByAdanState:
        m, v, g = (tree.init_moment(params) for _ in range(3))
        return ScaleByAdanState(m, v, tree.init_moment(params, real=True), g, tree.count(params))

    def update(
        updates: Updates, state: ScaleByAdanState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdanState]:
        t = state.t + 1
        change = tree.map(lambda u, was: torch.where(t == 1, torch.zeros_like(was), u - was), updates, state.g)
        m = tree.update_moment(updates, state.m, b1, 1)
        v = tree.update_moment(change, state.v, b2, 1)
        n = tree.update_moment_per_elem_norm(tree.add_scale(updates, b2, change), state.n, b3, 2)
        ahead = tree.add_scale(tree.bias_correction(m, b1, t), b2, tree.bias_correction(v, b2, t))
        direction = tree.div_by_root(ahead, tree.bias_correction(n, b3, t), eps, eps_root)
        return tree.cast_like(direction, updates), ScaleByAdanState(
            tree.carry(m, state.m), tree.carry(v, state.v), tree.carry(n, state.n), tree.keep(updates, state.g), t
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adan(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    proximal: bool = False,
) -> GradientTransformation:
    """Step by Adan's estimate of the gradient ahead, over its root mean square.

    `scale_by_adan` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean gradient, no unit, in [0, 1); one minus the paper's beta_1.
        b2: Decay of the mean change and weight of the changes, no unit, in [0, 1); one minus the paper's beta_2.
        b3: Decay of the mean square, no unit, in [0, 1); one minus the paper's beta_3.
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added inside the root, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        proximal: Decay as the paper does, by a division of what the step makes of the parameters by
            `1 + learning_rate * weight_decay`, rather than by decoupled decay.

    Shapes:
        params: needed. state: that of `scale_by_adan`. Memory: 4 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Differs from: optax, as `scale_by_adan` says; the paper, unless `proximal`.

    Source: Xie et al., 2022, arXiv:2208.06677, Algorithm 1.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adan(1e-3)
        >>> tx.update(torch.tensor([5.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.0010])
    """
    rule = scale_by_adan(b1, b2, b3, eps, eps_root)
    if proximal:
        return chain(rule, descend(learning_rate), decay_proximally(weight_decay, learning_rate, mask))
    return chain(
        rule,
        add_decayed_weights(weight_decay, mask),
        descend(learning_rate),
    )
