"""ACProp: centred second moments that never see the gradient they divide."""

from typing import Any

import torch

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ._adabelief import ScaleByBeliefState


@factory
def scale_by_acprop(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16
) -> GradientTransformation:
    """Divide the updates by the spread that earlier updates had around their mean.

    A gradient does not take part in its own divisor, which makes the step unbiased.

    Maths:
        update <- g / (sqrt(nu / (1 - b2^(t-1))) + eps),  g / (1 + eps) at the first step
        nu <- b2 nu + (1 - b2) |g - mu|^2 + eps_root,  then mu <- b1 mu + (1 - b1) g

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added to `nu` at every step, in the unit of `|g|^2`, >= 0.

    Shapes:
        state: count () int64; mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Zhuang et al., 2021, arXiv:2110.05454.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_acprop()
        >>> first, state = tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))
        >>> first, tx.update(torch.tensor([2.0]), state)[0]
        (tensor([4.]), tensor([0.5000]))
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByBeliefState:
        return ScaleByBeliefState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByBeliefState]:
        first = state.count == 0
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(tree.sub(updates, state.mu), state.nu, b2, 2)
        nu = tree.map(lambda v: tree.cast_leaf(v + eps_root, v.dtype), nu)
        seen = tree.bias_correction(state.nu, b2, state.count + first)
        seen = tree.map(lambda _, v: torch.where(first, torch.ones_like(v), v), updates, seen)
        state = ScaleByBeliefState(state.count + 1, tree.carry(mu, state.mu), tree.carry(nu, state.nu))
        return tree.cast_like(tree.div_by_root(updates, seen, eps), updates), state

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def acprop(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> GradientTransformation:
    """Step by the gradients over the spread that earlier ones had around their mean.

    `scale_by_acprop` gives the maths; the first step is that of gradient descent.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the spread, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added to the spread at every step, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.

    Shapes:
        params: needed. state: that of `scale_by_acprop`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Zhuang et al., 2021, arXiv:2110.05454.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.acprop(0.1)
        >>> tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)), torch.ones(1))[0]
        tensor([-0.4000])
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root), add_decayed_weights(weight_decay, mask), descend(learning_rate)
    )
