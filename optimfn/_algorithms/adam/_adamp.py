"""AdamP: Adam that takes no step along parameters whose scale does not matter."""

from typing import Any

from ... import tree
from ..._base import GradientTransformation, chain
from ..._checks import check_decay, check_nonnegative
from ..._recipe import factory
from ..._transforms._rate import descend
from ..._typing import Mask, Params, Scalar, ScalarOrSchedule, Updates
from ..parts._tangential import tangential
from ._adam import ScaleByAdamState, scale_by_adam


def _one_ahead(b1: Scalar, b2: Scalar, eps: Scalar) -> GradientTransformation:
    """Adam with the mean one step ahead, under the correction of this step: neither NAdam's nor optax's."""
    check_decay(b1=b1, b2=b2)
    check_nonnegative(eps=eps)
    adam = scale_by_adam(b1, b2, eps)

    def update(
        updates: Updates, state: ScaleByAdamState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByAdamState]:
        _, state = adam.rule(updates, state, params)
        ahead = tree.bias_correction(tree.update_moment(updates, state.mu, b1, 1), b1, state.count)
        direction = tree.div_by_root(ahead, tree.bias_correction(state.nu, b2, state.count), eps)
        return tree.cast_like(direction, updates), state

    return GradientTransformation(adam.init, update, leafwise=True)


@factory
def adamp(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    nesterov: bool = False,
) -> GradientTransformation:
    """Step as AdamW does, but not along parameters whose scale the loss does not see.

    `tangential` says where that is, and gives the maths; it goes with any rule.

    Args:
        learning_rate: Parameter units per step, roughly, >= 0; a number, a 0-dim tensor or a schedule.
        b1: Decay of the mean, no unit, in [0, 1).
        b2: Decay of the mean square, no unit, in [0, 1).
        eps: Added outside the root, in the unit of `|g|`, and to norms, > 0.
        weight_decay: Decay per unit of learning rate, >= 0.
        mask: Which leaves decay: a tree of bools, a prefix of one, or a function of the parameters.
        delta: How far from right angles gradient and parameters may be, no unit, >= 0.
        wd_ratio: Share of the decay that is left where the step is changed, no unit, >= 0.
        nesterov: Look one step ahead with the mean.

    Shapes:
        params: needed. state: that of `scale_by_adam`. Memory: 2 x params.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given.

    Source: Heo et al., 2021, arXiv:2006.08217, Algorithm 2.

    Example:
        >>> import torch, optimfn as of
        >>> tx, params = of.adamp(0.1), torch.tensor([[2.0, 0.0]])
        >>> tx.update(torch.tensor([[0.0, 5.0]]), tx.init(params), params)[0]
        tensor([[-0.0000, -0.1000]])
    """
    rule = _one_ahead(b1, b2, eps) if nesterov else scale_by_adam(b1, b2, eps)
    return chain(tangential(rule, weight_decay, mask, delta=delta, wd_ratio=wd_ratio, eps=eps), descend(learning_rate))
