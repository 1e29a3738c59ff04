"""AdaBelief: steps that are long where the gradient is as expected."""

from typing import Any, NamedTuple

from ... import tree
from ..._base import GradientTransformation, chain, identity
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._decay import add_decayed_weights
from ..._transforms._rate import descend
from ..._typing import Count, Mask, Params, Scalar, ScalarOrSchedule, Updates


class ScaleByBeliefState(NamedTuple):
    """AdaBelief's memory."""

    count: Count  # () int64, steps taken
    mu: Updates  # running mean of the gradients, like params
    nu: Updates  # running mean of the squared distance of gradients from that mean, like params but real


@factory
def scale_by_belief(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Divide the running mean of the updates by the root mean square of their distance from it.

    Maths:
        mu <- b1 mu + (1 - b1) g
        nu <- b2 nu + (1 - b2) |g - mu|^2 + eps_root
        mu_hat = mu / (1 - b1^t),  nu_hat = nu / (1 - b2^t)
        update <- mu_hat / (sqrt(nu_hat) + eps)
        with `nesterov`, mu_hat = b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)

    Args:
        b1: Decay of `mu`, no unit, in [0, 1).
        b2: Decay of `nu`, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added to `nu` at every step, in the unit of `|g|^2`, >= 0; where the gradient is constant, `nu`
            tends to `eps_root / (1 - b2)`.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        state: count () int64; mu, nu like params (nu real; float32 for float16 and bfloat16).
        Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Source: Zhuang et al., 2020, arXiv:2010.07468, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.scale_by_belief(b1=0.5, b2=0.75)
        >>> tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))[0]
        tensor([2.])
    """
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByBeliefState:
        return ScaleByBeliefState(tree.count(params), tree.init_moment(params), tree.init_moment(params, real=True))

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByBeliefState]:
        count = state.count + 1
        mu = tree.update_moment(updates, state.mu, b1, 1)
        nu = tree.update_moment_per_elem_norm(tree.sub(updates, mu), state.nu, b2, 2)
        nu = tree.map(lambda v: tree.cast_leaf(v + eps_root, v.dtype), nu)
        mu_hat = tree.debiased_mean(updates, mu, b1, count, nesterov=nesterov)
        direction = tree.div_by_root(mu_hat, tree.bias_correction(nu, b2, count), eps)
        return tree.cast_like(direction, updates), ScaleByBeliefState(
            count, tree.carry(mu, state.mu), tree.carry(nu, state.nu)
        )

    return GradientTransformation(init, update, leafwise=True, elementwise=True)


@factory
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step by the mean gradient over its mean distance from the gradients: far where they agree.

    `scale_by_belief` gives the maths.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean squared distance, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, >= 0.
        eps_root: Added to the mean squared distance at every step, in the unit of `|g|^2`, >= 0.
        weight_decay: Decay per unit of learning rate, >= 0; a number, a 0-dim tensor or a schedule. `None` means none.
        weight_decay_mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        nesterov: Look one step ahead with the mean, as NAdam does.

    Shapes:
        params: needed with `weight_decay`. state: that of `scale_by_belief`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` with `weight_decay` if no parameters are given.

    Source: Zhuang et al., 2020, arXiv:2010.07468, Algorithm 2; Loshchilov and Hutter, 2019 (the decay).

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.adabelief(0.1, b1=0.5, b2=0.75)
        >>> tx.update(torch.tensor([4.0]), tx.init(torch.ones(1)))[0]
        tensor([-0.2000])
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        identity() if weight_decay is None else add_decayed_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
